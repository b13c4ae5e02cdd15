"""The chart of quality against speed, with its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure, plain_log_ticks
from asrgate.harness.report.html.svg import INK, MUTED, PAPER, Mark, to_svg
from asrgate.harness.report.rows import RANKED, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOVE = 11.0  # points: preferred place of a name; beside its point, the interval would cross it
LABELLED = 10  # with more points than this, not all can have their names next to them


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if no row has a WER."""
    drawn = [(n, row) for n, row, _ in measured if row["wer_percent"] is not None]
    if not drawn:
        return None
    figure, axes = new_figure(4.0)
    marks: dict[str, Mark] = {}
    top = _top(drawn)
    for n, row in drawn:
        x, y = row["rtfx"], row["wer_percent"]
        is_ranked, is_beyond = row["group"] == RANKED, y > top
        own = colour(n) if is_ranked else MUTED
        for end, along, across in (
            (("rtfx_low", "rtfx_high"), "x", y),
            (("wer_low_percent", "wer_high_percent"), "y", x),
        ):
            low, high = row[end[0]], row[end[1]]
            if low is not None and high is not None and not is_beyond:
                ends, level = [low, high], [across, across]
                axes.plot(*((ends, level) if along == "x" else (level, ends)), color=own, lw=1, alpha=0.55)
        (point,) = axes.plot(
            x,
            min(y, top),
            marker="^" if is_beyond else "o" if is_ranked else "X",
            ms=8,
            mec=own,
            mfc=own if is_ranked else PAPER,
            zorder=3,
            clip_on=False,
        )
        point.set_gid(f"point-{n}")
        status = f"rank {row['rank']}" if is_ranked else "not ranked"
        marks[f"point-{n}"] = Mark(n, f"{row['variant']} ({status}): WER {y:.2f} %, RTFx {written(x)}")
    ranked = [(n, row) for n, row in drawn if row["group"] == RANKED]
    front = [ranked[i] for i in pareto_front([(row["rtfx"], row["wer_percent"]) for _, row in ranked])]
    if len(front) > 1:
        axes.step(
            [row["rtfx"] for _, row in front],
            [row["wer_percent"] for _, row in front],
            where="post",
            color=INK,
            lw=1,
            ls=(0, (4, 3)),
            zorder=1,
        )
    axes.set_xscale("log")
    plain_log_ticks(axes)
    axes.margins(0.12, 0.12)
    low, high = axes.get_ylim()
    high = min(max(high, 0.5), top)
    axes.set_ylim(max(low, -0.06 * high), high)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_xlabel("RTFx, seconds of audio per second (log scale): faster to the right")
    axes.set_ylabel("WER %: lower is better")
    named = drawn if len(drawn) <= LABELLED else _unique([*front, *_reference(run, drawn)])
    _label(figure, axes, named, drawn, top)
    names = ", ".join(row["variant"] for _, row in front) or "none, as no row is ranked"
    description = f"WER against RTFx of {len(drawn)} variants. On the Pareto front: {names}."
    return Chart(
        "quality-speed",
        "Quality against speed",
        "Bars are the bootstrap intervals. Dashed: the Pareto front of the ranked rows; for each other row, "
        "some row on the front is at least as good in both. A cross is not ranked, because its speed does "
        "not come at equal quality." + (" A triangle's WER is off the chart." if top < math.inf else ""),
        to_svg(figure, "quality-speed", description, marks),
    )


def _reference(run: Run, drawn: Sequence[tuple[int, Row]]) -> list[tuple[int, Row]]:
    return [(n, row) for n, row in drawn if row["variant"] == run["settings"]["reference"]]


def _unique(items: Sequence[tuple[int, Row]]) -> list[tuple[int, Row]]:
    return list(dict(items).items())


def _top(drawn: Sequence[tuple[int, Row]]) -> float:
    """Return the WER in percent above which unranked rows would compress the ranked ones into a line."""
    ranked = [row["wer_high_percent"] or row["wer_percent"] for _, row in drawn if row["group"] == RANKED]
    limit = max(5.0, 3 * max(ranked)) if ranked else math.inf
    return limit if any(row["wer_percent"] > limit for _, row in drawn) else math.inf


def _label(
    figure: Figure, axes: Axes, named: Sequence[tuple[int, Row]], drawn: Sequence[tuple[int, Row]], top: float
) -> None:
    """Write names next to their points; move them if they overlap, and leave them out if there is no room."""
    figure.draw_without_rendering()  # fixes the layout, on which the distances below depend
    line_points, pixels_a_point = 11.0, figure.dpi / 72
    taken: list[tuple[float, float, float]] = []  # left, right, y in points
    for _, row in drawn:
        ends = (row["rtfx_low"] or row["rtfx"], row["rtfx"], row["rtfx_high"] or row["rtfx"])
        low, x, high = (axes.transData.transform((end, 0))[0] / pixels_a_point for end in ends)
        y = axes.transData.transform((1, min(row["wer_percent"], top)))[1] / pixels_a_point
        taken.append((min(low, x - 6), max(high, x + 6), y))
    for _, row in named:
        place = (row["rtfx"], min(row["wer_percent"], top))
        beyond = f" {row['wer_percent']:.0f} %" if row["wer_percent"] > top else ""
        text = visible(row["variant"]) + beyond
        x, y = axes.transData.transform(place) / pixels_a_point
        width = 5.2 * len(text)
        is_left = x + 9 + width > axes.bbox.x1 / pixels_a_point + 4
        start = x - 9 - width if is_left else x + 9
        shifts = sorted((n * line_points / 2 for n in range(-6, 7)), key=lambda shift: abs(shift - ABOVE))
        free = [
            shift
            for shift in shifts
            if not any(
                abs(y + shift - other) < line_points and start < right and left < start + width
                for left, right, other in taken
            )
            and axes.bbox.y0 / pixels_a_point <= y + shift <= axes.bbox.y1 / pixels_a_point + line_points
        ]
        if not free:
            continue
        taken.append((start, start + width, y + free[0]))
        axes.annotate(
            text,
            place,
            xytext=(-9 if is_left else 9, free[0]),
            textcoords="offset points",
            ha="right" if is_left else "left",
            va="center",
            fontsize=8.5,
            color=INK if row["group"] == RANKED else MUTED,
        )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of points (RTFx, WER) that no other point beats in one without losing in the other.

    Fastest first; equal points are all kept.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1]))
    front: list[int] = []
    for i in order:
        best = points[front[-1]] if front else None
        if best is None or points[i][1] < best[1] or points[i] == best:
            front.append(i)
    return front
