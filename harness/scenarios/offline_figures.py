"""Speed of an offline run: audio seconds of a round over its wall seconds, the median over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asrgate.harness.metrics import bootstrap
from asrgate.harness.record import Run


def speed(run: Run, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return a result's `rtfx` from its timed samples; None when no whole round was answered.

    Only rounds in which every clip was answered count: a round that lacks some clips did other work. The
    interval is the bootstrap interval of the median over rounds; None with one round. All sums are over
    these rounds.
    """
    audio = {clip["name"]: clip["audio_seconds"] for clip in run["clips"]}
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rounds.setdefault(sample["round"], []).append(sample)
    whole = [of_round for _, of_round in sorted(rounds.items()) if len(of_round) == len(audio)]
    walls = [sum(sample["wall_seconds"] for sample in of_round) for of_round in whole]
    if not whole or not all(walls):
        return None
    found = [sum(audio.values()) / wall for wall in walls]
    median = statistics.median(found)
    counted = [s for of_round in whole for s in of_round if s["token_count"] is not None]
    counted_seconds = sum(sample["wall_seconds"] for sample in counted)
    return {
        "rtfx": median,
        "rtf": 1 / median,
        "interval": _interval(found, run["settings"]["seed"]),
        "audio_seconds": sum(audio.values()) * len(whole),
        "wall_seconds": sum(walls),
        "tokens_per_second": sum(s["token_count"] for s in counted) / counted_seconds if counted else None,
    }


def _interval(values: Sequence[float], seed: int) -> list[float] | None:
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(values, (bootstrap.REPLICATES, len(values)))
    tail = (1 - bootstrap.LEVEL) / 2
    return np.quantile(np.median(drawn, axis=1), [tail, 1 - tail]).tolist()
