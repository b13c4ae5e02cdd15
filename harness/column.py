"""A column of the tables that reports show, and how figures are written in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column; `cell` returns "" if the row has no such figure."""

    heading: str
    meaning: str
    cell: Callable[[Row], str]
    is_number: bool = True
    importance: int = 0  # on a narrow terminal the least important are dropped first; 0 is never dropped


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
