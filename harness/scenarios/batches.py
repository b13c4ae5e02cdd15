"""Clips handed over in calls of one or of several: each clip's answer, and probes of caches in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asrgate.backends import Variant
from asrgate.backends.base import WINDOW_SECONDS
from asrgate.harness.corpus.audio import dithered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.record_types import Result
from asrgate.harness.scenarios.scenario import Answered, Load, LoadGenerator, Prober
from asrgate.harness.worker.client import Worker


@dataclass(frozen=True)
class BatchVariant(Variant):
    """A variant that is given `batch_size` clips a call; at 1 it is called, and named, as in a single stream.

    `takes_batches` says whether the backend has `transcribe_batch`; one without it has size 1 only.
    """

    batch_size: int = 1
    takes_batches: bool = False

    def __str__(self) -> str:
        name = super().__str__()
        return name if self.batch_size == 1 else f"{name} batch {self.batch_size}"


@dataclass(frozen=True)
class Batch:
    """Clips of one call; `together`: by transcribe_batch, else a single one by transcribe."""

    clips: Sequence[Clip]
    together: bool


def batches(clips: Sequence[Clip], variant: Variant) -> list[Batch]:
    """Return the calls of one round: every clip once.

    The longest clips come first, so that those of a batch are of like length. Clips of different languages
    never share a batch. Clips of more than one window are asked for alone, after the others: their sequential
    decoding has no other window to share a batch with.
    """
    size = variant.batch_size if isinstance(variant, BatchVariant) else 1
    if size == 1:
        return [Batch([clip], together=False) for clip in clips]
    found = []
    for language in dict.fromkeys(clip.call_language for clip in clips):
        short = [c for c in clips if c.call_language == language and c.audio_seconds <= WINDOW_SECONDS]
        short.sort(key=lambda clip: -clip.audio_seconds)
        found += [Batch(short[i : i + size], together=True) for i in range(0, len(short), size)]
    return found + [Batch([c], together=False) for c in clips if c.audio_seconds > WINDOW_SECONDS]


class BatchGenerator(LoadGenerator):
    """Hands over the clips of a round call by call, each in the batch of its variant."""

    def __init__(self, load: Load, fields: Callable[[int], dict[str, Any]] = lambda number: {}):
        """Prepare to hand over clips.

        Args:
            fields: what samples of a batch have beside, from its number in the round.
        """
        self.calls = len(load.clips)
        self.can_mix_in = True
        self._load = load
        self._fields = fields

    def measure(
        self, worker: Worker, number: int, is_done: Callable[[Clip], bool], result: Result
    ) -> Iterator[Answered]:
        """As LoadGenerator. A batch that lacks one answer is asked for as a whole."""
        load, audio = self._load, self._load.of_round(number)
        for batch_number, batch in enumerate(batches(load.clips, worker.variant)):
            missing = [clip for clip in batch.clips if not is_done(clip)]
            if not missing:
                continue
            load.stage(str(worker.variant), load.name_of(number), missing[0].name)
            answers = _call(worker, batch, audio)
            for clip, answer in zip(batch.clips, answers, strict=True):
                if clip in missing:
                    yield Answered(clip, answer, self._fields(batch_number))

    def prober(self, worker: Worker, probed: set[str], seed: int) -> Prober:
        """As LoadGenerator."""
        return BatchProber(worker, batches(self._load.clips, worker.variant), self._load.audio, probed, seed)


def _call(worker: Worker, batch: Batch, audio: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Have a batch transcribed; return one answer per clip, in their order.

    The times of a call made for several clips are divided evenly between them, so that sums over clips are
    those of the calls.
    """
    clips = [audio[clip.name] for clip in batch.clips]
    what = f"answering clip {', '.join(clip.name for clip in batch.clips)}"
    if not batch.together:
        return [worker.call(clips[0], batch.clips[0].call_language, what)]
    return worker.call_batch(clips, batch.clips[0].call_language, what)


class CallProber:
    """Probes a worker by single calls, which is how it was measured."""

    def __init__(self, worker: Worker):
        """Prepare to probe one worker."""
        self._worker = worker

    def ask(self, clip: Clip, samples: np.ndarray, is_copy: bool, what: str) -> dict[str, Any]:
        """As Worker.call."""
        return self._worker.call(samples, clip.call_language, what)


class BatchProber:
    """Probes a worker in whole batches: what a batch caches shows in no single call.

    A clip that was measured is asked for in the very batch it was measured in; a copy, in that batch with
    all the other clips changed, inaudibly, as well.
    """

    def __init__(
        self,
        worker: Worker,
        batches: Sequence[Batch],
        audio: Mapping[str, np.ndarray],
        probed: set[str],
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
        self._batch_of = {clip.name: b for b in batches for clip in b.clips if clip.name in probed}
        self._audio = audio

    def ask(self, clip: Clip, samples: np.ndarray, is_copy: bool, what: str) -> dict[str, Any]:
        """As Worker.call; the times are one clip's share of its batch's."""
        batch = self._batch_of[clip.name]
        if not batch.together:
            return self._worker.call(samples, clip.call_language, what)
        names = [clip.name for clip in batch.clips]
        clips, place = [self._audio[each] for each in names], names.index(clip.name)
        if is_copy:
            clips = [self._changed(other) for other in clips]
            clips[place] = samples
        return self._worker.call_batch(clips, clip.call_language, what)[place]

    def _changed(self, samples: np.ndarray) -> np.ndarray:
        self._seed += 1  # each copy once: a second time it would be known
        return dithered(samples, self._seed)
