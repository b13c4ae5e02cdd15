"""Decoded clips, bounded: what fits stays for the whole run, the rest is decoded when asked for.

An hour of samples is 230 MB: a corpus must not be decoded whole. What stays is in a file without a
name, since an engine could find any other one and read it before it is asked.
"""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness.corpus.audio import altered
from asrgate.harness.corpus.clips import Clip

SAMPLE = np.dtype(np.float32)
KEPT_BYTES = 1 << 30  # 4.7 hours, decoded once
PASSING_BYTES = 1 << 26  # 17 minutes of clips beyond that, in memory


class Decoded(Mapping[str, np.ndarray]):
    """Clip name -> its samples, float32, shape (samples,), mono, 16 kHz.

    The first clips, up to `kept_bytes`, are decoded once and stay. Any other is decoded when it is looked up,
    between the calls that are timed, and forgotten after `passing_bytes` of others have been.

    Raises, from a lookup: AudioError, the audio file is gone or has changed since the clip was loaded.
    """

    def __init__(
        self, clips: Sequence[Clip], kept_bytes: int = KEPT_BYTES, passing_bytes: int = PASSING_BYTES
    ):
        self._clips = {clip.name: clip for clip in clips}
        self._passing_bytes = passing_bytes
        self._passing: OrderedDict[str, np.ndarray] = OrderedDict()
        self._file = tempfile.TemporaryFile(prefix="asrgate-")  # noqa: SIM115 - closed by the next line
        weakref.finalize(self, self._file.close)
        self._kept: dict[str, tuple[int, int]] = {}  # clip name -> first byte, samples
        total = 0
        for clip in clips:
            total += round(clip.audio_seconds * SAMPLE_RATE_HZ) * SAMPLE.itemsize
            if total > kept_bytes:
                break
            self._keep(clip.name, clip.samples())

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._kept:
            start, count = self._kept[name]
            self._file.seek(start)
            return np.fromfile(self._file, dtype=SAMPLE, count=count)
        if name not in self._passing:
            samples = self._clips[name].samples()
            while self._passing and self.passing_bytes + samples.nbytes > self._passing_bytes:
                self._passing.popitem(last=False)
            self._passing[name] = samples
        return self._passing[name]

    @property
    def passing_bytes(self) -> int:
        """Memory held by clips that do not stay."""
        return sum(samples.nbytes for samples in self._passing.values())

    @property
    def kept(self) -> int:
        """How many clips stay."""
        return len(self._kept)

    def _keep(self, name: str, samples: np.ndarray) -> None:
        start = self._file.seek(0, 2)
        samples.astype(SAMPLE, copy=False).tofile(self._file)
        self._kept[name] = (start, len(samples))

    def __iter__(self) -> Iterator[str]:
        return iter(self._clips)

    def __len__(self) -> int:
        return len(self._clips)


class Altered(Mapping[str, np.ndarray]):
    """Clip name -> an altered copy of its samples: what a cache has heard of the clip does not help."""

    def __init__(self, audio: Mapping[str, np.ndarray], seed: Sequence[int]):
        """Alter what `audio` holds; the same numbers give the same copies."""
        self._audio = audio
        self._seed = seed

    def __getitem__(self, name: str) -> np.ndarray:
        of_name = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return altered(self._audio[name], [*self._seed, of_name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._audio)

    def __len__(self) -> int:
        return len(self._audio)
