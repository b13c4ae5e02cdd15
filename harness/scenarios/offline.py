"""Calls of whole batches: each clip's answer with its share of the time, and probes of caches in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asrgate.harness.corpus.audio import dithered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.scenarios.registry import Batch
from asrgate.harness.worker.client import Worker


def call(worker: Worker, batch: Batch, audio: Mapping[str, np.ndarray], what: str) -> list[dict[str, Any]]:
    """Have a batch transcribed; return one answer a clip, in their order.

    The times of a call made for several clips are divided evenly between them, so that sums over clips are
    those of the calls.

    Args:
        audio: clip name -> its samples.
        what: how messages name the call.

    Raises:
        WorkerError: as Worker.call.
    """
    clips = [audio[clip.name] for clip in batch.clips]
    if not batch.together:
        return [worker.call(clips[0], batch.clips[0].language, what)]
    return worker.call_batch(clips, batch.clips[0].language, what)


class Prober:
    """Answers integrity's single calls from whole batches: what a batch caches shows in no single call.

    A clip that was measured is asked for in the very batch it was measured in; a copy, in that batch with
    all the other clips changed, inaudibly, as well.
    """

    def __init__(
        self,
        worker: Worker,
        batches: Sequence[Batch],
        audio: Mapping[str, np.ndarray],
        probed: Iterable[str],
        seed: int,
    ):
        """Prepare to probe one worker.

        Args:
            batches: of a measured round.
            audio: clip name -> its samples.
            probed: names of the clips that there are probes of.
        """
        self._worker = worker
        self._seed = seed
        probed = set(probed)
        self._batch_of = {clip.name: b for b in batches for clip in b.clips if clip.name in probed}
        self._audio = audio

    def ask(self, clip: Clip, samples: np.ndarray, is_copy: bool, what: str) -> dict[str, Any]:
        """As Worker.call; the times are one clip's share of its batch's."""
        batch = self._batch_of[clip.name]
        if not batch.together:
            return self._worker.call(samples, clip.language, what)
        names = [clip.name for clip in batch.clips]
        clips, place = [self._audio[each] for each in names], names.index(clip.name)
        if is_copy:
            clips = [self._changed(other) for other in clips]
            clips[place] = samples
        return self._worker.call_batch(clips, clip.language, what)[place]

    def _changed(self, samples: np.ndarray) -> np.ndarray:
        self._seed += 1  # each copy once: a second time it would be known
        return dithered(samples, self._seed)
