"""The cache folder, and the locks that let two processes use it at the same time."""

from __future__ import annotations

import fcntl
import glob
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asrgate.backends import temporary
from asrgate.backends.base import AsrgateError

DEAD_SECONDS = 86_400.0


class CacheError(AsrgateError):
    """The cache folder cannot be used; the message names it and the variable that changes it."""


def user_cache_dir() -> Path:
    """Folder of the user's caches: `$XDG_CACHE_HOME`, or else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache_dir() -> Path:
    """Folder for downloads and conversions: `$ASRGATE_CACHE`, or else `asrgate` in the user's caches."""
    return Path(os.environ.get("ASRGATE_CACHE") or user_cache_dir() / "asrgate")


def make_folder(folder: Path) -> Path:
    """Create a folder in the cache, with its parents, and return it.

    Raises:
        CacheError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"cannot create the folder {folder}: {error.strerror}. Set ASRGATE_CACHE to a writable folder"
        ) from error
    return folder


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock for `target`; a second process waits here until the first is done.

    The lock is `flock` on a file next to the target, so it is released when its holder dies, however it dies.

    Raises:
        CacheError: the lock file cannot be opened.
    """
    make_folder(target.parent)
    path = target.with_name(f".{target.name}.lock")
    try:
        file = path.open("a")
    except OSError as error:
        raise CacheError(
            f"cannot open the lock {path}: {error.strerror}. Set ASRGATE_CACHE to a writable folder"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def reachable_folder(name: str) -> Iterator[Path]:
    """Yield an empty temporary folder among the caches: engines' processes can reach no other one.

    Raises:
        CacheError: the cache cannot be used.
    """
    with temporary.beside(make_folder(cache_dir()) / name) as folder:
        yield folder


@contextmanager
def replaced_whole(target: Path) -> Iterator[Path]:
    """Yield a new empty file next to the target; at the end it becomes the target, or is deleted on an error.

    Raises:
        OSError: it cannot be made or renamed.
    """
    temporary = temporary_beside(target)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # renaming a link onto another link to the same file does nothing


def temporary_beside(target: Path) -> Path:
    """Return a new empty file in the target's folder, to be filled and then renamed onto the target.

    Such files of earlier processes that nobody has written to for a day are deleted: those were killed.
    """
    for left in make_folder(target.parent).glob(f".{glob.escape(target.name)}.{'?' * 8}"):
        with suppress(OSError):
            found = left.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_mtime < time.time() - DEAD_SECONDS:
                left.unlink()
    handle, name = tempfile.mkstemp(dir=make_folder(target.parent), prefix=f".{target.name}.")
    os.close(handle)
    os.chmod(name, 0o644)
    return Path(name)
