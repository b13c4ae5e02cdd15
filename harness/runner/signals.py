"""Signals that end the program: each does so as Ctrl-C does, so that what was measured is reported."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

ENDING = (  # those that end a process that does not care, and that it can care about
    *("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF"),
    *("SIGXCPU", "SIGIO", "SIGPWR", "SIGSTKFLT"),
)


def ending() -> list[signal.Signals]:
    """Return the signals of this system that end a run, Ctrl-C's aside."""
    return [getattr(signal, name) for name in ENDING if hasattr(signal, name)]


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """Have each of them raise KeyboardInterrupt; one that is ignored stays so, as nohup wants it."""
    with _handled(_interrupt, ending()):
        yield


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Let none of them, nor Ctrl-C, disturb what must come to its end."""
    with _handled(signal.SIG_IGN, [signal.SIGINT, *ending()]):
        yield


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handler: Any, numbers: list[signal.Signals]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _interrupt)
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
