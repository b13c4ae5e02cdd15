"""A place's share of its machine: its number there, its folder, its cores."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from harness.worker import client

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """Return what is the same for places of one machine, or of one container with limits of its own."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    return f"{platform.node()} {boot}"


def claim(parent: Path) -> tuple[IO[str], Path, int]:
    """Take the first place of this machine that nobody holds: its lock, its empty folder and its number.

    The lock goes with the process, however it ends, so a place that was lost leaves its share to the next.
    """
    number = 0
    while True:
        folder = parent / f"asrbench-{os.getuid()}-place{number}"
        folder.mkdir(exist_ok=True)
        lock = (parent / f"{folder.name}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            number += 1
            continue
        empty(folder)
        return lock, folder, number


def empty(folder: Path) -> None:
    """Delete everything in the folder."""
    for path in folder.iterdir():
        if path.is_dir():
            empty(path)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def own_cores(number: int, threads: int) -> list[int] | None:
    """Return cores that no other place has, None where there are none left, or where pinning is unknown.

    They are physical ones: a sibling of another place's core is no core of its own.
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
