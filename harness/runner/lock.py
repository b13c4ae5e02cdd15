"""A lock of this machine that goes with its holder's process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

FOLDER_VARIABLE = "ASRGATE_LOCKS"


def of_machine() -> Path:
    """Return the path of the lock that every run of this user on this machine takes, whatever its TMPDIR."""
    shared = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    return Path(os.environ.get(FOLDER_VARIABLE) or shared) / f"asrgate-{os.getuid()}.lock"


def opened(path: Path) -> IO[str]:
    """Open a lock's file, made for this user alone where there is none; a link in its place is an OSError."""
    # a link could lead to any file of the user's
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")


def is_taken(file: IO[str]) -> bool:
    """Take the lock if nobody holds it; whether it is this process's now, until the file is closed."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
