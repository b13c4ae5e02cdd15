"""The worker's half of the server scenario: requests are started at their times, one after the other.

Latency counts from a request's scheduled arrival, not from when the engine was free for it, so waiting in the
queue counts too (no "coordinated omission").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

IDLE_SECONDS = 0.05  # if the next request is at least this far away, there is time to look for late work


def serve(
    arrivals_seconds: Sequence[float],
    limit_seconds: float,
    *,
    call: Callable[[int], dict[str, Any]],
    report: Callable[[dict[str, Any]], None],
    late_work_seconds: Callable[[], float],
    clock_ns: Callable[[], int],
    sleep: Callable[[float], None],
) -> None:
    """Answer requests in order of arrival; one that comes while another is being answered waits.

    Args:
        arrivals_seconds: arrival of each request, from the start, ascending.
        limit_seconds: after this time no further request is started.
        call: answers the request with that number.
        report: is given an event "served" for each request that was started, and "settled" with the late work
            if there was time to look for it.
        late_work_seconds: waits until all work has stopped and returns how long that took.
        clock_ns, sleep: like time.perf_counter_ns and time.sleep.
    """
    start = clock_ns()

    def now() -> float:
        return (clock_ns() - start) * 1e-9

    for request, arrival in enumerate(arrivals_seconds):
        if request and arrival - now() > IDLE_SECONDS:
            report({"event": "settled", "request": request - 1, "late_work_seconds": late_work_seconds()})
        while (ahead := arrival - now()) > 0:
            sleep(ahead)
        begun = now()
        if begun > limit_seconds:
            return
        answer = call(request)
        report(
            {"event": "served", "request": request, "start_seconds": begun, "finish_seconds": now(), **answer}
        )
    if arrivals_seconds:
        last = len(arrivals_seconds) - 1
        report({"event": "settled", "request": last, "late_work_seconds": late_work_seconds()})
