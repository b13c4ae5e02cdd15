"""The first picture of a run of several models: speed against error, models by colour, engines by shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.columns import interval, mebibytes, percent
from asrgate.harness.report.html import frontier
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure, plain_log_ticks
from asrgate.harness.report.html.frontier import NARROW, WIDE, Point
from asrgate.harness.report.html.svg import MUTED, PAPER, Mark, to_svg
from asrgate.harness.report.rows import RANKED, Row, without_model

SHAPES = ("o", "s", "D", "^", "v", "P", "p", "h", "<", ">")  # of engines; more of them share the last


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if no row has a WER."""
    drawn = [(n, row) for n, row, _ in measured if row["wer_percent"] is not None]
    if not drawn:
        return None
    wide, narrow = (_draw(run, drawn, name, size) for name, size in (("wide", WIDE), ("narrow", NARROW)))
    caption = (
        "Bars: 95 % interval of the WER. On the Pareto front are the ranked rows that no other beats in both."
    )
    if any(row.get("beaten_by") for _, row in drawn):
        caption += " Pale: beaten in both beyond the intervals."
    if any(row["group"] != RANKED for _, row in drawn):
        caption += " Hollow: not ranked."
    if frontier.limits(drawn, None)[2] < math.inf:
        caption += " A mark with its WER beside it is off the chart."
    return Chart("quality-speed", "Speed against error", caption, wide, narrow=narrow)


def _draw(run: Run, drawn: Sequence[Point], name: str, inches: tuple[float, float]) -> str:
    models = list(dict.fromkeys(row["model"] for _, row in drawn))
    engines = list(dict.fromkeys(row["backend"] for _, row in drawn))
    lines = -(-(len(models) + len(engines) + 1) // (3 if name == "wide" else 2))
    figure, axes = new_figure(inches[1] + 0.17 * lines, inches[0])
    low, high, top = frontier.limits(drawn, None)
    axes.set_xscale("log")
    plain_log_ticks(axes)
    axes.margins(x=0.12)
    axes.set_ylim(low, high)
    marks: dict[str, Mark] = {}
    for n, row in drawn:
        shape = SHAPES[min(engines.index(row["backend"]), len(SHAPES) - 1)]
        own, is_ranked = colour(row["series"]), row["group"] == RANKED
        pale = 0.35 if row.get("beaten_by") else 1.0
        ends = row["wer_low_percent"], row["wer_high_percent"]
        if None not in ends and is_ranked:
            inside = [min(max(end, low), high) for end in ends]
            axes.plot([row["rtfx"]] * 2, inside, color=own, lw=1.1, alpha=0.4 * pale, zorder=1)
        (point,) = axes.plot(
            row["rtfx"],
            min(row["wer_percent"], top),
            marker=shape,
            ms=8,
            mec=own,
            mfc=own if is_ranked else PAPER,
            alpha=pale,
            zorder=3,
            clip_on=False,
        )
        point.set_gid(f"point-{n}")
        marks[f"point-{n}"] = Mark(n, _told(row))
    for model in models:
        own = colour(next(row["series"] for _, row in drawn if row["model"] == model))
        axes.plot([], [], color=own, lw=5, label=visible(model))
    for place, engine in enumerate(engines):
        shape = SHAPES[min(place, len(SHAPES) - 1)]
        axes.plot([], [], ls="", marker=shape, color=MUTED, ms=6, label=visible(engine))
    fronts = [place["variant"] for place in run["across"]["front"]] if "across" in run else []
    by_name = {row["variant"]: (n, row) for n, row in drawn}
    front = [by_name[variant] for variant in fronts if variant in by_name]
    frontier.draw_front(axes, front, zorder=2)
    figure.legend(loc="outside upper left", ncols=3 if name == "wide" else 2, handlelength=1.2)
    frontier.name_axes(axes, name)
    if name == "wide":
        frontier.add_labels(figure, axes, drawn, front, None, top, lambda row: _label(row, fronts))
    names = ", ".join(row["variant"] for _, row in front) or "none, as no row is ranked"
    description = (
        f"WER against RTFx of {len(drawn)} variants of {len(models)} models. On the Pareto front: {names}."
    )
    return to_svg(figure, f"quality-speed-{name}", description, marks)


def _label(row: Row, fronts: Sequence[str]) -> str:
    return visible(without_model(row)) if row["variant"] in fronts else ""


def _told(row: Row) -> str:
    status = f"rank {row['rank']} of {row['model']}" if row["group"] == RANKED else "not ranked"
    ends = interval(row["wer_low_percent"], row["wer_high_percent"], percent)
    wer = f"WER {percent(row['wer_percent'])} % ({ends})"
    told = f"{row['variant']} ({status}): {wer}, RTFx {written(row['rtfx'])}"
    if row["peak_rss_bytes"] is not None:
        told += f", {mebibytes(row['peak_rss_bytes'])} MiB"
    return told + (f"; beaten in both by {row['beaten_by']}" if row.get("beaten_by") else "")
