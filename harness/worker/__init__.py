"""One engine in one process, and its meters.

`client` is the parent's side, with the clock. `child` is the process that imports the engine; `messages` go
between them. `sandbox` and `process_tree` shut an engine in. `meters`, `late_work` and `environment` measure
the machine and the process, and `introspect` examines an engine.
"""
