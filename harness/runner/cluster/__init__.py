"""A run over the machines of a Ray cluster.

`connect` joins or starts it, `coordinator` gives out chunks of clips, `actor_pool` keeps the actors alive,
`actor` is one of them on its machine, and `node_slot` its share of that machine.
"""
