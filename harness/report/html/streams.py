"""The picture of a run of streams: how late the final text is, and how much was shown and taken back."""

from __future__ import annotations

from collections.abc import Sequence

from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.html import labels
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure, plain_log_ticks
from asrgate.harness.report.html.frontier import NARROW, WIDE
from asrgate.harness.report.html.labels import Box
from asrgate.harness.report.html.svg import MUTED, PAPER, Mark, to_svg
from asrgate.harness.report.rows import RANKED, Row

UNSTABLE = "unstable_partial_word_ratio"


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if no row has a final latency and a ratio of words taken back."""
    drawn = [
        (n, row)
        for n, row, _ in measured
        if row["latency_median_seconds"] is not None and row[UNSTABLE] is not None
    ]
    if not drawn:
        return None
    wide, narrow = (_draw(drawn, name, size) for name, size in (("wide", WIDE), ("narrow", NARROW)))
    caption = "Point: the median over all streams; line: to the 90th percentile. "
    shapes = {row["is_emulated"] for _, row in drawn}
    if len(shapes) > 1:
        caption += "Square: native streams; circle: emulated ones, which transcribe all audio so far again. "
    if any(row["group"] != RANKED for _, row in drawn):
        caption += "Hollow: not ranked."
    return Chart("latency-steadiness", "Latency against steadiness", caption.strip(), wide, narrow=narrow)


def _draw(drawn: Sequence[tuple[int, Row]], name: str, inches: tuple[float, float]) -> str:
    figure, axes = new_figure(inches[1], inches[0])
    axes.set_xscale("log")
    marks: dict[str, Mark] = {}
    for n, row in reversed(drawn):
        x, y, is_ranked = row["latency_median_seconds"], row[UNSTABLE], row["group"] == RANKED
        own = colour(row.get("series", n)) if is_ranked else MUTED
        axes.plot(
            [x, row["latency_p90_seconds"]], [y, y], color=own, lw=1.6, alpha=0.5, solid_capstyle="butt"
        )
        (point,) = axes.plot(
            x,
            y,
            marker="o" if row["is_emulated"] else "s",
            ms=8,
            mec=own,
            mfc=own if is_ranked else PAPER,
            zorder=3,
            clip_on=False,
        )
        point.set_gid(f"stream-{n}")
        told = (
            f"{row['variant']}: final text {written(x)} s after the end of the audio (p90 "
            f"{written(row['latency_p90_seconds'])} s), {written(y)} words taken back per word"
        )
        marks[f"stream-{n}"] = Mark(n, told)
    plain_log_ticks(axes)
    axes.margins(x=0.12)
    axes.set_ylim(0, 1.12 * max(*(row[UNSTABLE] for _, row in drawn), 0.1))
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds to the final text (log scale)")
    if name == "wide":
        axes.set_xlabel("final text, seconds after the end of the audio (log scale)")
    axes.set_ylabel("words taken back per word: lower is steadier")
    figure.draw_without_rendering()  # fixes the layout, on which the distances depend
    scale = 72 / figure.dpi
    whole = labels.paper(axes, scale)
    texts, taken = [], []
    by_name = len(drawn) <= labels.NAMED and name == "wide"
    for n, row in drawn:
        ends = (row["latency_median_seconds"], row["latency_p90_seconds"])
        (x, y), (far, _) = (axes.transData.transform((end, row[UNSTABLE])) * scale for end in ends)
        taken += [Box(x - 5, x + 5, y - 5, y + 5), Box(x, far, y - 1.5, y + 1.5)]
        texts.append(labels.beside(row, n, by_name, ends[0], row[UNSTABLE]))
    labels.write(axes, texts, taken, whole, scale)
    told = f"Words taken back against final latency, of {len(drawn)} variants, as in the ranking."
    return to_svg(figure, f"latency-steadiness-{name}", told, marks)
