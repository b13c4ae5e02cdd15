"""The worker's half of the server scenario: requests begun at their times, one after the other.

Latency is counted from when a request was to arrive, not from when the engine was free for it: what waits in
the queue waits on the clock, too (no "coordinated omission").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

IDLE_SECONDS = 0.05  # of waiting ahead, from which on there is time to look for late work


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
    """Answer requests in the order they arrive; one that comes while another is answered waits.

    Args:
        arrivals_seconds: of each request, from the start, ascending.
        limit_seconds: after it no further request is begun.
        call: answers the request of that number.
        report: is given an event "served" for each request that was begun, and "settled" with the late work
            where there was time to look for it.
        late_work_seconds: waits until nothing goes on any more and tells for how long it did.
        clock_ns, sleep: as time.perf_counter_ns and time.sleep.
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
