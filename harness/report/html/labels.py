"""Writes labels beside points, moved where they would cover something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from asrgate.harness.escape import visible
from asrgate.harness.report.html.drawing import colour
from asrgate.harness.report.html.svg import INK, MUTED
from asrgate.harness.report.rows import RANKED, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 6  # with more points than this, numbers stand beside them: the table has the names
LINE_POINTS = 11.0  # height of a label
LETTER_POINTS = 4.9  # mean width of a letter at the labels' size
NEAR, FAR = 3, 9  # how far a label may be moved, in half lines


@dataclass(frozen=True)
class Box:
    """A rectangle on the paper, in points."""

    left: float
    right: float
    low: float
    high: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.low < other.high and other.low < self.high

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside, but for a little that may stick out to the right and above."""
        across = self.left <= other.left and other.right <= self.right + 8
        return across and self.low <= other.low and other.high <= self.high + 8


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
            ha="center" if dx == 0 else "left" if dx > 0 else "right",
            va="center",
            fontsize=8.5,
            color=label.colour,
        )


def _offsets(x: float, y: float, width: float, reach: int) -> Iterator[tuple[float, float, Box]]:
    """Yield offsets of a label from its point, the nearest first, with what it would cover.

    A number that is moved far would seem to be another point's; `reach` is in half lines.
    """
    beside = [(dx, dy) for dx in (8.0, -8.0) for dy in (0.0, 5.5, -5.5)]
    further = [(dx, sign * n * 5.5) for n in range(2, reach) for dx in (8.0, -8.0) for sign in (1, -1)]
    for dx, dy in (*beside[::3], (0.0, 11.0), (0.0, -11.0), *beside, *further):
        left = x + dx if dx > 0 else x + dx - width if dx < 0 else x - width / 2
        yield dx, dy, Box(left - 1.5, left + width + 1.5, y + dy - LINE_POINTS / 2, y + dy + LINE_POINTS / 2)
