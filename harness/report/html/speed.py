"""The chart of speed-ups: one bar for each ranked row, with the interval of how many times as fast it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.columns import interval
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure
from asrgate.harness.report.html.svg import INK, MUTED, Mark, to_svg
from asrgate.harness.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NARROW_INCHES = 3.7  # on a phone
ROOM = 1.38  # for the figures behind the longest bar


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if no row but the reference has a speed-up."""
    drawn = [(n, row) for n, row, _ in measured if row["speedup"] is not None]
    if len(drawn) < 2:
        return None
    return Chart(
        "speed-up",
        "How many times as fast as the reference",
        "Stroke: the interval of the speed-up, 95 %, over rounds; with fewer than three rounds over clips. "
        "Rows that are not ranked did other work, and have no bar.",
        _draw(drawn, "wide"),
        narrow=_draw(drawn, "narrow"),
    )


def _draw(drawn: list[tuple[int, Row]], name: str) -> str:
    is_narrow = name == "narrow"
    if is_narrow:
        figure, axes = new_figure(0.8 + 0.42 * len(drawn), NARROW_INCHES)
    else:
        figure, axes = new_figure(0.8 + 0.27 * len(drawn))
    marks: dict[str, Mark] = {}
    for place, (n, row) in enumerate(drawn):
        marks |= _bar(axes, place, n, row)
        if is_narrow:
            axes.annotate(
                visible(row["variant"]),
                (0, place - 0.3),
                xytext=(1, 1),
                textcoords="offset points",
                fontsize=8.5,
            )
    axes.axvline(1, color=MUTED, lw=0.8, ls=(0, (1, 2)), zorder=3)
    axes.set_yticks([] if is_narrow else range(len(drawn)))
    if not is_narrow:
        axes.set_yticklabels([visible(row["variant"]) for _, row in drawn])
    axes.set_ylim(len(drawn) - 0.4, -0.75 if is_narrow else -0.6)
    axes.set_xlim(0, ROOM * max(max(row["speedup"], row["speedup_high"] or 0) for _, row in drawn))
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "RTFx over the reference's" if is_narrow else "RTFx over the reference's: faster to the right"
    )
    told = f"Speed-up over the reference of {len(drawn)} ranked variants, as in the ranking."
    return to_svg(figure, f"speed-up-{name}", told, marks)


def _bar(axes: Axes, place: int, n: int, row: Row) -> dict[str, Mark]:
    low, high = row["speedup_low"], row["speedup_high"]
    height, middle = 0.46, place + 0.08
    (bar,) = axes.barh(middle, row["speedup"], height=height, color=colour(row.get("series", n)), alpha=0.75)
    bar.set_gid(f"speed-{n}")
    told = f"{row['variant']}: {written(row['speedup'])} times the reference's RTFx"
    text = f"{written(row['speedup'])}×"
    if low is not None and low < high:
        axes.plot([low, high], [middle, middle], color=INK, lw=1.4, solid_capstyle="butt")
        for end in (low, high):
            axes.plot([end, end], [middle - 0.13, middle + 0.13], color=INK, lw=1.2)
        told += f", 95 % interval {interval(low, high)}"
        text += f" ({interval(low, high)})"
    axes.annotate(
        text,
        (max(row["speedup"], high or 0), middle),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
    )
    return {f"speed-{n}": Mark(n, told)}
