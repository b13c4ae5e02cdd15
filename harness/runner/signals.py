"""Signals that end the program: each does so as Ctrl-C does, so that what was measured is reported."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

ENDING = (  # those that end a process that does not care, and that it can care about
    *("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF"),
    *("SIGXCPU", "SIGIO", "SIGPWR", "SIGSTKFLT"),
)
IMPORT_SECONDS = 5.0  # a signal waits no longer for an import


def ending() -> list[signal.Signals]:
    """Return the signals of this system that end a run, Ctrl-C's aside."""
    return [getattr(signal, name) for name in ENDING if hasattr(signal, name)]


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """Have Ctrl-C and each of them raise KeyboardInterrupt; an ignored one stays so, as nohup wants it."""
    with _handled(_Interrupt(), [signal.SIGINT, *ending()]):
        yield


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Let none of them, nor Ctrl-C, disturb what must come to its end."""
    with _handled(signal.SIG_IGN, [signal.SIGINT, *ending()]):
        yield


class _Interrupt:
    """Raises KeyboardInterrupt, but not in the middle of an import: the rest of the run may need the module.

    Python forgets a package whose import fails but not its parts; with these it cannot be imported again.
    """

    def __init__(self) -> None:
        self._latest: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._latest = self._latest or time.monotonic() + IMPORT_SECONDS
        if not _importing(frame) or time.monotonic() > self._latest:
            raise KeyboardInterrupt
        again = threading.Timer(0.02, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _handled(handler: Any, numbers: list[signal.Signals]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if isinstance(earlier := signal.getsignal(number), _Interrupt)
        or earlier in (signal.SIG_DFL, signal.default_int_handler)
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
