"""Slices as matrices: variants down, values across, shaded by the distance from the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from asrgate.harness.column import figure, interval, percent
from asrgate.harness.report.rows import Row
from asrgate.harness.scoring.slices import Slice

STEPS_POINTS = (0.5, 2.0, 5.0)  # of WER or CER from the reference's, at which the shade deepens
STEPS_RATIO = (1.1, 1.5, 3.0)  # of speed or latency to the reference's


@dataclass(frozen=True)
class Cell:
    """One figure as text, the class of its shade ("" for none), and what to add when it is pointed at."""

    text: str
    shade: str
    told: str


@dataclass(frozen=True)
class Matrix:
    """One figure of a field's slices; `lines` has, by variant number, a cell for each of its values."""

    name: str
    meaning: str
    lines: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class _Figure:
    name: str
    meaning: str
    key: str
    ends: tuple[str, str] | None
    write: Callable[[float | None], str]
    is_ratio: bool
    is_higher_better: bool = False


FIGURES = (
    _Figure(
        "WER %",
        "word errors per 100 reference words",
        "wer_percent",
        ("wer_low_percent", "wer_high_percent"),
        percent,
        is_ratio=False,
    ),
    _Figure(
        "CER %", "character errors per 100 reference characters", "cer_percent", None, percent, is_ratio=False
    ),
    _Figure(
        "RTFx",
        "audio seconds per processing second",
        "rtfx",
        ("rtfx_low", "rtfx_high"),
        figure,
        is_ratio=True,
        is_higher_better=True,
    ),
    _Figure("median s", "median seconds per clip", "latency_median_seconds", None, figure, is_ratio=True),
)


def build(sliced: Sequence[Slice], measured: Sequence[Row], references: Mapping[str, str]) -> list[Matrix]:
    """Return a matrix for each figure that the slices of one field have.

    Args:
        sliced: as asrgate.harness.scoring.slices makes them.
        measured: the rows, in the order of the page.
        references: variant -> the one from which its distances are counted.
    """
    values = list(dict.fromkeys(each["value"] for each in sliced))
    known = {(each["variant"], each["value"]): each for each in sliced}
    found = []
    for wanted in FIGURES:
        lines = [
            [
                _cell(
                    wanted,
                    known[row["variant"], value],
                    known.get((references[row["variant"]], value)),
                    references[row["variant"]],
                )
                for value in values
            ]
            for row in measured
        ]
        if any(cell.text for line in lines for cell in line):
            found.append(Matrix(wanted.name, wanted.meaning, lines))
    return found


def _cell(wanted: _Figure, ours: Slice, theirs: Slice | None, reference: str) -> Cell:
    value = ours[wanted.key]
    if value is None:
        return Cell("", "", "")
    told = []
    if wanted.ends and ours[wanted.ends[0]] is not None:
        low, high = (ours[end] for end in wanted.ends)
        told.append(f"95 % interval {interval(low, high, wanted.write)}")
    base = None if theirs is None else theirs[wanted.key]
    shade = ""
    if base is not None and ours["variant"] != reference:
        shade = shade_of(value, base, wanted.is_ratio, wanted.is_higher_better)
        if not wanted.is_ratio:
            told.append(f"{value - base:+.2f} points from the reference")
        elif base > 0:
            told.append(f"{figure(value / base)} times the reference's")
    return Cell(wanted.write(value), shade, "; ".join(told))


def shade_of(value: float, base: float, is_ratio: bool, is_higher_better: bool) -> str:
    """Return `better-N` or `worse-N`, N from 1 to 3 by distance from the reference; "" if it is as good."""
    if is_ratio:
        if value <= 0 or base <= 0:
            return ""
        distance, steps = math.log(value / base), [math.log(step) for step in STEPS_RATIO]
    else:
        distance, steps = value - base, list(STEPS_POINTS)
    depth = sum(abs(distance) >= step for step in steps)
    if depth == 0:
        return ""
    return f"{'better' if (distance > 0) == is_higher_better else 'worse'}-{depth}"
