"""How clips reach an engine: single-stream, offline, server, streaming.

`registry` names them. The worker's halves are harness/worker/server_session.py and streaming_session.py.
"""
