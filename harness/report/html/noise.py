"""The chart of WER against noise: one line per variant over the signal-to-noise ratios of its clips."""

from __future__ import annotations

from collections.abc import Sequence

from asrgate.harness.corpus.augment import CLEAN
from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report.columns import percent
from asrgate.harness.report.html.drawing import SLICE_INCHES, Chart, Measured, add_legend, colour, new_figure
from asrgate.harness.report.html.svg import PALETTE, Mark, to_svg
from asrgate.harness.report.rows import RANKED
from asrgate.harness.scoring.slices import Slice


def chart(run: Run, measured: Measured, sliced: Sequence[Slice]) -> Chart | None:
    """Return the chart of the slices by ratio, or None if the clips have fewer than two ratios."""
    ratios = sorted({each["value"] for each in sliced if _is_number(each["value"])}, key=float, reverse=True)
    values = [*([CLEAN] if any(each["value"] == CLEAN for each in sliced) else []), *ratios]
    if len(values) < 2:
        return None
    known = {(each["variant"], each["value"]): each for each in sliced}
    figure, axes = new_figure(3.6, SLICE_INCHES)
    marks: dict[str, Mark] = {}
    aside = min(0.06, 0.4 / len(measured))  # so that the intervals of several variants can be seen
    for place, (n, row, _) in reversed(list(enumerate(measured))):
        shift = aside * (place - (len(measured) - 1) / 2)
        cells = [known[row["variant"], value] for value in values]
        drawn = [(x, cell) for x, cell in enumerate(cells) if cell["wer_percent"] is not None]
        is_ranked = row["group"] == RANKED
        for x, cell in drawn:
            if cell["wer_low_percent"] is not None:
                ends = [cell["wer_low_percent"], cell["wer_high_percent"]]
                axes.plot([x + shift, x + shift], ends, color=colour(row.get("series", n)), lw=1, alpha=0.5)
        (line,) = axes.plot(
            [x + shift for x, _ in drawn],
            [cell["wer_percent"] for _, cell in drawn],
            color=colour(row.get("series", n)),
            marker="o" if is_ranked else "X",
            ls="-" if is_ranked else ":",
            lw=1.6 if n < len(PALETTE) else 0.8,
            ms=5,
            label=visible(row["variant"]),
        )
        line.set_gid(f"noise-{n}")
        told = ", ".join(f"{values[x]}: {percent(cell['wer_percent'])} %" for x, cell in drawn)
        marks[f"noise-{n}"] = Mark(n, f"{row['variant']}, WER by ratio in dB: {told}")
    names = [value if value == CLEAN else f"{value} dB" for value in values]
    axes.set_xticks(range(len(values)), names)
    axes.margins(x=0.08)
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y")
    axes.set_xlabel("signal-to-noise ratio: noisier to the right")
    axes.set_ylabel("WER %: lower is better")
    add_legend(figure, axes)
    noises = sorted({str(clip["tags"]["noise"]) for clip in run["clips"] if "noise" in clip["tags"]})
    return Chart(
        "noise",
        "WER by noise",
        f"The same clips with increasing {' and '.join(noises) or 'some'} noise; bars are bootstrap "
        "intervals over clips. Dotted: not ranked.",
        to_svg(figure, "noise", "WER by signal-to-noise ratio; the table beside has the figures.", marks),
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
