"""How clips reach an engine: single-stream, offline, server, streaming.

`registry` is the table of them, `scenario` the interface. The worker's half of streaming is
harness/worker/streaming_session.py.
"""
