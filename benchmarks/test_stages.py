"""What each backend's stages take on a small random checkpoint: `make bench`.

The engines tell the seconds of their stages themselves, so pytest-benchmark is given a clock that shows those
instead of the time of day. A random checkpoint decodes nonsense, but the same nonsense each time: the figures
compare with earlier ones of the same backend, not with another backend's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import BackendUnavailable, Checkpoint, Settings

STAGES = ("log_mel", "encode", "decode")
AUDIO_SECONDS = 10
ROUNDS = 5


class StageTime:
    """A clock that stands still but for what is added to it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def runnable() -> list[Variant]:
    """The variants that this machine can run; `asrgate list` says why not the others."""
    found = []
    for variant in backends.every():
        try:
            backends.load(variant.backend).check(variant.device, variant.precision)
        except BackendUnavailable:
            continue
        found.append(variant)
    return found


@pytest.fixture(scope="module", params=runnable(), ids=str)
def engine(request: pytest.FixtureRequest, model: Checkpoint) -> Any:
    """One variant, loaded once for all its stages."""
    variant: Variant = request.param
    backend = backends.load(variant.backend)
    return backend.load(model, variant.device, variant.precision, Settings(threads=1))


@pytest.mark.parametrize("stage", STAGES)
def test_stage(benchmark: Any, engine: Any, stage: str) -> None:
    """Time one stage of one backend on ten seconds of noise."""
    audio = np.random.default_rng(0).normal(0, 0.05, 16_000 * AUDIO_SECONDS).astype(np.float32)
    if stage not in engine.transcribe(audio, "en").stage_seconds:  # also the warm-up
        pytest.skip("the backend does not tell its seconds in this stage")
    clock = StageTime()

    def call() -> None:
        clock.seconds += engine.transcribe(audio, "en").stage_seconds[stage]

    benchmark._timer = clock
    benchmark.group = stage
    benchmark.pedantic(call, rounds=ROUNDS)
    assert clock.seconds > 0
