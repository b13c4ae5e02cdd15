"""The chart of a figure over stored runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from asrgate.harness.escape import visible
from asrgate.harness.report.html.drawing import Chart, colour, new_figure
from asrgate.harness.report.html.svg import MUTED, OTHER, PALETTE, PAPER, STYLE, Mark, to_svg

if TYPE_CHECKING:
    from asrgate.harness.report.history import Series

TICKS = 6  # run ids do not fit next to each other


def chart(series: Sequence[Series], numbers: Mapping[str, int]) -> Chart:
    """Return the chart of one or more series whose runs have the same conditions and metric.

    Args:
        numbers: the page's number for each variant that is also in its tables.
    """
    import matplotlib

    from asrgate.harness.report.history import METRICS

    metric = METRICS[series[0].metric]
    started = {point.run_id: point.started_at for one in series for point in one.points}
    run_ids = sorted(started, key=lambda run_id: (started[run_id], run_id))
    place = {run_id: number for number, run_id in enumerate(run_ids)}
    marks: dict[str, Mark] = {}
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(3.4)
        for number, one in enumerate(series):
            own = OTHER if one.variant not in numbers else colour(numbers[one.variant])
            axes.plot(
                [place[p.run_id] for p in one.points],
                [p.value for p in one.points],
                color=own,
                lw=1.4,
                label=visible(one.variant),
            )
            for nth, point in enumerate(one.points):
                is_ranked = point.reason is None
                (dot,) = axes.plot(
                    place[point.run_id],
                    point.value,
                    marker="o" if is_ranked else "X",
                    ms=6,
                    mec=own if is_ranked else MUTED,
                    mfc=own if is_ranked else PAPER,
                )
                gid = f"trend-{number}-{nth}"
                dot.set_gid(gid)
                verdict = "ranked" if is_ranked else f"not ranked: {point.reason}"
                told = f"{one.variant}, run {point.run_id}: {metric.write(point.value)} ({verdict})"
                marks[gid] = Mark(numbers.get(one.variant), told)
        step = max(1, -(-len(run_ids) // TICKS))
        shown = run_ids[::step]
        axes.set_xticks([place[r] for r in shown], [started[r][:16].replace("T", "\n") for r in shown])
        axes.set_ylim(bottom=0)
        axes.margins(x=0.06)
        axes.grid(True, axis="y")
        axes.set_ylabel(series[0].metric)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[: len(PALETTE)], labels[: len(PALETTE)], loc="outside upper left", ncols=2)
        description = f"{metric.meaning}, over {len(run_ids)} runs of {len(series)} variants."
        svg = to_svg(figure, "trend", description, marks)
    table = [
        [
            one.variant,
            *(
                next((_cell(metric.write(p.value), p.reason) for p in one.points if p.run_id == run_id), "")
                for run_id in run_ids
            ),
        ]
        for one in series
    ]
    return Chart(
        "trend",
        f"Over stored runs: {series[0].metric}",
        f"{metric.meaning[0].upper()}{metric.meaning[1:]}. Only runs of this checkpoint, audio, decoding, "
        "gate, host and normaliser are included; a cross is not ranked.",
        svg,
        (["variant", *run_ids], table),
    )


def _cell(value: str, reason: str | None) -> str:
    return value if reason is None else f"{value} (not ranked)"
