"""The chart of speed against error: paired intervals, the band of equal error, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.columns import interval, percent
from asrgate.harness.report.html import labels
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure, plain_log_ticks
from asrgate.harness.report.html.labels import FAR, NAMED, NEAR, Box, Label
from asrgate.harness.report.html.svg import BAND, INK, MUTED, PAPER, Mark, to_svg
from asrgate.harness.report.rows import RANKED, Row
from asrgate.harness.scoring.across import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_SPAN_POINTS = 1.0  # of WER on the axis; rows that differ by less are alike to any reader
SHORT = 4  # letters: a number that is moved far would seem to be another point's
WIDE, NARROW = (5.4, 4.2), (3.7, 3.9)  # inches: beside the table, and on a phone

Point = tuple[int, Row]  # a row with its number in the page


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if no row has a WER."""
    drawn = [(n, row) for n, row, _ in measured if row["wer_percent"] is not None]
    if not drawn:
        return None
    wide, narrow = (_draw(run, drawn, name, size) for name, size in (("wide", WIDE), ("narrow", NARROW)))
    return Chart("quality-speed", "Speed against error", _caption(run, drawn), wide, narrow=narrow)


def _draw(run: Run, drawn: Sequence[Point], name: str, inches: tuple[float, float]) -> str:
    figure, axes = new_figure(inches[1], inches[0])
    reference = _reference(run, drawn)
    low, high, top = limits(drawn, reference)
    axes.set_xscale("log")
    plain_log_ticks(axes)
    axes.margins(x=0.12)
    axes.set_ylim(low, high)
    marks: dict[str, Mark] = {}
    for n, row in drawn:
        marks |= _point(axes, n, row, reference, top)
    if reference is not None and reference["wer_percent"] <= top:
        axes.axhline(reference["wer_percent"], color=MUTED, lw=0.8, ls=(0, (1, 2)), zorder=0.5)
    alike = indistinguishable(drawn, reference)
    if alike:
        values = [row["wer_percent"] for row in alike]
        pad = 0.025 * (high - low)
        label = "WER not told apart from the reference's"
        band = axes.axhspan(min(values) - pad, max(values) + pad, color=BAND, lw=0, zorder=0, label=label)
        band.set_gid("band")
        marks["band"] = Mark(None, f"{label}: {', '.join(row['variant'] for row in alike)}")
    front = _front(drawn)
    draw_front(axes, front, zorder=1)
    if any(row["group"] != RANKED for _, row in drawn):
        axes.plot([], [], marker="X", ls="", color=MUTED, mfc=PAPER, ms=6, label="not ranked")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=3 if name == "wide" else 1, handlelength=1.6)
    name_axes(axes, name)
    by_name = len(drawn) <= NAMED and name == "wide"
    add_labels(figure, axes, drawn, front, reference, top, lambda row: _text(row, by_name, row is reference))
    names = ", ".join(row["variant"] for _, row in front) or "none, as no row is ranked"
    description = f"WER against RTFx of {len(drawn)} variants. On the Pareto front: {names}."
    return to_svg(figure, f"quality-speed-{name}", description, marks)


def _point(axes: Axes, n: int, row: Row, reference: Row | None, top: float) -> dict[str, Mark]:
    """Draw one row with its paired interval, around the reference's WER; return what was drawn."""
    x, y = row["rtfx"], row["wer_percent"]
    is_ranked, is_beyond = row["group"] == RANKED, y > top
    own = colour(row.get("series", n)) if is_ranked else MUTED
    ends = paired_interval(row, reference)
    if ends and not is_beyond:
        (bar,) = axes.plot([x, x], ends, color=own, lw=1.6, alpha=0.6, solid_capstyle="butt")
        bar.set_gid(f"paired-{n}")
    marker = "^" if is_beyond else "D" if row is reference else "o" if is_ranked else "X"
    (point,) = axes.plot(
        x,
        min(y, top),
        marker=marker,
        ms=7 if marker == "D" else 8,
        mec=own,
        mfc=own if is_ranked else PAPER,
        zorder=3,
        clip_on=False,
    )
    point.set_gid(f"point-{n}")
    status = f"rank {row['rank']}" if is_ranked else "not ranked"
    told = f"{row['variant']} ({status}): WER {percent(y)} %, RTFx {written(x)}"
    if row is reference:
        told += "; the reference"
    elif ends:
        low, high = row["wer_difference_low_points"], row["wer_difference_high_points"]
        told += (
            f"; {row['wer_difference_points']:+.2f} points from the reference, 95 % of paired resamples "
            f"{interval(low, high, percent)}"
        )
    return {gid: Mark(n, told) for gid in (f"paired-{n}", f"point-{n}")}


def paired_interval(row: Row, reference: Row | None) -> tuple[float, float] | None:
    """Return the ends of a row's bar in WER %: the reference's WER plus the interval of their difference."""
    low, high = row["wer_difference_low_points"], row["wer_difference_high_points"]
    if reference is None or low is None or high is None:
        return None
    return reference["wer_percent"] + low, reference["wer_percent"] + high


def indistinguishable(drawn: Sequence[Point], reference: Row | None) -> list[Row]:
    """Return the ranked rows whose paired difference from the reference may be nothing, with the reference.

    Empty if the reference is not ranked or no other row is like it.
    """
    ranked = [row for _, row in drawn if row["group"] == RANKED]
    found = [row for row in ranked if row is reference or _may_be_equal(row)]
    return found if len(found) > 1 and any(row is reference for row in found) else []


def _may_be_equal(row: Row) -> bool:
    low, high = row["wer_difference_low_points"], row["wer_difference_high_points"]
    return low is not None and high is not None and bool(low <= 0 <= high)


