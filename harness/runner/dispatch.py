"""How a worker is asked for clips in each scenario, and for copies of them in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asrgate.harness.runner.plan import Plan
from asrgate.harness.scenarios import offline, registry, streaming
from asrgate.harness.scoring import cache_probes
from asrgate.harness.worker.client import Worker


def call(
    plan: Plan, worker: Worker, batch: registry.Batch, audio: Mapping[str, np.ndarray], what: str
) -> list[dict[str, Any]]:
    """Have a batch's clips answered as the plan's scenario hands them over; return one answer a clip.

    Args:
        audio: clip name -> its samples.
        what: how messages name the call.

    Raises:
        WorkerError: as Worker.call.
    """
    if plan.chunk_seconds is None:
        return offline.call(worker, batch, audio, what)
    (clip,) = batch.clips
    return [streaming.call(worker, clip, audio[clip.name], plan.chunk_seconds, what)]


def beside(plan: Plan, place: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sample has for its scenario alone; `place` is its batch's in the round."""
    if plan.chunk_seconds is not None:
        return streaming.beside(answer)
    return {"batch": place} if plan.scenario == registry.OFFLINE else {}


def prober(
    plan: Plan,
    worker: Worker,
    copies: Sequence[cache_probes.Probe],
    audio: Mapping[str, np.ndarray],
    seed: int,
) -> cache_probes.Caller:
    """Return what asks a worker for copies of clips as for the clips; `seed` is that of further copies."""
    if plan.chunk_seconds is not None:
        return streaming.Prober(worker, plan.chunk_seconds)
    return offline.Prober(
        worker,
        registry.batches(plan.clips, worker.variant),
        audio,
        (copy.clip.name for copy in copies),
        seed,
    )
