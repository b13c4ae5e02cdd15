"""The picture of a run in which requests arrive at a rate: what latency each variant has at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from asrgate.harness.record_types import Run, ServerSession
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.html import labels
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure, plain_log_ticks
from asrgate.harness.report.html.frontier import NARROW, WIDE
from asrgate.harness.report.html.labels import Box
from asrgate.harness.report.html.svg import INK, MUTED, PALETTE, PAPER, Mark, to_svg
from asrgate.harness.report.rows import RANKED, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSE = 3.0  # times the limit, above and below it, that are shown of many rows


class Held(NamedTuple):
    """One session: the rate at which it is drawn, its p99 in seconds, and the session itself."""

    rate: float
    p99: float
    session: ServerSession


Line = tuple[int, Row, list[Held]]  # the page's number of a row, the row, its sessions by rate


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if no session had a rate and a latency."""
    limit = run["settings"]["server"]["p99_seconds"] if "server" in run["settings"] else None
    drawn = [(n, row, _held(result.get("sessions", []), limit is not None)) for n, row, result in measured]
    drawn = [line for line in drawn if line[2]]
    if not drawn:
        return None
    wide, narrow = (_draw(drawn, limit, name, size) for name, size in (("wide", WIDE), ("narrow", NARROW)))
    return Chart("rate-latency", "Latency against rate", _caption(drawn, limit), wide, narrow=narrow)


def _held(every: Sequence[ServerSession], is_search: bool) -> list[Held]:
    """Return the sessions at their rates, or, if all have the same, at what was answered."""
    found = []
    for session in every:
        rate, p99 = session["rate_per_second"], session["p99_seconds"]
        if rate is not None and p99 is not None:
            answered = session["answered"] / session["finish_seconds"] if session["finish_seconds"] else rate
            found.append(Held(rate if is_search else answered, p99, session))
    return sorted(found, key=lambda held: held[:2])


def _kept(every: Sequence[Held]) -> list[Held]:
    return [held for held in every if held.session["is_kept"]]


def _caption(drawn: Sequence[Line], limit: float | None) -> str:
    told = ["99 of 100 requests of a session were answered within so many seconds, their waiting included."]
    if limit is None:
        told.append(
            "Line: down to the median. All were asked for the same rate, and are drawn at what they answered."
        )
    else:
        told.append("Filled: within the limit; hollow: not. Large: the session that a row is ranked by.")
        if len(drawn) > labels.NAMED:
            told.append(f"The other sessions are drawn for up to {labels.NAMED} rows only.")
    if any(row["group"] != RANKED for _, row, _ in drawn):
        told.append("Grey: not ranked.")
    return " ".join(told)


def _draw(drawn: Sequence[Line], limit: float | None, name: str, inches: tuple[float, float]) -> str:
    figure, axes = new_figure(inches[1], inches[0])
    axes.set_yscale("log")
    marks: dict[str, Mark] = {}
    for line in reversed(drawn):
        marks |= _line(axes, line, limit is not None, len(drawn))
    if limit is not None:
        axes.axhline(limit, color=INK, lw=0.9, ls=(0, (4, 3)), zorder=1)
    plain_log_ticks(axes, vertical=True)
    axes.margins(x=0.12, y=0.08)
    if limit is not None and len(drawn) > labels.NAMED:
        shown = [limit, *(held.p99 for _, _, every in drawn for held in _kept(every))]
        axes.set_ylim(min(limit / CLOSE, 0.9 * min(shown)), max(limit * CLOSE, 1.1 * max(shown)))
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_xlabel("requests per second: more to the right")
    axes.set_ylabel("p99 seconds (log scale): lower is better")
    figure.draw_without_rendering()  # fixes the layout, on which the distances depend
    _label(axes, drawn, limit, len(drawn) <= labels.NAMED and name == "wide", 72 / figure.dpi)
    told = f"99th percentile of latency against the rate of requests, of {len(drawn)} variants."
    return to_svg(figure, f"rate-latency-{name}", told, marks)


def _line(axes: Axes, line: Line, is_search: bool, count: int) -> dict[str, Mark]:
    """Draw one row's sessions; of many rows only those that count."""
    n, row, every = line
    own = colour(row.get("series", n)) if row["group"] == RANKED else MUTED
    if is_search and n < len(PALETTE):
        shade = 0.5 if count <= len(PALETTE) else 0.2
        axes.plot([held.rate for held in every], [held.p99 for held in every], color=own, lw=1.2, alpha=shade)
    marks = {}
    for nth, held in enumerate(every if count <= labels.NAMED else _kept(every)):
        session, median = held.session, held.session["median_seconds"]
        if not is_search and median is not None:
            ends = [median, held.p99]
            axes.plot([held.rate] * 2, ends, color=own, lw=1.6, alpha=0.6, solid_capstyle="butt")
        is_filled = row["group"] == RANKED and (session["is_within"] if is_search else True)
        (point,) = axes.plot(
            held.rate,
            held.p99,
            marker="o",
            ms=8 if session["is_kept"] else 5,
            mec=own,
            mfc=own if is_filled else PAPER,
            zorder=3 if session["is_kept"] else 2,
            clip_on=False,
        )
        point.set_gid(f"session-{n}-{nth}")
        told = (
            f"{row['variant']}: at {written(session['rate_per_second'])} requests/s p99 {written(held.p99)} s"
        )
        told += f", median {written(median)} s"
        if session["is_kept"] and row["group"] == RANKED:
            told += "; ranked by this"
        marks[f"session-{n}-{nth}"] = Mark(n, told)
    return marks


def _label(axes: Axes, drawn: Sequence[Line], limit: float | None, by_name: bool, scale: float) -> None:
    whole = labels.paper(axes, scale)
    texts, taken = [], []
    for n, row, every in drawn:
        for held in every if len(drawn) <= labels.NAMED else _kept(every):
            x, y = axes.transData.transform((held.rate, held.p99)) * scale
            taken.append(Box(x - 4, x + 4, y - 4, y + 4))
        last = (_kept(every) or every)[-1]
        texts.append(labels.beside(row, n, by_name, last.rate, last.p99))
    if limit is not None:
        line = axes.transData.transform((0, limit))[1] * scale
        taken.append(Box(whole.left, whole.right, line - 0.5, line + 0.5))
        taken.append(Box(whole.left, whole.left + 55, line, line + 13))
        axes.annotate(
            f"limit {written(limit)} s",
            (0, limit),
            xycoords=("axes fraction", "data"),
            xytext=(2, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=MUTED,
        )
    labels.write(axes, texts, taken, whole, scale)
