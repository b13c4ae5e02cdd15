"""What the page's charts share: a figure of the page's width, its colours, plain ticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asrgate.harness.record_types import Result
from asrgate.harness.report.html.svg import OTHER, PALETTE, WIDTH_INCHES
from asrgate.harness.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """One chart with its text.

    Attributes:
        table: headings and lines, if no other table on the page has its figures.
        narrow: the same for a phone; None if `svg` serves there too.
    """

    name: str
    title: str
    caption: str
    svg: str
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    narrow: str | None = None


def colour(number: int) -> str:
    """Return the placeholder colour for the page's variant with that number."""
    return PALETTE[number] if number < len(PALETTE) else OTHER


SLICE_INCHES = 6.2  # width of a chart beside a matrix of slices

Measured = Sequence[tuple[int, Row, Result]]


def new_figure(height_inches: float, width_inches: float = WIDTH_INCHES) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasSVG(figure)  # not pyplot, which keeps every figure that it ever made
    return figure, figure.add_subplot()


def plain_log_ticks(axes: Axes, vertical: bool = False) -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def add_legend(figure: Figure, axes: Axes) -> None:
    """Name the coloured variants above the axes, in the order of the tables; the last was drawn first."""
    handles, labels = axes.get_legend_handles_labels()
    shown = len(PALETTE)
    figure.legend(handles[::-1][:shown], labels[::-1][:shown], loc="outside upper left", ncols=2)
