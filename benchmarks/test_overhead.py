"""What the harness itself adds to a measured call: `make bench`.

Inside the clock lie handing over the samples, waking the worker, two synchronisations, and the answer's way
back. The share is taken of the shortest call that matters, a 30 s window of the tiny size on a fast GPU:
about 25 ms for 80 tokens (1.3 ms encoder and 0.31 ms per token, whisper.cpp on an RTX 5090).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrgate.backends import Variant
from asrgate.backends.base import Checkpoint, Settings
from asrgate.harness.worker.client import Worker

SHORTEST_CALL_SECONDS = 0.025
FAKES = Path(__file__).parent.parent / "tests" / "support" / "fakes"


def test_share_of_a_measured_call(
    benchmark: Any, model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time calls of an engine that takes no time: all of it is overhead."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), os.environ.get("PYTHONPATH", "")]))
    worker = Worker(Variant("deaf", "cpu", "float32"), tmp_path / "log", threads=1, timeout_seconds=60)
    audio = np.random.default_rng(0).uniform(-1, 1, 16_000 * 30).astype(np.float32)
    inside = []
    try:
        worker.load(model, Settings(threads=1))

        def call() -> None:
            answer = worker.call(audio, "en", "answering")
            assert answer["error"] is None
            inside.append(answer["wall_seconds"])

        benchmark.pedantic(call, rounds=100, warmup_rounds=5)
    finally:
        worker.stop()
    share = float(np.median(inside)) / SHORTEST_CALL_SECONDS
    benchmark.extra_info["seconds_inside"] = float(np.median(inside))
    benchmark.extra_info["share_of_a_25_ms_call"] = share
    assert share < 0.01
