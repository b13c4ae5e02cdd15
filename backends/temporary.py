"""Temporary folders of processes that may be killed: private, and deleted by a later start if theirs died.

Every folder has a file that its process keeps locked. The lock goes with the process, however that ends, so a
folder whose lock is free is nobody's. Processes that a dead one left behind are found by their TMPDIR, which
lies in its folder, and are ended first.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import glob
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, OWNER = "asrgate-", "owner"


@functools.cache
def of_process() -> Path:
    """Return this process's folder for temporary files, which is deleted when the process ends."""
    folder, owner = _made(Path(tempfile.gettempdir()), PREFIX)
    atexit.register(_remove, folder, owner)
    return folder


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield an empty folder inside this process's; it is deleted at the end."""
    with tempfile.TemporaryDirectory(dir=of_process()) as name:
        yield Path(name)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to a target, to make the target in and then rename it; deleted at the end.

    Raises:
        OSError: it cannot be made.
    """
    made, owner = _made(target.parent, f".{target.name[:40]}.")
    try:
        yield made
    finally:
        _remove(made, owner)


def sweep(parent: Path, prefix: str = PREFIX) -> None:
    """Delete this user's folders of processes that were killed, and end what these processes left running.

    Links are not followed, and a folder without a lock is left alone: its process may just be making it.
    """
    for found in parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):
            about = found.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            owner = os.open(found / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_those_in(found)
                shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(owner)


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder; return it and the descriptor that holds its lock."""
    sweep(parent, prefix)
    while True:
        made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        owner = os.open(made / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(owner, fcntl.LOCK_EX)
        if os.fstat(owner).st_nlink:
            return made, owner
        os.close(owner)  # another process swept the folder just before it was locked


def _remove(made: Path, owner: int) -> None:
    shutil.rmtree(made, ignore_errors=True)
    os.close(owner)


def _end_those_in(dead: Path) -> None:
    """Kill this user's processes that were started with a TMPDIR in the folder, where /proc tells."""
    inside = b"TMPDIR=" + os.fsencode(dead) + b"/"
    for number in filter(str.isdecimal, os.listdir("/proc") if Path("/proc/self/environ").exists() else ()):
        with contextlib.suppress(OSError):
            process = os.pidfd_open(int(number))  # before it is looked at: the number may be used again
            try:
                if any(entry.startswith(inside) for entry in _environment(number)):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)


def _environment(number: str) -> list[bytes]:
    return Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
