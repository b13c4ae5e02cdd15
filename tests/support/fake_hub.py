"""The hub's cache as huggingface_hub lays it out, and a hub that answers about one model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME, COMMIT = "someone/tiny-speech", "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, files: Mapping[str, bytes], missing: Mapping[str, bytes] = {}) -> Path:
    """Put a model into a cache, at COMMIT; return its snapshot. `missing` is listed and was not fetched."""
    model = cache / f"models--{NAME.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for folder in ("blobs", "refs", "trees"):
        (model / folder).mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    listed = {}
    for name, content in {**files, **missing}.items():
        digest = hashlib.sha1(content).hexdigest()
        listed[name] = {"size": len(content), "blob_id": digest}
        if name in files:
            (model / "blobs" / digest).write_bytes(content)
            (snapshot / name).parent.mkdir(exist_ok=True)
            (snapshot / name).symlink_to(model / "blobs" / digest)
    tree = {"format_version": 1, "files": listed}
    (model / "trees" / f"{COMMIT}.json").write_text(json.dumps(tree))
    return snapshot


class Hub(ThreadingHTTPServer):
    """Knows that NAME is at COMMIT now, gives none of its files, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        known: Any = {"id": NAME, "sha": COMMIT}
        model = f"/api/models/{NAME}"
        status = 200 if self.path in (model, f"{model}/revision/main") else 404
        body = json.dumps(known if status == 200 else {"error": "Repository not found"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub for as long as the context lasts."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
