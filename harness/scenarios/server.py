"""The server scenario: requests arrive by chance at a rate, and their waiting counts.

As MLPerf's scenario of that name (Reddi et al. 2020, "MLPerf Inference Benchmark", section III), with one
request answered at a time. `--rate R` measures at a rate; `--find-max-rate --p99 S` searches the highest rate
at which 99 of 100 requests are answered within S seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asrgate.backends import Variant
from asrgate.harness.argument_types import at_least, positive
from asrgate.harness.column import Column, count, of, whole_percent
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics.word_errors import Texts
from asrgate.harness.record_types import Result, Run, ServerSession
from asrgate.harness.scenarios import server_requests
from asrgate.harness.scenarios.scenario import Load, LoadGenerator, Order, Scenario
from asrgate.harness.scenarios.server_requests import Terms
from asrgate.harness.scenarios.server_sessions import ServerGenerator


class Server(Scenario):
    """Requests at random times, at one rate or at the highest that meets a limit."""

    name = "server"
    default_rounds = 1  # a session takes its time
    detects_language = True
    options = ("rate", "find_max_rate", "p99", "server_requests", "server_seconds")
    sample_fields = ("request", "arrival_seconds", "start_seconds", "finish_seconds")
    figures = (
        "server",
        (
            *("rate_per_second", "max_rate_per_second", "achieved_per_second", "utilisation"),
            *("largest_queue", "is_overloaded"),
        ),
    )
    has_rounds = False
    is_resumable = False  # latencies are those of whole sessions
    idles = True
    latency = ("seconds from arrival to answer", "all requests, including their waiting")
    columns = (
        Column(
            "max req/s",
            "the highest rate found at which 99 of 100 requests are answered within the limit",
            of("max_rate_per_second"),
            importance=10,
        ),
        Column(
            "median s",
            "median seconds from a request's arrival to its answer, including waiting",
            of("latency_median_seconds"),
            importance=7,
        ),
        Column(
            "p90 s",
            "90th percentile of the seconds from arrival to answer",
            of("latency_p90_seconds"),
            importance=6,
        ),
        Column(
            "p99 s",
            "99th percentile of the seconds from arrival to answer, including waiting",
            of("latency_p99_seconds"),
            importance=10,
        ),
        Column("req/s", "requests answered per second", of("achieved_per_second"), importance=8),
        Column(
            "busy %",
            "share of the time during which a request was being answered",
            of("utilisation", whole_percent),
            importance=7,
        ),
        Column(
            "queue",
            "the most requests that were waiting when another arrived",
            of("largest_queue", count),
            importance=6,
        ),
    )

    def __init__(self, terms: Terms):
        """Ask for a rate, or for the highest that meets a limit."""
        self.terms = terms

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """As Scenario."""
        group = parser.add_argument_group(
            "--scenario server: requests arrive at random (Poisson), and latency includes their waiting"
        )
        group.add_argument("--rate", type=positive, metavar="R", help="requests per second")
        group.add_argument(
            "--find-max-rate", action="store_true", help="find the highest rate that meets --p99"
        )
        group.add_argument(
            "--p99", type=positive, metavar="S", help="99 of 100 requests must be answered within S seconds"
        )
        group.add_argument(
            "--server-requests",
            type=at_least(1),
            metavar="N",
            help=f"requests per session (default {server_requests.REQUESTS}, or each clip once if there are "
            "more)",
        )
        group.add_argument(
            "--server-seconds",
            type=positive,
            metavar="S",
            help=f"a session starts no request after S seconds (default {server_requests.LIMIT_SECONDS:g})",
        )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, clips: Sequence[Clip], rounds: int) -> Server:
        """As Scenario."""
        return cls(
            server_requests.terms(
                rate=arguments.rate,
                find_max_rate=arguments.find_max_rate,
                p99=arguments.p99,
                requests=arguments.server_requests,
                limit_seconds=arguments.server_seconds,
                clips=clips,
                rounds=rounds,
            )
        )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Server:
        """As Scenario."""
        return cls(Terms(**settings["server"]))

    def settings(self) -> dict[str, Any]:
        """As Scenario."""
        return {"server": self.terms.as_dict()}

    def conditions(self) -> str:
        """As Scenario."""
        rate, limit = self.terms.rate_per_second, self.terms.p99_seconds
        asked = (
            f"at {rate:g} requests/s" if rate is not None else f"for the highest rate with p99 of {limit:g} s"
        )
        return f"{self.name} {asked}, {self.terms.requests} requests"

    def describe(self, run: Run) -> str:
        """As Scenario."""
        terms = self.terms
        asked = (
            f"{terms.rate_per_second:g} requests/s"
            if terms.rate_per_second is not None
            else f"the highest rate at which 99 of 100 are answered within {terms.p99_seconds:g} s"
        )
        return (
            f"{self.name}: requests arrive at random (Poisson, seed {run['settings']['seed']}), {asked}, "
            f"{terms.requests} per session of at most {terms.limit_seconds:g} s; one is answered at a "
            f"time, latency counts from the arrival; ranked by {self.order.by}"
        )

    def blank_result(self, variant: Variant) -> dict[str, Any]:
        """As Scenario."""
        return {"sessions": [], "server": None}

    def load_generator(self, load: Load) -> LoadGenerator:
        """As Scenario."""
        return ServerGenerator(self.terms, load)

    @property
    def order(self) -> Order:
        """The highest rate where it was searched, else the p99 latency."""
        if self.terms.rate_per_second is None:
            return Order("the highest rate that meets the limit", "server", "max_rate_per_second", True)
        return Order("p99 latency", "latency", "p99_seconds")

    def add_figures(self, run: Run, result: Result, texts: Texts) -> None:
        """Fill `server`; None when the result held no session.

        Rates are requests per second. Rates and utilisation are over all sessions that the result is measured
        by, from the start of each to its last answer.
        """
        result["server"] = None
        kept = [session for session in result.get("sessions", []) if session["is_kept"]]
        seconds = sum(session["finish_seconds"] for session in kept)
        if not seconds:
            return
        rate = kept[-1]["rate_per_second"]
        is_found = self.terms.rate_per_second is None and bool(kept[-1]["is_within"]) and rate is not None
        result["server"] = {
            "rate_per_second": rate,
            "achieved_per_second": sum(session["answered"] for session in kept) / seconds,
            "utilisation": sum(session["busy_seconds"] for session in kept) / seconds,
            "largest_queue": max(session["largest_queue"] for session in kept),
            "is_overloaded": any(is_overloaded(session) for session in kept),
            "max_rate_per_second": rate if is_found else None,
        }

    def latencies(self, result: Result) -> list[float]:
        """Return the seconds from arrival to answer of each answered request; none if no rate was found."""
        found = result.get("server")
        is_searched = self.terms.rate_per_second is None
        if found is None or (is_searched and found["max_rate_per_second"] is None):
            return []
        return [
            (s["finish_seconds"] or 0.0) - (s["arrival_seconds"] or 0.0)
            for s in result["samples"]
            if s["error"] is None
        ]

    def faults(self, result: Result) -> Iterator[str]:
        """Say that no rate was found, or that the engine was overloaded."""
        found, terms = result.get("server"), self.terms
        if found is None:
            return
        if terms.rate_per_second is None:
            if found["max_rate_per_second"] is None:
                yield (
                    "no rate was found at which 99 of 100 requests are answered within "
                    f"{terms.p99_seconds:g} s ({_tried(result)})"
                )
            return
        for session in result["sessions"]:
            if session["is_cut_off"]:
                done = session["answered"] + session["failed"]
                yield (
                    f"overloaded at {terms.rate_per_second:g} requests/s: {session['requests'] - done} of "
                    f"{session['requests']} were not started within {terms.limit_seconds:g} s"
                )
                return
        if found["is_overloaded"]:
            yield (
                f"overloaded: it answers {found['achieved_per_second']:.3g} requests/s but "
                f"{terms.rate_per_second:g} arrive, so the queue and the latency only grow"
            )


def is_overloaded(session: ServerSession) -> bool:
    """Whether a session's requests came faster than they were answered: latency grows with its length."""
    return bool(session["is_cut_off"] or session["busy_seconds"] > session["arrivals_seconds"])


def _tried(result: Result) -> str:
    rates = [s["rate_per_second"] for s in result["sessions"] if s["rate_per_second"] is not None]
    if not rates:
        return "it takes longer even without a queue"
    return f"{len(rates)} sessions were run, at {min(rates):.3g} to {max(rates):.3g} requests/s"
