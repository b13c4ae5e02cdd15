"""What the harness itself adds to a measured call: `make bench`.

Inside the clock lie two synchronisations and the copy of the answer into plain values. The share is taken of
the shortest call that matters, a 30 s window of the tiny size on a fast GPU: about 25 ms for 80 tokens
(1.3 ms encoder and 0.31 ms a token, whisper.cpp on an RTX 5090).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from asrgate.backends.base import Transcript
from asrgate.harness.worker import child, meters

SHORTEST_CALL_SECONDS = 0.025
AUDIO = np.zeros(16_000 * 30, np.float32)
ANSWER = Transcript(
    "word " * 60,
    tokens=list(range(80)),
    stage_seconds={"log_mel": 0.001, "encode": 0.001, "decode": 0.02},
)


class Instant:
    """An engine whose answer costs nothing: what is measured is the harness."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return ANSWER

    def synchronize(self) -> None:
        pass


def test_share_of_a_measured_call(benchmark: Any) -> None:
    """Time the worker's own `call` around an engine that takes no time; its wall_seconds are all overhead."""
    engine = SimpleNamespace(
        backend=Instant(),
        _late_work=meters.LateWorkDetector(),
        _energy=meters.EnergyMeter("cpu"),
        _joules=0.0,
        _add_joules=lambda before: None,
    )
    inside = []

    def call() -> None:
        child._Engine.prepare(engine)  # type: ignore[arg-type]
        inside.append(child._Engine.call(engine, AUDIO, "en")["wall_seconds"])  # type: ignore[arg-type]

    benchmark.pedantic(call, rounds=50, warmup_rounds=5)
    share = float(np.median(inside)) / SHORTEST_CALL_SECONDS
    benchmark.extra_info["share_of_a_25_ms_call"] = share
    assert share < 0.01
