"""Loading an engine and its first calls, whoever holds the worker: this process or one on another machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asrgate.backends.base import Checkpoint, Settings
from asrgate.harness.scenarios.batches import BatchVariant
from asrgate.harness.worker.client import Worker


def load(
    worker: Worker,
    checkpoint: Checkpoint,
    settings: Settings,
    clip: np.ndarray,
    language: str,
    calls: int,
    said: Callable[[str], None],
    row: Any,
) -> None:
    """Load the worker's engine and have it answer the warm-up clip.

    Args:
        clip: samples that are none of the measured ones.
        calls: how often the clip is asked for.
        said: called with each line that the backend logs while it loads.
        row: of the record; its `applied_settings` and `load` are filled as they become known.

    Raises:
        WorkerError: the backend refused, or the worker died or hung.
    """
    try:
        report = worker.load(checkpoint, settings, said=said)
    finally:
        row["isolation"] = worker.isolation
    row["applied_settings"] = report["applied_settings"]
    row["load"]["import_seconds"] = report["import_seconds"]
    row["load"]["load_seconds"] = report["load_seconds"]
    variant = worker.variant
    for call in range(calls):
        answer = worker.call(clip, language, "warming up")
        if isinstance(variant, BatchVariant) and variant.batch_size > 1:
            # as measured: what is compiled or captured for a batch is not for a single clip
            worker.call_batch([clip] * variant.batch_size, language, "warming up")
        if answer["error"] is not None:
            continue  # the measured calls will say so, clip by clip
        row["load"]["first_call_seconds" if call == 0 else "warm_call_seconds"] = answer["wall_seconds"]
