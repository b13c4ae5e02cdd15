"""The picture of a run in which requests arrive at a rate: what latency each variant has at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asrgate.harness.record_types import Run, ServerSession
from asrgate.harness.report.columns import figure as written
from asrgate.harness.report.html import labels
from asrgate.harness.report.html.drawing import Chart, Measured, colour, new_figure, plain_log_ticks
from asrgate.harness.report.html.frontier import NARROW, WIDE, Box
from asrgate.harness.report.html.svg import INK, MUTED, PALETTE, PAPER, Mark, to_svg
from asrgate.harness.report.rows import RANKED, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSE = 3.0  # times the limit, above and below it, that are shown of many rows

Line = tuple[int, Row, list[ServerSession]]  # the page's number of a row, the row, its sessions by rate


def chart(run: Run, measured: Measured) -> Chart | None:
    """Return the chart, or None if no session had a rate and a latency."""
    drawn = [(n, row, _sessions(result.get("sessions", []))) for n, row, result in measured]
    drawn = [line for line in drawn if line[2]]
    if not drawn:
        return None
    limit = run["settings"]["server"]["p99_seconds"]
    wide, narrow = (_draw(drawn, limit, name, size) for name, size in (("wide", WIDE), ("narrow", NARROW)))
    is_search = limit is not None
    caption = "99 of 100 requests of a session were answered within so many seconds, their waiting included. "
    if is_search:
        caption += "Filled: within the limit; hollow: not. Large: the session that a row is ranked by"
        caption += (
            f"; the others are drawn for up to {labels.NAMED} rows only. "
            if len(drawn) > labels.NAMED
            else ". "
        )
    else:
        caption += (
            "Line: down to the median. Every variant was asked for the same rate, and is drawn at what it "
        )
        caption += "answered. "
    if any(row["group"] != RANKED for _, row, _ in drawn):
        caption += "Grey: not ranked."
    return Chart("rate-latency", "Latency against rate", caption.strip(), wide, narrow=narrow)


def _sessions(every: Sequence[ServerSession]) -> list[ServerSession]:
    found = [s for s in every if s["rate_per_second"] is not None and s["p99_seconds"] is not None]
    return sorted(found, key=lambda session: (session["rate_per_second"] or 0, session["p99_seconds"] or 0))


def _kept(sessions: Sequence[ServerSession]) -> list[ServerSession]:
    return [session for session in sessions if session["is_kept"]]


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
        axes.set_ylim(limit / CLOSE, limit * CLOSE)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_xlabel("requests per second: more to the right")
    axes.set_ylabel("p99 seconds (log scale): lower is better")
    figure.draw_without_rendering()  # fixes the layout, on which the distances depend
    scale = 72 / figure.dpi
    whole = labels.paper(axes, scale)
    texts, taken = [], []
    by_name = len(drawn) <= labels.NAMED and name == "wide"
    for n, row, sessions in drawn:
        for session in sessions if len(drawn) <= labels.NAMED else _kept(sessions):
            x, y = axes.transData.transform((_rate(row, session, limit), session["p99_seconds"])) * scale
            taken.append(Box(x - 4, x + 4, y - 4, y + 4))
        (last,) = _kept(sessions)[:1] or sessions[-1:]
        texts.append(labels.beside(row, n, by_name, _rate(row, last, limit), last["p99_seconds"] or 0))
    if limit is not None:
        line = axes.transData.transform((0, limit))[1] * scale
        taken.append(Box(whole.left, whole.right, line - 0.5, line + 0.5))
        axes.annotate(
            f"limit {written(limit)} s",
            (0, limit),
            xycoords=("axes fraction", "data"),
            xytext=(2, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=MUTED,
        )
        taken.append(Box(whole.left, whole.left + 55, line, line + 13))
    labels.write(axes, texts, taken, whole, scale)
    told = f"99th percentile of latency against the rate of requests, of {len(drawn)} variants."
    return to_svg(figure, f"rate-latency-{name}", told, marks)


def _line(axes: Axes, line: Line, is_search: bool, count: int) -> dict[str, Mark]:
    n, row, sessions = line
    is_ranked = row["group"] == RANKED
    own = colour(n) if is_ranked else MUTED
    rates = [_rate(row, session, 1.0 if is_search else None) for session in sessions]
    seconds = [session["p99_seconds"] for session in sessions]
    if is_search and n < len(PALETTE):
        (drawn,) = axes.plot(rates, seconds, color=own, lw=1.2, alpha=0.5 if count <= len(PALETTE) else 0.2)
        drawn.set_gid(f"rates-{n}")
    elif not is_search:
        for rate, session in zip(rates, sessions, strict=True):
            ends = [session["median_seconds"], session["p99_seconds"]]
            axes.plot([rate, rate], ends, color=own, lw=1.6, alpha=0.6, solid_capstyle="butt")
    marks = {f"rates-{n}": Mark(n, f"{row['variant']}, by rate")}
    for nth, (rate, session) in enumerate(zip(rates, sessions, strict=True)):
        is_chosen = session["is_kept"]
        if count > labels.NAMED and not is_chosen:
            continue
        is_filled = is_ranked and (session["is_within"] if is_search else True)
        (point,) = axes.plot(
            rate,
            session["p99_seconds"],
            marker="o",
            ms=8 if is_chosen else 5,
            mec=own,
            mfc=own if is_filled else PAPER,
            zorder=3 if is_chosen else 2,
            clip_on=False,
        )
        point.set_gid(f"session-{n}-{nth}")
        told = (
            f"{row['variant']}: at {written(session['rate_per_second'])} requests/s p99 "
            f"{written(session['p99_seconds'])} s, median {written(session['median_seconds'])} s"
        )
        marks[f"session-{n}-{nth}"] = Mark(n, told + ("; ranked by this" if is_chosen and is_ranked else ""))
    return marks


def _rate(row: Row, session: ServerSession, limit: float | None) -> float:
    """Return where a session is drawn: at its rate, or, if all have the same, at what was answered."""
    if limit is None and session["finish_seconds"]:
        return session["answered"] / session["finish_seconds"]
    return session["rate_per_second"] or 0.0
