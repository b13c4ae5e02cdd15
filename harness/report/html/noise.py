"""The chart of WER against noise: one line per variant over the signal-to-noise ratios of its clips."""

from __future__ import annotations

from asrgate.harness.corpus.augment import CLEAN, FIELD
from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import percent
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure
from asrgate.harness.report.html.svg import PALETTE, Mark, to_svg
from asrgate.harness.report.rows import RANKED
from asrgate.harness.scoring import slices


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if the clips have fewer than two ratios."""
    rows = slices.rows(run, [FIELD]) if any(FIELD in clip["tags"] for clip in run["clips"]) else []
    ratios = sorted({row["value"] for row in rows if _is_number(row["value"])}, key=float, reverse=True)
    values = [*([CLEAN] if any(row["value"] == CLEAN for row in rows) else []), *ratios]
    if len(values) < 2:
        return None
    known = {(row["variant"], row["value"]): row for row in rows}
    figure, axes = new_figure(3.4)
    marks: dict[str, Mark] = {}
    lines = []
    for n, row, _ in reversed(measured):
        cells = [known[row["variant"], value] for value in values]
        drawn = [(x, cell) for x, cell in enumerate(cells) if cell["wer_percent"] is not None]
        is_ranked = row["group"] == RANKED
        for x, cell in drawn:
            if cell["wer_low_percent"] is not None:
                ends = [cell["wer_low_percent"], cell["wer_high_percent"]]
                axes.plot([x, x], ends, color=colour(n), lw=1, alpha=0.5)
        (line,) = axes.plot(
            [x for x, _ in drawn],
            [cell["wer_percent"] for _, cell in drawn],
            color=colour(n),
            marker="o" if is_ranked else "X",
            ls="-" if is_ranked else ":",
            lw=1.6 if n < len(PALETTE) else 0.8,
            ms=5,
            label=visible(row["variant"]),
        )
        line.set_gid(f"noise-{n}")
        told = ", ".join(f"{values[x]}: {percent(cell['wer_percent'])} %" for x, cell in drawn)
        marks[f"noise-{n}"] = Mark(n, f"{row['variant']}, WER by ratio in dB: {told}")
        lines.append([row["variant"], *(percent(cell["wer_percent"]) for cell in cells)])
    names = [value if value == CLEAN else f"{value} dB" for value in values]
    axes.set_xticks(range(len(values)), names)
    axes.margins(x=0.08)
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y")
    axes.set_xlabel("signal-to-noise ratio: noisier to the right")
    axes.set_ylabel("WER %: lower is better")
    handles, labels = axes.get_legend_handles_labels()
    shown = len(PALETTE)
    figure.legend(handles[::-1][:shown], labels[::-1][:shown], loc="outside upper left", ncols=2)
    noises = sorted({str(clip["tags"]["noise"]) for clip in run["clips"] if "noise" in clip["tags"]})
    return Chart(
        "noise",
        "WER by noise",
        f"The same clips with increasing {' and '.join(noises) or 'some'} noise; bars are bootstrap "
        "intervals over clips. Dotted: not ranked.",
        to_svg(figure, "noise", "WER by signal-to-noise ratio; the table below has the figures.", marks),
        (["variant", *names], lines[::-1]),
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