def _reference(run: Run, drawn: Sequence[Point]) -> Row | None:
    return next((row for _, row in drawn if row["variant"] == run["settings"]["reference"]), None)


def limits(drawn: Sequence[Point], reference: Row | None) -> tuple[float, float, float]:
    """Return the ends of the axis of WER in percent, and the WER above which a row is drawn at the edge.

    Ranked rows with their bars get about half of the height, however wrong a row is that is not ranked.
    """
    every = [row["wer_percent"] for _, row in drawn]
    ranked = [row for _, row in drawn if row["group"] == RANKED]
    values = [row["wer_percent"] for row in ranked] or every
    values += [end for row in ranked for end in paired_interval(row, reference) or ()]
    low, high = min(values), max(values)
    lacking = max(0.0, LEAST_SPAN_POINTS - (high - low))
    low, high = low - lacking / 2, high + lacking / 2
    edge = high + max(high - low, 2 * LEAST_SPAN_POINTS) if ranked else math.inf
    low, high = min(low, *every), max(high, *(value for value in every if value <= edge))
    margin, top = 0.08 * (high - low), math.inf
    if max(every) > edge:
        high = top = high + 2 * margin
    return max(low - margin, -margin / 2), high + margin, top


def _caption(run: Run, drawn: Sequence[Point]) -> str:
    reference = _reference(run, drawn)
    told = []
    if any(paired_interval(row, reference) for _, row in drawn):
        level = 100 * run["scoring"]["bootstrap"]["level"]
        told.append(
            f"Bars: {level:g} % interval of the paired difference in WER from the reference (diamond), over "
            "the same resampled clips; the table has each row's own, wider interval."
        )
    if limits(drawn, reference)[2] < math.inf:
        told.append("A triangle's WER is off the chart.")
    if any(row["group"] != RANKED for _, row in drawn):
        told.append("The speed of a row that is not ranked does not come at equal quality.")
    return " ".join(told)


def _front(drawn: Sequence[Point]) -> list[Point]:
    ranked = [(n, row) for n, row in drawn if row["group"] == RANKED]
    return [ranked[i] for i in pareto_front([(-row["rtfx"], row["wer_percent"]) for _, row in ranked])]


def draw_front(axes: Axes, front: Sequence[Point], zorder: int) -> None:
    """Draw the line of a front of more than one point, and name it in the legend."""
    if len(front) > 1:
        speeds, errors = ([row[key] for _, row in front] for key in ("rtfx", "wer_percent"))
        axes.step(speeds, errors, where="post", color=INK, lw=0.9, ls=(0, (4, 3)), zorder=zorder)
        axes.plot([], [], color=INK, lw=0.9, ls=(0, (4, 3)), label="Pareto front")


def name_axes(axes: Axes, name: str) -> None:
    """Name the axes of a chart of speed against error; `name` is "wide" or "narrow"."""
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_xlabel("RTFx, seconds of audio per second (log scale): faster to the right")
    if name == "narrow":
        axes.set_xlabel("RTFx (log scale): faster to the right")
    axes.set_ylabel("WER %: lower is better")


def add_labels(
    figure: Figure,
    axes: Axes,
    drawn: Sequence[Point],
    front: Sequence[Point],
    reference: Row | None,
    top: float,
    text_of: Callable[[Row], str],
) -> None:
    """Write names or numbers next to their points, moved where they would overlap; none where that is "".

    First come, first placed: the reference, the front, then by rank.
    """
    points = list(dict([*(each for each in drawn if each[1] is reference), *front, *drawn]).items())
    figure.draw_without_rendering()  # fixes the layout, on which the distances below depend
    scale = 72 / figure.dpi
    whole = labels.paper(axes, scale)
    taken = [box for _, row in points for box in _occupied(axes, row, reference, top, scale)]
    if reference is not None:
        line = _place(axes, reference, top, scale)[1]
        taken.append(Box(whole.left, whole.right, line - 0.5, line + 0.5))
    taken += _steps([_place(axes, row, top, scale) for _, row in front])
    texts = []
    for _, row in points:
        text = text_of(row)
        if row["wer_percent"] > top:
            text += f" {row['wer_percent']:.0f} %"
        reach = FAR if len(text) > SHORT else NEAR
        ink = INK if row["group"] == RANKED else MUTED
        texts.append(Label(text, row["rtfx"], min(row["wer_percent"], top), reach, ink))
    labels.write(axes, texts, taken, whole, scale)


def _text(row: Row, by_name: bool, is_reference: bool) -> str:
    if by_name:
        return visible(row["variant"]) + (" (reference)" if is_reference else "")
    number = "" if row["rank"] is None else str(row["rank"])
    return f"{number} reference" if is_reference else number


def _occupied(axes: Axes, row: Row, reference: Row | None, top: float, scale: float) -> Iterator[Box]:
    """Yield what a point and its bar cover."""
    x, y = _place(axes, row, top, scale)
    yield Box(x - 5, x + 5, y - 5, y + 5)
    ends = paired_interval(row, reference)
    if ends and row["wer_percent"] <= top:
        low, high = (axes.transData.transform((row["rtfx"], end))[1] * scale for end in ends)
        yield Box(x - 1.5, x + 1.5, low, high)


def _steps(places: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """Yield what the line between points covers: from each along, then up or down to the next."""
    for (x, y), (next_x, next_y) in pairwise(places):
        yield Box(min(x, next_x), max(x, next_x), y - 0.5, y + 0.5)
        yield Box(next_x - 0.5, next_x + 0.5, min(y, next_y), max(y, next_y))


def _place(axes: Axes, row: Row, top: float, scale: float) -> tuple[float, float]:
    x, y = axes.transData.transform((row["rtfx"], min(row["wer_percent"], top))) * scale
    return float(x), float(y)
