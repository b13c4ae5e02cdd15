"""Sessions of the server scenario: requests arrive at random, wait, and are answered one by one.

The search for the highest rate holds a whole session for every trial.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from asrgate.harness.corpus.audio import altered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics import bootstrap
from asrgate.harness.record_types import Result, ServerSession
from asrgate.harness.scenarios.batches import CallProber
from asrgate.harness.scenarios.scenario import Answered, Load, LoadGenerator, Prober
from asrgate.harness.scenarios.server_requests import Terms, arrivals, drawn
from asrgate.harness.worker.client import Worker
from asrgate.harness.worker.messages import Samples

IDLE_SECONDS = 0.05  # until the next request is due, from which on there is time to look for late work
TRIALS = 6  # of the search: it ends within 1/2**6 of the rate at which the engine is never idle
CONFIRMATIONS = (1.0, 0.9, 0.8)  # of the rate found, each with arrivals the search has not seen


class ServerGenerator(LoadGenerator):
    """Holds sessions with workers, on one run's clips and terms."""

    def __init__(
        self,
        terms: Terms,
        load: Load,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Prepare to hold sessions.

        Args:
            clock, sleep: as time.perf_counter and time.sleep.
        """
        self.calls = terms.requests
        self._terms = terms
        self._load = load
        self._held = 0  # sessions so far
        self._clock = clock
        self._sleep = sleep

    def measure(
        self, worker: Worker, number: int, is_done: Callable[[Clip], bool], result: Result
    ) -> Iterator[Answered]:
        """Hold the sessions of a round; yield the requests that the result is measured by.

        All sessions are kept in the result's `sessions`. One that something ended is none.
        """
        if self._terms.rate_per_second is None:
            yield from self._search(worker, number, result)
            return
        rate = self._terms.rate_per_second
        held = _Held("measure", number, rate, self._load.seed + number)
        self._tell(worker, held)
        yield from self._hold(worker, held)
        result["sessions"].append(held.session(self._terms, is_kept=True))

    def prober(self, worker: Worker, probed: set[str], seed: int) -> Prober:
        """As LoadGenerator: a server's requests are single calls."""
        return CallProber(worker)

    def _search(self, worker: Worker, number: int, result: Result) -> Iterator[Answered]:
        """Bisect between the slowest rate there is time for and that at which the engine is never idle.

        All trials have one seed, so their arrivals are the same but for the scale and their latencies grow
        with the rate, but for noise. What they found is confirmed with other arrivals.
        """

        def trial(purpose: str, rate: float | None, seed: int) -> tuple[list[Answered], ServerSession]:
            held = _Held(purpose, number, rate, seed)
            self._tell(worker, held)
            requests = list(self._hold(worker, held))
            return requests, held.session(self._terms, is_kept=False)

        requests, session = trial("capacity", None, self._load.seed)
        sessions = [session]
        alone = [r.fields["finish_seconds"] - r.fields["start_seconds"] for r in requests]
        high, low = 1 / statistics.fmean(alone), self._terms.requests / self._terms.limit_seconds
        is_possible = bootstrap.percentiles(alone, [99])[0] <= (self._terms.p99_seconds or 0.0)
        passed: float | None = None
        for _ in range(TRIALS if is_possible else 0):
            rate = (high + (passed or 0.0)) / 2
            if rate < low:
                break
            requests, session = trial("search", rate, self._load.seed)
            sessions.append(session)
            if session["is_within"]:
                passed = rate
            else:
                high = rate
        for place, share in enumerate(CONFIRMATIONS if passed is not None else ()):
            assert passed is not None
            requests, session = trial("confirm", passed * share, self._load.seed + 1 + place)
            sessions.append(session)
            if session["is_within"]:
                break
        for nth, each in enumerate(sessions):
            each["is_kept"] = nth == len(sessions) - 1
            result["sessions"].append(each)
        yield from requests

    def _tell(self, worker: Worker, held: _Held) -> None:
        when = "all at once" if held.rate is None else f"at {held.rate:.3g} requests/s"
        self._load.stage(str(worker.variant), f"{held.purpose}: {self._terms.requests} requests {when}", "")

    def _hold(self, worker: Worker, held: _Held) -> Iterator[Answered]:
        """Hold one session; yield each request when its late work is known.

        Latency is counted from when a request was due, not from when the engine was free for it: what waits
        in the queue waits on the clock, too (no "coordinated omission"). A request is handed over when it is
        begun, so that the engine cannot look ahead.
        """
        order = drawn(len(self._load.clips), self._terms.requests, held.seed)
        due = held.arrivals = arrivals(self._terms.requests, held.rate, held.seed)
        self._held += 1
        start = self._clock()
        for place, (at, arrival) in enumerate(zip(order, due, strict=True)):
            clip = self._load.clips[at]
            seed = [self._load.audio_seed, self._held, place]  # a clip that comes again is another copy
            with Samples([altered(self._load.audio[clip.name], seed)]) as ready:  # made before its turn
                while (ahead := arrival - (self._clock() - start)) > 0:
                    self._sleep(ahead)
                begun = self._clock() - start
                if begun > self._terms.limit_seconds:
                    return
                answer = worker.request(ready, clip.call_language, f"answering request {place + 1}")
                finish = self._clock() - start
            timing = {
                "request": place,
                "arrival_seconds": arrival,
                "start_seconds": begun,
                "finish_seconds": finish,
            }
            following = due[place + 1] if place + 1 < len(due) else math.inf
            if following - finish > IDLE_SECONDS:
                answer["late_work_seconds"] = worker.settle(f"answering request {place + 1}")
            held.add(timing, failed=answer["error"] is not None)
            yield Answered(clip, answer, timing)


class _Held:
    """A session while it is held."""

    def __init__(self, purpose: str, number: int, rate: float | None, seed: int):
        self.purpose = purpose
        self.number = number
        self.rate = rate
        self.seed = seed
        self.arrivals: Sequence[float] = ()
        self._timings: list[tuple[float, float, float]] = []
        self._failed = 0

    def add(self, timing: Mapping[str, Any], failed: bool) -> None:
        self._timings.append((timing["arrival_seconds"], timing["start_seconds"], timing["finish_seconds"]))
        self._failed += failed

    def session(self, terms: Terms, is_kept: bool) -> ServerSession:
        done = len(self._timings)
        latencies = [finish - arrival for arrival, _, finish in self._timings]
        median, p99 = bootstrap.percentiles(latencies, [50, 99]) if latencies else (None, None)
        busy_seconds = sum(finish - start for _, start, finish in self._timings)
        last = self.arrivals[-1] if self.arrivals else 0.0
        is_cut_off = done < terms.requests
        is_within = None
        if terms.p99_seconds is not None:
            # a short session hides what a queue that only grows would come to
            keeps_up = not is_cut_off and not self._failed and busy_seconds <= last
            is_within = keeps_up and p99 is not None and p99 <= terms.p99_seconds
        return {
            "purpose": self.purpose,
            "round": self.number,
            "is_kept": is_kept,
            "rate_per_second": self.rate,
            "seed": self.seed,
            "requests": terms.requests,
            "answered": done - self._failed,
            "failed": self._failed,
            "arrivals_seconds": last,
            "finish_seconds": max((finish for _, _, finish in self._timings), default=0.0),
            "busy_seconds": busy_seconds,
            "largest_queue": largest_queue(self.arrivals, [start for _, start, _ in self._timings]),
            "median_seconds": median,
            "p99_seconds": p99,
            "is_cut_off": is_cut_off,
            "is_within": is_within,
        }


def largest_queue(arrivals_seconds: Sequence[float], starts_seconds: Sequence[float]) -> int:
    """Return the most requests that one found waiting before it when it arrived.

    Args:
        arrivals_seconds: of all requests, ascending.
        starts_seconds: when those that were begun were, in the same order.
    """
    before = np.arange(len(arrivals_seconds))
    begun = np.searchsorted(np.asarray(starts_seconds), np.asarray(arrivals_seconds), side="right")
    return int(max(before - np.minimum(begun, before), default=0))  # it may itself be begun at once
