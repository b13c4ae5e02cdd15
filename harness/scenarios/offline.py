"""Calls of whole batches: each clip's answer with its share of the time, and probes of caches in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asrgate.harness.corpus.audio import dithered
from asrgate.harness.scenarios.registry import Batch
from asrgate.harness.worker.client import Worker

COMPANION_SEED = 2_000_000  # added to the run's: no probe and no warm-up has it


def call(worker: Worker, batch: Batch, audio: Mapping[str, Path], what: str) -> list[dict[str, Any]]:
    """Have a batch transcribed; return one answer a clip, in their order.

    The times of a call made for several clips are divided evenly between them, so that sums over clips are
    those of the calls.

    Args:
        audio: clip name -> .npy of its samples.
        what: how messages name the call.

    Raises:
        WorkerError: as Worker.call.
    """
    paths = [audio[clip.name] for clip in batch.clips]
    if not batch.together:
        return [worker.call(paths[0], batch.clips[0].language, what)]
    return worker.call_batch(paths, batch.clips[0].language, what)


class Prober:
    """Answers integrity's single calls from whole batches: what a batch caches shows in no single call.

    A clip that was measured is asked for in the very batch it was measured in; a copy, in that batch with
    all the other clips changed, inaudibly, as well.
    """

    def __init__(
        self,
        worker: Worker,
        batches: Sequence[Batch],
        audio: Mapping[str, Path],
        clip_names: Mapping[Path, str],
        folder: Path,
        seed: int,
    ):
        """Prepare to probe one worker.

        Args:
            batches: of a measured round.
            audio: clip name -> .npy of its samples.
            clip_names: .npy of a probed clip or of its copy -> the clip's name.
            folder: where changed samples are written.
        """
        self._worker = worker
        self._clip_names = clip_names
        self._folder = folder
        self._seed = seed + COMPANION_SEED
        probed = set(clip_names.values())
        self._batch_of = {clip.name: b for b in batches for clip in b.clips if clip.name in probed}
        self._audio = audio

    def call(self, path: Path, language: str, what: str) -> dict[str, Any]:
        """As Worker.call; the times are one clip's share of its batch's."""
        name = self._clip_names[path]
        batch = self._batch_of[name]
        if not batch.together:
            return self._worker.call(path, language, what)
        names = [clip.name for clip in batch.clips]
        paths, place = [self._audio[each] for each in names], names.index(name)
        if path != paths[place]:
            paths = [path if at == place else self._changed(other) for at, other in enumerate(paths)]
        return self._worker.call_batch(paths, language, what)[place]

    def _changed(self, path: Path) -> Path:
        self._seed += 1  # each copy once: a second time it would be known
        changed = self._folder / f"companion{self._seed}.npy"
        np.save(changed, dithered(np.load(path), self._seed), allow_pickle=False)
        return changed
