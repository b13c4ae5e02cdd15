"""Writes labels beside points, moved where they would cover something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from asrgate.harness.escape import visible
from asrgate.harness.report.html.drawing import colour
from asrgate.harness.report.html.frontier import FAR, LETTER_POINTS, LINE_POINTS, NAMED, NEAR, Box
from asrgate.harness.report.html.svg import INK, MUTED
from asrgate.harness.report.rows import RANKED, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NAMED", "Label", "beside", "paper", "write"]


class Label(NamedTuple):
    """A text for the point (x, y), and how far it may be moved from there, in half lines."""

    text: str
    x: float
    y: float
    reach: int
    colour: str


def beside(row: Row, number: int, by_name: bool, x: float, y: float) -> Label:
    """Return what stands beside a row's point: its name, or its rank, by which the table has the name.

    Args:
        number: the row's in the page.
    """
    if by_name:
        return Label(visible(row["variant"]), x, y, FAR, colour(number) if row["group"] == RANKED else MUTED)
    return Label("" if row["rank"] is None else str(row["rank"]), x, y, NEAR, INK)


def paper(axes: Axes, scale: float) -> Box:
    """Return what the axes cover; `scale` is points per pixel."""
    return Box(axes.bbox.x0 * scale, axes.bbox.x1 * scale, axes.bbox.y0 * scale, axes.bbox.y1 * scale)


def write(axes: Axes, texts: Sequence[Label], taken: list[Box], whole: Box, scale: float) -> None:
    """Write each label where it covers nothing, or not at all. First come, first placed.

    Args:
        taken: what must not be covered; the labels are added.
        whole: where there is room.
        scale: points per pixel.
    """
    for label in texts:
        x, y = (float(value) for value in axes.transData.transform((label.x, label.y)) * scale)
        free = (
            (dx, dy, box)
            for dx, dy, box in _offsets(x, y, LETTER_POINTS * len(label.text), label.reach)
            if whole.holds(box) and not any(box.meets(other) for other in taken)
        )
        dx, dy, box = next(free, (0.0, 0.0, None))
        if box is None or not label.text:
            continue
        taken.append(box)
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="center",
            fontsize=8.5,
            color=label.colour,
        )


def _offsets(x: float, y: float, width: float, reach: int) -> Iterator[tuple[float, float, Box]]:
    """Yield offsets of a label from its point, the nearest first, with what it would cover."""
    for lines in range(reach):
        for dx, dy in ((8.0, lines * 5.5), (-8.0, lines * 5.5), (8.0, lines * -5.5), (-8.0, lines * -5.5)):
            left = x + dx if dx > 0 else x + dx - width
            low = y + dy - LINE_POINTS / 2
            yield dx, dy, Box(left - 1.5, left + width + 1.5, low, low + LINE_POINTS)
