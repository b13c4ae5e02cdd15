"""How clips reach an engine: single-stream, offline, server, streaming.

`registry` names them and `dispatch` asks a worker in each way. A `*_session` runs inside the worker; the others
run in the parent.
"""
