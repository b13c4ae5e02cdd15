"""`--log-format json`: what a run tells, one JSON object a line on stderr, for machines.

Every object has every key; one that an event knows nothing of is null.

time     when, ISO 8601, UTC, to the millisecond
event    one of EVENTS
message  in words
variant  name@device/precision
clip     name of the clip, as in the record
round    of a measured call, from 0, as in the record
seconds  wall time of the call, on the worker's clock
error    why there is no answer, or why the variant is out
calls    calls to be made in all, known from `start` on; with --rounds auto each further round adds to them
done     calls made so far
figures  a list, one object per variant: variant, wer_percent, wer_low_percent, wer_high_percent, rtfx,
         speedup, speedup_low, speedup_high; units and meanings as in summary.csv, null what is not known yet

Keys may be added; these stay. Only a command line that cannot be read at all is told as plain text.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from asrgate.harness.column import Row
from asrgate.harness.runner import progress

EVENTS = {
    "note": "something happened; the message says what",
    "start": "measuring begins",
    "stage": "a variant begins the work that the message describes",
    "answer": "a measured call is over",
    "figures": "a round is over, but not the last one; nothing is judged yet",
    "failure": "a variant is out of the run",
    "close": "measuring is over",
    "warning": "something a reader of the figures should know",
    "error": "the command ends without a result",
}

KEYS = ("message", "variant", "clip", "round", "seconds", "error", "calls", "done", "figures")


def emit(event: str, **values: Any) -> None:
    """Write one event to stderr. Text beyond ASCII is escaped: no terminal's encoding can spoil it."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    line = {"time": now, "event": event, **dict.fromkeys(KEYS), **values}
    print(json.dumps(line, allow_nan=False), file=sys.stderr, flush=True)


class JsonLines:
    """The progress of a run as events."""

    def __init__(self) -> None:
        self._calls: int | None = None
        self._done = 0
        self._stage: tuple[str, str] | None = None
        self._is_closed = False

    def note(self, text: str) -> None:
        self._emit("note", message=text)

    def start(self, calls: int) -> None:
        self._calls = calls
        self._emit("start")

    def stage(self, variant: str, what: str, clip: str = "") -> None:
        if (variant, what) != self._stage:  # each clip has its own `answer`
            self._stage = (variant, what)
            self._emit("stage", variant=variant, message=what)

    def more(self, calls: int) -> None:
        self._calls = (self._calls or 0) + calls

    def advance(self, calls: int) -> None:
        self._done += calls

    def figures(self, rounds: int, rows: Callable[[], Sequence[Row]]) -> None:
        if found := rows():
            self._emit("figures", message=progress.title(rounds), round=rounds - 1, figures=list(found))

    def answered(
        self, variant: str, clip: str, number: int, seconds: float | None, error: str | None
    ) -> None:
        self._done += 1
        self._emit("answer", variant=variant, clip=clip, round=number, seconds=seconds, error=error)

    def failed(self, variant: str, doing: str, error: str) -> None:
        self._emit("failure", variant=variant, message=doing, error=error)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._emit("close")

    def _emit(self, event: str, **values: Any) -> None:
        emit(event, calls=self._calls, done=self._done, **values)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        emit("warning", message=record.getMessage())


@contextlib.contextmanager
def warnings_as_events() -> Iterator[None]:
    """Have what modules log as a warning become events, too."""
    handler = _Handler(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
