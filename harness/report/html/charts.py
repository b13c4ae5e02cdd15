"""The charts of a run: speed against error, latency, stages, speed by clip length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from asrgate.harness.corpus import augment
from asrgate.harness.corpus.fields import LENGTH
from asrgate.harness.escape import visible
from asrgate.harness.metrics import bootstrap
from asrgate.harness.metrics.word_errors import timed
from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.html import frontier, models, noise, serving, speed, streams
from asrgate.harness.report.html.drawing import (
    SLICE_INCHES,
    Chart,
    Measured,
    add_legend,
    colour,
    new_figure,
    plain_log_ticks,
)
from asrgate.harness.report.html.svg import INK, PALETTE, RULE, STYLE, Mark, to_svg
from asrgate.harness.report.rows import RANKED, Row
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import RTFX
from asrgate.harness.scoring.slices import Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR_INCHES = 0.27
STAGES = ("log_mel", "encode", "decode")
STAGE_COLOURS = (PALETTE[2], PALETTE[0], PALETTE[1])


def draw(run: Run, rows: Sequence[Row], sliced: Mapping[str, Sequence[Slice]]) -> dict[str, Chart]:
    """Return the charts for which the run has figures, by name.

    Args:
        rows: as asrgate.harness.report.rows makes them; a variant's index there is its number in the page.
        sliced: field -> its slices.
    """
    import matplotlib

    results = {result["variant"]: result for result in run["results"]}
    measured = [
        (n, row, results[row["variant"]])
        for n, row in enumerate(rows)
        if row["rtfx"] is not None or row["latency_median_seconds"] is not None
    ]
    if not measured:
        return {}
    with matplotlib.rc_context(STYLE):
        first = models.chart if "models" in run else frontier.chart
        found = [first(run, measured)] if registry.of(run).order == RTFX else []
        timed = [entry for entry in measured if entry[1]["latency_median_seconds"] is not None]
        if timed:
            found.append(_latency(run, timed))
        if registry.of(run).times_clips:
            found.append(_stages(measured))
            if LENGTH in sliced:
                found.append(_by_length(measured, sliced[LENGTH]))
        if augment.FIELD in sliced:
            found.append(noise.chart(run, measured, sliced[augment.FIELD]))
        found += [speed.chart(run, measured), serving.chart(run, measured), streams.chart(run, measured)]
    return {chart.name: chart for chart in found if chart is not None}


def _latency(run: Run, measured: Measured) -> Chart:
    figure, axes = _bars(measured)
    marks: dict[str, Mark] = {}
    for place, (n, row, result) in enumerate(measured):
        walls = registry.of(run).latencies(result)
        low, first, median, third, high = bootstrap.percentiles(walls, [0, 25, 50, 75, 99])
        own = colour(row.get("series", n))
        shade = 1.0 if row["group"] == RANKED else 0.45
        axes.plot([low, high], [place, place], color=own, lw=1.2, alpha=shade)
        (box,) = axes.barh(place, third - first, left=first, height=0.55, color=own, alpha=shade)
        axes.plot([median, median], [place - 0.36, place + 0.36], color=INK, lw=1.6)
        box.set_gid(f"box-{n}")
        marks[f"box-{n}"] = Mark(
            n,
            f"{row['variant']}: median {written(median)} s, half of {len(walls)} calls between "
            f"{written(first)} and {written(third)} s, p99 {written(high)} s",
        )
    axes.set_xscale("log")
    plain_log_ticks(axes)
    seconds, every = registry.of(run).latency or ("seconds", "all of them")
    axes.set_xlabel(f"{seconds} (log scale)")
    return Chart(
        "latency",
        "Latency",
        f"Box: the middle half of {every}; stroke: the median; line: from the fastest to the 99th "
        "percentile. Paler: not ranked. Clips of all lengths are together, which explains most of the width.",
        to_svg(
            figure,
            "latency",
            f"{seconds.capitalize()} of {len(measured)} variants, as in the table of times.",
            marks,
        ),
    )


def _stages(measured: Measured) -> Chart | None:
    if not any(sample["stage_seconds"] for _, _, result in measured for sample in result["samples"]):
        return None
    figure, axes = _bars(measured)
    marks: dict[str, Mark] = {}
    for place, (n, row, result) in enumerate(measured):
        answered = timed(result)
        a_second = 1000 / row["audio_seconds"]
        widths = {
            stage: a_second * sum(s["stage_seconds"].get(stage, 0.0) for s in answered) for stage in STAGES
        }
        told = sum(widths.values())
        widths["other" if told else "not told"] = max(
            0.0, a_second * sum(s["wall_seconds"] for s in answered) - told
        )
        left = 0.0
        for nth, ((stage, width), own) in enumerate(zip(widths.items(), (*STAGE_COLOURS, RULE), strict=True)):
            if width > 0:
                (bar,) = axes.barh(place, width, left=left, height=0.62, color=own)
                bar.set_gid(f"stage-{n}-{nth}")
                text = f"{row['variant']}, {stage.replace('_', '-')}: {written(width)} ms per second of audio"
                marks[f"stage-{n}-{nth}"] = Mark(n, text)
                left += width
    for stage, own in zip((*STAGES, "other, or not reported"), (*STAGE_COLOURS, RULE), strict=True):
        axes.bar(0, 0, color=own, label=stage.replace("_", "-"))
    figure.legend(loc="outside upper left", ncols=4, handlelength=1, handleheight=1)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds per second of audio")
    return Chart(
        "stages",
        "Where the time goes",
        "All calls together, as the engines report their stages. Time that they do not report is grey.",
        to_svg(
            figure, "stages", f"Time by stage of {len(measured)} variants, as in the table of times.", marks
        ),
    )


def _by_length(measured: Measured, sliced: Sequence[Slice]) -> Chart:
    names = list(dict.fromkeys(each["value"] for each in sliced))
    known = {(each["variant"], each["value"]): each["rtfx"] for each in sliced}
    figure, axes = new_figure(3.6, SLICE_INCHES)
    marks: dict[str, Mark] = {}
    for n, row, _ in reversed(measured):
        values = [known[row["variant"], name] for name in names]
        is_ranked = row["group"] == RANKED
        (line,) = axes.plot(
            range(len(names)),
            [math.nan if value is None else value for value in values],
            color=colour(row.get("series", n)),
            marker="o" if is_ranked else "X",
            ls="-" if is_ranked else ":",
            lw=1.6 if n < len(PALETTE) else 0.8,
            ms=5,
            label=visible(row["variant"]),
        )
        line.set_gid(f"line-{n}")
        told = ", ".join(
            f"{name}: {written(v)}" for name, v in zip(names, values, strict=True) if v is not None
        )
        marks[f"line-{n}"] = Mark(n, f"{row['variant']}, RTFx by clip length: {told}")
    axes.set_xticks(range(len(names)), names)
    axes.margins(x=0.08)
    axes.set_yscale("log")
    plain_log_ticks(axes, vertical=True)
    axes.grid(True, axis="y")
    axes.set_xlabel("clip length")
    axes.set_ylabel("RTFx (log scale)")
    add_legend(figure, axes)
    return Chart(
        "by-length",
        "Speed by clip length",
        "Dotted: not ranked."
        + (f" The first {len(PALETTE)} rows are coloured." if len(measured) > len(PALETTE) else ""),
        to_svg(figure, "by-length", "RTFx by clip length; the table beside has the figures.", marks),
    )


def _bars(measured: Measured) -> tuple[Figure, Axes]:
    """Return axes with one horizontal slot per variant, the first on top."""
    figure, axes = new_figure(1.1 + BAR_INCHES * max(len(measured), 2))
    axes.set_yticks(range(len(measured)), [visible(row["variant"]) for _, row, _ in measured])
    axes.set_ylim(len(measured) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    return figure, axes
