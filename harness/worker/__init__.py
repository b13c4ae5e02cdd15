"""One engine in one process, and its meters.

`client` is the parent's end, `child` the process that imports the engine and holds the clock. `meters`,
`late_work` and `environment` read what the machine and the process cost, `introspect` looks into an engine,
and the sessions of the server and streaming scenarios run inside the child.
"""
