"""One engine in one process, and its meters.

`client` is the parent's side. `child` is the process that imports the engine and has the clock. `meters`,
`late_work` and `environment` measure the machine and the process, and `introspect` examines an engine. The
sessions of the server and streaming scenarios run inside the child.
"""
