"""Figures of the server scenario, derived from a row's sessions and the requests it is measured by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from asrgate.harness.record import Run


def figures(run: Run, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a result's `server`; None when it held no session.

    Rates are requests a second. Rates and utilisation are over all sessions that the row is measured by, from
    each one's start to its last answer.
    """
    kept = [session for session in result.get("sessions", []) if session["is_kept"]]
    seconds = sum(session["finish_seconds"] for session in kept)
    if not seconds:
        return None
    asked = run["settings"]["server"]
    rate = kept[-1]["rate_per_second"]
    is_found = asked["rate_per_second"] is None and bool(kept[-1]["is_within"]) and rate is not None
    return {
        "rate_per_second": rate,
        "achieved_per_second": sum(session["answered"] for session in kept) / seconds,
        "utilisation": sum(session["busy_seconds"] for session in kept) / seconds,
        "largest_queue": max(session["largest_queue"] for session in kept),
        "is_overloaded": any(is_overloaded(session) for session in kept),
        "max_rate_per_second": rate if is_found else None,
    }


def is_overloaded(session: Mapping[str, Any]) -> bool:
    """Whether a session's requests came faster than they were answered: latency grows with its length."""
    return bool(session["is_cut_off"] or session["busy_seconds"] > session["arrivals_seconds"])


def latencies(run: Run, result: Mapping[str, Any]) -> list[float]:
    """Return the seconds from arrival to answer of each answered request; none if a search found no rate."""
    found = result.get("server")
    is_searched = run["settings"]["server"]["rate_per_second"] is None
    if found is None or (is_searched and found["max_rate_per_second"] is None):
        return []
    return [s["finish_seconds"] - s["arrival_seconds"] for s in result["samples"] if s["error"] is None]


def faults(run: Run, result: Mapping[str, Any]) -> Iterator[str]:
    """Say why a row's latencies are no property of the engine, or that no rate was found."""
    found = result.get("server")
    if found is None:
        return
    asked = run["settings"]["server"]
    if asked["rate_per_second"] is None:
        if found["max_rate_per_second"] is None:
            yield (
                "no rate was found at which 99 of 100 requests are answered within "
                f"{asked['p99_seconds']:g} s ({_tried(result)})"
            )
        return
    for session in result["sessions"]:
        if session["is_cut_off"]:
            done = session["answered"] + session["failed"]
            yield (
                f"overloaded at {asked['rate_per_second']:g} requests/s: {session['requests'] - done} of "
                f"{session['requests']} were not started within {asked['limit_seconds']:g} s"
            )
            return
    if found["is_overloaded"]:
        yield (
            f"overloaded: it answers {found['achieved_per_second']:.3g} requests/s but "
            f"{asked['rate_per_second']:g} arrive, so the queue and the latency only grow"
        )


def _tried(result: Mapping[str, Any]) -> str:
    rates = [s["rate_per_second"] for s in result["sessions"] if s["rate_per_second"] is not None]
    if not rates:
        return "it takes longer even without a queue"
    return f"{len(rates)} sessions were run, at {min(rates):.3g} to {max(rates):.3g} requests/s"
