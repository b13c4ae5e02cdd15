"""What is asked of the server scenario, and the requests that follow from it: which clip, and when.

Arrivals are a Poisson process, as in MLPerf's server scenario (Reddi et al. 2020, "MLPerf Inference
Benchmark", section III), of N requests in N / rate seconds: given their number, its arrivals are independent
and uniform over the time. So a short session has the rate asked for, not one that chance made. They are
seeded, and the same for every variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.scenarios.scenario import ScenarioError

REQUESTS = 100  # at least: below, the 99th percentile says no more than the maximum
LIMIT_SECONDS = 300.0
MOST_AUDIO_BYTES = 1 << 30  # a session's clips are in the worker's memory: reading is no part of a request


@dataclass(frozen=True)
class Terms:
    """What is asked of a server: a rate, or else the largest rate that keeps a limit.

    Attributes:
        rate_per_second: requests a second; None: it is searched.
        p99_seconds: the limit of the search.
        requests: in one session; each clip at least once.
        limit_seconds: after it a session begins no further request.
    """

    rate_per_second: float | None
    p99_seconds: float | None
    requests: int
    limit_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the terms as `settings.server` of the record holds them."""
        return asdict(self)


def terms(
    rate: float | None,
    find_max_rate: bool,
    p99: float | None,
    requests: int | None,
    limit_seconds: float | None,
    clips: Sequence[Clip],
    rounds: int,
) -> Terms:
    """Return the terms of a run from its arguments; None is what was not given.

    Raises:
        ScenarioError: they contradict each other or the clips, or a session could not end in time.
    """
    if (rate is None) == (not find_max_rate):
        raise ScenarioError(
            "--scenario server needs either --rate R (requests per second) or --find-max-rate with --p99 S"
        )
    if find_max_rate and p99 is None:
        raise ScenarioError(
            "--find-max-rate needs --p99 S: 99 of 100 requests must be answered within S seconds"
        )
    if p99 is not None and not find_max_rate:
        raise ScenarioError("--p99 is the limit for --find-max-rate; with --rate, the p99 is measured")
    if find_max_rate and rounds != 1:
        raise ScenarioError("--find-max-rate searches once and confirms the result; leave out --rounds")
    if requests is not None and requests < len(clips):
        raise ScenarioError(
            f"--server-requests {requests} is less than the {len(clips)} clips, and each must be answered; "
            "request more, or use fewer clips with --sample N"
        )
    size_bytes = 4 * SAMPLE_RATE_HZ * sum(clip.audio_seconds for clip in clips)
    if size_bytes > MOST_AUDIO_BYTES:
        raise ScenarioError(
            f"a server's clips are kept in memory, and these need {size_bytes / 2**30:.1f} GiB (at most "
            f"{MOST_AUDIO_BYTES / 2**30:g}); use fewer with --sample N"
        )
    found = Terms(rate, p99, requests or max(REQUESTS, len(clips)), limit_seconds or LIMIT_SECONDS)
    if rate is not None and found.requests / rate > found.limit_seconds:
        raise ScenarioError(
            f"{found.requests} requests at {rate:g} per second take {found.requests / rate:.0f} s, more than "
            f"--server-seconds {found.limit_seconds:g}; ask for fewer --server-requests or allow more seconds"
        )
    return found


def drawn(clips: int, requests: int, seed: int) -> list[int]:
    """Return the clip of each request: each once, so that a session cut off has them, then by chance."""
    rng = np.random.default_rng((seed, 1))
    return [*rng.permutation(clips).tolist(), *rng.integers(0, clips, requests - clips).tolist()]


def arrivals(requests: int, rate: float | None, seed: int) -> list[float]:
    """Return the seconds at which requests arrive, ascending; without a rate all at once."""
    if rate is None:
        return [0.0] * requests
    return np.sort(np.random.default_rng((seed, 0)).uniform(0, requests / rate, requests)).tolist()
