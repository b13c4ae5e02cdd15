"""SHA-256 of files, and what else was found of them, stored so that gigabytes are not read at every start."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from asrgate.backends.base import AsrgateError
from asrgate.backends.checkpoints.cache import cache_dir, make_folder, replaced_whole

HASH_BLOCK_BYTES = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")


def file_sha256(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Return the hex SHA-256 of a file, stored by path, size and modification time.

    Args:
        path: the file.
        progress: called with (bytes hashed, total bytes) if the file really is hashed.

    Raises:
        AsrgateError: the file cannot be read.
    """
    return remembered(path, "sha256", lambda: hash_now(path, progress))


def remembered(path: Path, what: str, compute: Callable[[], str]) -> str:
    """Return what was found of a file from the cache, or compute and store it there.

    A stored text is valid as long as the file's path, size and modification time are the same.

    Args:
        path: the file.
        what: what was found, such as a digest; also the name of its folder in the cache.
        compute: finds it in the file as it is now.

    Raises:
        AsrgateError: the file cannot be read.
    """
    try:
        status = path.stat()
        place = str(path.resolve())
        identity = [place, status.st_size, status.st_mtime_ns]
        note = cache_dir() / what / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.json"
        try:
            stored = json.loads(note.read_text())
            if stored["file"] == identity:
                return str(stored[what])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # never hashed, or the stored digest is damaged: hash it
        digest = compute()
    except OSError as error:
        raise AsrgateError(f"cannot read {path}: {error.strerror}") from error
    try:
        make_folder(note.parent)
        with replaced_whole(note) as temporary:
            temporary.write_text(json.dumps({"file": identity, what: digest}))
    except (OSError, AsrgateError):
        pass  # storing only saves time; a read-only cache must not stop a run
    return digest


def hash_now(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Return the hex SHA-256 of the file's bytes as they are now. Raises OSError if it cannot be read."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()
