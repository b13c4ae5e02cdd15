"""Live progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from asrgate.harness.column import Column, Row, fitting
from asrgate.harness.runner import so_far

WIDTH_OF_LINES = 100  # of a log, which has no width of its own


class Progress(Protocol):
    """What a run tells while it goes on."""

    def note(self, text: str) -> None:
        """Say one thing that happened."""

    def start(self, calls: int) -> None:
        """Measuring begins; so many calls are to be made."""

    def stage(self, variant: str, what: str, clip: str = "") -> None:
        """Say who is working on what."""

    def more(self, calls: int) -> None:
        """So many calls are to be made beside those known at the start."""

    def advance(self, calls: int) -> None:
        """So many calls were made."""

    def figures(self, rounds: int, rows: Callable[[], Sequence[Row]]) -> None:
        """The run's figures after so many rounds, for who shows them; none is judged yet. See `so_far`."""

    def answered(
        self, variant: str, clip: str, number: int, seconds: float | None, error: str | None
    ) -> None:
        """One measured call was made, in round `number` (from 0); `error` says why it gave no answer."""

    def failed(self, variant: str, doing: str, error: str) -> None:
        """The variant is out of the run."""

    def close(self) -> None:
        """Nothing more comes; leave the terminal clean. Safe to call twice."""


def title(rounds: int) -> str:
    """Return what the figures after so many rounds are, in words."""
    return f"after {rounds} round{'s' if rounds > 1 else ''}, nothing judged or ranked yet"


def _table(rows: Sequence[Row], console: Console) -> Table:
    """Return the figures so far, without the least important columns if they do not all fit."""
    return _table_of(fitting(so_far.COLUMNS, console, lambda shown: _table_of(shown, rows)), rows)


def _table_of(shown: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in shown:
        table.add_column(
            column.heading, justify="right" if column.is_number else "left", no_wrap=column.is_number
        )
    for row in rows:
        table.add_row(*(Text(column.cell(row)) for column in shown))
    return table


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

    def more(self, calls: int) -> None: ...

    def advance(self, calls: int) -> None: ...

    def figures(self, rounds: int, rows: Callable[[], Sequence[Row]]) -> None: ...

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

    def more(self, calls: int) -> None:
        self._calls += calls

    def advance(self, calls: int) -> None:
        self._done += calls

    def figures(self, rounds: int, rows: Callable[[], Sequence[Row]]) -> None:
        if found := rows():
            self.note(title(rounds))
            wide = Console(width=WIDTH_OF_LINES, file=sys.stderr, color_system=None)
            wide.print(_table(found, wide))

    def close(self) -> None: ...


class _BelowFigures(RichProgress):
    """A bar below the figures so far, all of it renewed in place."""

    figures: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.figures is not None:
            yield self.figures
        yield from super().get_renderables()


class Bar(_Spoken):
    """A bar with the remaining time; what it says of a stage is overwritten by the next."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = _BelowFigures(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=2,  # the screen must not cost the engines time
        )
        self._task = self._bar.add_task("starting", total=None)
        self._calls = 0
        self._bar.start()

    def note(self, text: str) -> None:
        self._bar.console.print(f"[dim]{escape(text)}[/dim]", highlight=False)

    def start(self, calls: int) -> None:
        self._calls = calls
        self._bar.update(self._task, total=calls, completed=0)

    def stage(self, variant: str, what: str, clip: str = "") -> None:
        where = f" [dim]{escape(clip)}[/dim]" if clip else ""
        self._bar.update(self._task, description=f"{escape(variant)}: {escape(what)}{where}")

    def more(self, calls: int) -> None:
        self._calls += calls
        self._bar.update(self._task, total=self._calls)

    def advance(self, calls: int) -> None:
        self._bar.advance(self._task, calls)

    def figures(self, rounds: int, rows: Callable[[], Sequence[Row]]) -> None:
        if found := rows():
            self._bar.figures = Group(Text(title(rounds), style="dim"), _table(found, self._console), "")

    def close(self) -> None:
        self._bar.stop()
