"""Which model a checkpoint file holds: its dimensions and its tensors' digest, found in a process of its own.

python -m asrgate.backends.checkpoints.identity dimensions|identity FILE.pt

This is all that whoever measures and judges knows of a checkpoint. Engines read its tensors in their workers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from asrgate.backends import child_process
from asrgate.backends.checkpoints import apart
from asrgate.backends.checkpoints.file import (
    CheckpointError,
    check_is_file,
    checked_dimensions,
    read_dimensions,
    read_tensors,
)
from asrgate.backends.checkpoints.sha256 import SHA256, remembered
from asrgate.backends.checkpoints.tensor_digest import tensors_sha256

CHECKS_VERSION = 1  # raise it when read_dimensions refuses more: what was remembered is then checked again


def dimensions_of(path: Path) -> dict[str, int]:
    """Return a checkpoint's dimensions after every tensor was checked, cached like file hashes.

    Raises:
        CheckpointError: as `file.read_dimensions`; or checking it took too much memory or time.
        AsrgateError: it cannot be read.
    """
    check_is_file(path)
    noted = remembered(path, f"dimensions-{CHECKS_VERSION}", lambda: json.dumps(_ask("dimensions", path)))
    try:
        return checked_dimensions(path, json.loads(noted))
    except (ValueError, RecursionError, CheckpointError):  # the note is damaged
        return checked_dimensions(path, _ask("dimensions", path))


def file_tensors_sha256(path: Path) -> str:
    """Return the digest of the tensors in a checkpoint of OpenAI's format, cached like file hashes.

    Raises:
        CheckpointError: the file is not a checkpoint.
        AsrgateError: it cannot be read.
    """
    check_is_file(path)
    return remembered(path, "tensors_sha256", lambda: identity_now(path)[1])


def identity_now(path: Path) -> tuple[dict[str, int], str]:
    """Return a checkpoint's dimensions and the digest of its tensors, of the bytes as they are now.

    Raises:
        CheckpointError: as `file.read_dimensions`; or reading it took too much memory or time.
    """
    check_is_file(path)
    found = _ask("identity", path)
    if not isinstance(found, dict) or not SHA256.fullmatch(str(found.get("tensors_sha256"))):
        raise CheckpointError(f"{path}: the process that reads it gave no digest")
    return checked_dimensions(path, found.get("dimensions")), str(found["tensors_sha256"])


def _ask(what: str, path: Path) -> Any:
    return apart.answer(__name__, what, path, size_bytes=path.stat().st_size)


def _found(what: str, path: Path) -> Any:
    # a tensor may be all of the file, is read in two parts, and widened in steps
    copies_bytes = 8 * path.stat().st_size if what == "identity" else 0
    child_process.limit_memory(apart.MEMORY_BYTES + copies_bytes)
    dimensions = read_dimensions(path)
    if what == "dimensions":
        return dimensions
    return {"dimensions": dimensions, "tensors_sha256": tensors_sha256(read_tensors(path, by_name=True))}


if __name__ == "__main__":
    sys.exit(apart.serve(lambda: _found(sys.argv[1], Path(sys.argv[2])), sys.argv[2]))
