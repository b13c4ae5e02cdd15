"""A column of the tables that reports show, and how figures are written in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column; `cell` returns "" if the row has no such figure."""

    heading: str
    meaning: str
    cell: Callable[[Row], str]
    is_number: bool = True
    importance: int = 0  # on a narrow terminal the least important are dropped first; 0 is never dropped


def fitting(
    columns: Sequence[Column], console: Console, table_of: Callable[[Sequence[Column]], Table]
) -> list[Column]:
    """Return the columns whose table fits the console's width, in order: the least important are dropped."""
    shown = list(columns)
    unlimited = console.options.update(max_width=10_000)
    while Measurement.get(console, unlimited, table_of(shown)).maximum > console.width:
        droppable = [column for column in shown if column.importance]
        if not droppable:
            break
        shown.remove(min(droppable, key=lambda column: column.importance))
    return shown


def figure(value: float | None) -> str:
    """Write a figure with three significant digits, or more if they come before the decimal point."""
    if value is None:
        return ""
    if value != 0 and abs(value) < 0.1:
        return f"{value:#.2g}"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{decimals}f}"


def interval(low: float | None, high: float | None, write: Callable[[float], str] = figure) -> str:
    """Write an interval as `low to high`."""
    return "" if low is None or high is None else f"{write(low)} to {write(high)}"


def percent(value: float | None) -> str:
    """Write percent with two decimals."""
    return "" if value is None else f"{value:.2f}"


def whole_percent(fraction: float | None) -> str:
    """Write a fraction as whole percent."""
    return "" if fraction is None else f"{100 * fraction:.0f}"


def mebibytes(value: int | None) -> str:
    """Write bytes as whole MiB."""
    return "" if value is None else f"{value / 2**20:.0f}"


def count(value: int | None) -> str:
    """Write a whole number."""
    return "" if value is None else str(value)


def of(name: str, write: Callable[[Any], str] = figure) -> Callable[[Row], str]:
    """Return what writes the row's figure of that name."""
    return lambda row: write(row[name])
