"""An actor's slot on its machine: its number there, its folder, its cores."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from asrgate.backends.base import AsrgateError
from asrgate.harness.runner import lock
from asrgate.harness.worker import client

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SlotError(AsrgateError):
    """No slot can be had on this machine; the message says what mends it."""


def machine() -> str:
    """Return what is the same for actors of one machine, or of one container with limits of its own."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    return f"{platform.node()} {boot}"


def claim(parent: Path) -> tuple[IO[str], Path, int]:
    """Take the first slot of this machine that nobody holds: its lock, its empty folder and its number.

    The lock ends with the process, however it ends, so the next actor takes the slot of one that was lost.

    Raises:
        SlotError: this user's folder in `parent` is a link, or open to other users.
    """
    private = _private_folder(parent)
    number = 0
    while True:
        folder = private / f"slot{number}"
        held = lock.opened(private / f"slot{number}.lock")
        if not lock.is_taken(held):
            held.close()
            number += 1
            continue
        folder.mkdir(mode=0o700, exist_ok=True)
        empty(folder)
        return held, folder, number


def _private_folder(parent: Path) -> Path:
    """Make, or check, the one folder whose name is known beforehand; all others lie inside it."""
    folder = parent / f"asrgate-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SlotError(
            f"{folder} must be a folder that only this user can open; remove it, or set another TMPDIR"
        )
    return folder


def empty(folder: Path) -> None:
    """Delete everything in the folder, and nothing that its links point to."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def own_cores(number: int, threads: int) -> list[int] | None:
    """Return cores that no other actor has, None where there are none left, or where pinning is unknown.

    They are physical ones: a sibling of another actor's core is no core of its own.
    """
    cores = client.pinned_cores(client.default_threads()) or []
    own = cores[number * threads : (number + 1) * threads]
    return own if len(own) == threads else None


@contextlib.contextmanager
def pinned(cores: Sequence[int] | None) -> Iterator[None]:
    """Have processes that are started meanwhile inherit the cores; this one, which only waits, keeps all."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
