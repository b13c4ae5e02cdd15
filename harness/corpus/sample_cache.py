"""Decoded clips on disk, within a limit: what fits stays for the whole run, the rest is decoded on demand.

An hour of samples is 230 MB, and the folder may be in memory (tmpfs), so a corpus must not be decoded whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness.corpus.clips import Clip, write_samples

SAMPLE_BYTES = 4  # float32
KEPT_BYTES = 1 << 30  # 4.7 hours, decoded once
PASSING_BYTES = 1 << 28  # 70 minutes of clips beyond that, so that a whole batch fits at once


class Decoded(Mapping[str, Path]):
    """Clip name -> .npy of its samples, in `folder`.

    The first clips, up to `kept_bytes`, are decoded once and stay. The file of any other clip is written when
    it is looked up, between timed calls, and deleted after `passing_bytes` of other clips were written.

    A lookup raises AudioError if the audio file is gone or has changed since the clip was loaded.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        folder: Path,
        kept_bytes: int = KEPT_BYTES,
        passing_bytes: int = PASSING_BYTES,
    ):
        self._clips = {clip.name: clip for clip in clips}
        self._folder = folder
        self._passing_bytes = passing_bytes
        self._passing: deque[tuple[Path, int]] = deque()
        self._kept: dict[str, Path] = {}
        total = 0
        for clip in clips:
            total += _size_bytes(clip)
            if total > kept_bytes:
                break
            self._kept[clip.name] = write_samples(clip, folder)

    def __getitem__(self, name: str) -> Path:
        if name in self._kept:
            return self._kept[name]
        clip = self._clips[name]
        size_bytes = _size_bytes(clip)
        path = self._folder / f"{clip.sha256}.npy"
        if path.exists():
            return path
        while self._passing and sum(size for _, size in self._passing) + size_bytes > self._passing_bytes:
            self._passing.popleft()[0].unlink(missing_ok=True)
        self._passing.append((path, size_bytes))
        return write_samples(clip, self._folder)

    def keep(self, names: Iterable[str]) -> None:
        """Keep the files of these clips until the end."""
        for name in names:
            path = self[name]
            self._passing = deque(entry for entry in self._passing if entry[0] != path)
            self._kept[name] = path

    def __iter__(self) -> Iterator[str]:
        return iter(self._clips)

    def __len__(self) -> int:
        return len(self._clips)


def _size_bytes(clip: Clip) -> int:
    return round(clip.audio_seconds * SAMPLE_RATE_HZ) * SAMPLE_BYTES
