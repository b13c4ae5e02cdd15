"""Standard output and standard error whose readers may be gone, full or never there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from asrgate.backends.base import AsrgateError

UNWRITABLE = "cannot write to standard output"


@contextlib.contextmanager
def guarded() -> Iterator[bool]:
    """Make writing to stderr unable to fail, and open what the caller closed; yield whether stdout was open.

    What is closed (`>&-`) becomes /dev/null: otherwise the next file that is opened would take its number,
    and get what engines print. Progress and messages must never end a run, so a reader of stderr may leave.
    """
    has_stdout = _is_open(1)
    for number in (0, 1, 2):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and sys.stdout.encoding.lower() == "utf-8":
        reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    before = sys.stderr
    sys.stderr = Unfailing(before)
    try:
        yield has_stdout
    finally:
        sys.stderr = before


def write(text: str) -> None:
    """Write a text to stdout; raise AsrgateError if that is impossible, unless its reader has just left."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a large text is not kept for `flushed` to fail on
        raise AsrgateError(f"{UNWRITABLE}: {error.strerror}") from error


def flushed() -> str | None:
    """Flush stdout; return why that is impossible, None if all has been written.

    What cannot be written is dropped: Python's own flush at exit must not fail as well.
    """
    try:
        sys.stdout.flush()
    except ValueError:  # it was closed
        return None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error.strerror or str(error)
    return None


class Unfailing:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text if that is possible; return its length."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write the lines if that is possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
