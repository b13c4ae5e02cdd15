"""Live progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """What a run tells while it goes on."""

    def note(self, text: str) -> None:
        """Say one thing that happened."""

    def start(self, calls: int) -> None:
        """Measuring begins; so many calls are to be made."""

    def stage(self, variant: str, what: str, clip: str = "") -> None:
        """Say who is working on what."""

    def advance(self, calls: int) -> None:
        """So many calls were made."""

    def answered(
        self, variant: str, clip: str, number: int, seconds: float | None, error: str | None
    ) -> None:
        """One measured call was made, in round `number` (from 0); `error` says why it gave no answer."""

    def failed(self, variant: str, doing: str, error: str) -> None:
        """The variant is out of the run."""

    def close(self) -> None:
        """Nothing more comes; leave the terminal clean. Safe to call twice."""


def choose(quiet: bool = False) -> Progress:
    """Return the progress that suits stderr."""
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()


class Silent:
    """Says nothing."""

    def note(self, text: str) -> None: ...

    def start(self, calls: int) -> None: ...

    def stage(self, variant: str, what: str, clip: str = "") -> None: ...

    def advance(self, calls: int) -> None: ...

    def answered(
        self, variant: str, clip: str, number: int, seconds: float | None, error: str | None
    ) -> None: ...

    def failed(self, variant: str, doing: str, error: str) -> None: ...

    def close(self) -> None: ...


class _Spoken:
    """What people are told in the same words, however it is shown."""

    def note(self, text: str) -> None: ...

    def advance(self, calls: int) -> None: ...

    def answered(
        self, variant: str, clip: str, number: int, seconds: float | None, error: str | None
    ) -> None:
        self.advance(1)

    def failed(self, variant: str, doing: str, error: str) -> None:
        self.note(f"{variant} failed {doing}: {error}")


class Lines(_Spoken):
    """One plain line for each thing that changes, for logs: a variant's turn, not every clip."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ""
        self._calls = self._done = 0

    def note(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:7.1f} s] {text}", file=sys.stderr, flush=True)

    def start(self, calls: int) -> None:
        self._calls = calls

    def stage(self, variant: str, what: str, clip: str = "") -> None:
        line = f"{variant}: {what}"
        if line != self._last:
            self._last = line
            share = f" ({self._done}/{self._calls} calls done)" if self._calls else ""
            self.note(line + share)

    def advance(self, calls: int) -> None:
        self._done += calls

    def close(self) -> None: ...


class Bar(_Spoken):
    """A bar with the remaining time; what it says of a stage is overwritten by the next."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=2,  # the screen must not cost the engines time
        )
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()

    def note(self, text: str) -> None:
        self._bar.console.print(f"[dim]{escape(text)}[/dim]", highlight=False)

    def start(self, calls: int) -> None:
        self._bar.update(self._task, total=calls, completed=0)

    def stage(self, variant: str, what: str, clip: str = "") -> None:
        where = f" [dim]{escape(clip)}[/dim]" if clip else ""
        self._bar.update(self._task, description=f"{escape(variant)}: {escape(what)}{where}")

    def advance(self, calls: int) -> None:
        self._bar.advance(self._task, calls)

    def close(self) -> None:
        self._bar.stop()
