"""A plan into samples: workers loaded, rounds interleaved, a journal that a crash leaves whole.

`runner.run` is the way in. `cluster` does the same over the machines of a Ray cluster.
"""
