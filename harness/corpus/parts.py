"""The part of a file that a manifest means: what its offset and duration say, held against the audio."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness.corpus import audio as audio_file

DURATION_SLACK_SECONDS = 0.1  # how far a manifest's duration may be off, in seconds, or
DURATION_SLACK = 0.01  # as a share of it, whichever is more: encoders pad, and tools round

_one_at_a_time = threading.Lock()


UNFINISHED = "its header says 0 bytes of samples, as if its recorder had been stopped; it is read to its end"


class PartError(audio_file.AudioError):
    """A manifest names a part that the file does not have; the message says how long the file is."""


@dataclass(frozen=True)
class Part:
    """What a manifest means of a file.

    Attributes:
        samples: as asrgate.harness.corpus.audio.decode returns them.
        is_whole: whether they are all of the file's.
        remark: how the manifest contradicts the audio, None if it does not.
        is_unfinished: whether the file's header says that it has no samples, see audio.is_unfinished.
    """

    samples: np.ndarray
    is_whole: bool = True
    remark: str | None = None
    is_unfinished: bool = False


@dataclass(frozen=True)
class Measured:
    """What is known of a part without keeping its samples; `remark` and `is_unfinished` as in Part."""

    seconds: float
    peak: float
    sha256: str
    remark: str | None = None
    is_unfinished: bool = False


def measure(
    path: Path,
    start_seconds: float | None = None,
    declared_seconds: float | None = None,
    max_hours: float = audio_file.MAX_CLIP_HOURS,
) -> Measured:
    """Decode a part as `read` does, and of a whole file keep no samples; raises the same errors."""
    if start_seconds is None:
        sound = audio_file.measure(path, max_hours)
        if declared_seconds is None or abs(sound.seconds - declared_seconds) <= _slack(declared_seconds):
            unfinished = audio_file.is_unfinished(path)
            return Measured(sound.seconds, sound.peak, sound.sha256, is_unfinished=unfinished)
    part = read(path, start_seconds, declared_seconds, max_hours)
    return Measured(
        len(part.samples) / SAMPLE_RATE_HZ,
        float(np.abs(part.samples).max(initial=0.0)),
        audio_file.sha256(part.samples),
        part.remark,
        part.is_unfinished,
    )


def read(
    path: Path,
    start_seconds: float | None = None,
    declared_seconds: float | None = None,
    max_hours: float = audio_file.MAX_CLIP_HOURS,
) -> Part:
    """Decode the part of a file that a manifest means.

    A duration without an offset cuts the file too, as in NeMo, with a remark. An MP3 is then kept whole,
    because many tools guess its length from its first frame.

    Args:
        start_seconds: the manifest's offset, which may be 0; None without one.
        declared_seconds: the manifest's duration; None without one.
        max_hours: how long the file's audio may be.

    Raises:
        AudioError: the file cannot be decoded; PartError: it is shorter than the manifest says.
    """
    if start_seconds is None:
        part = _first(path, audio_file.decode(path, max_hours), declared_seconds)
    else:
        part = _from(path, start_seconds, declared_seconds, max_hours)
    return replace(part, is_unfinished=audio_file.is_unfinished(path))


def _from(path: Path, start_seconds: float, declared_seconds: float | None, max_hours: float) -> Part:
    with _one_at_a_time:  # the parts of a recording follow each other: it is decoded once for all of them
        samples = _whole(path, path.stat().st_mtime_ns if path.exists() else 0, max_hours)
    begin = round(start_seconds * SAMPLE_RATE_HZ)
    end = len(samples) if declared_seconds is None else begin + round(declared_seconds * SAMPLE_RATE_HZ)
    slack = DURATION_SLACK_SECONDS if declared_seconds is None else _slack(declared_seconds)
    if begin >= len(samples) or end > len(samples) + slack * SAMPLE_RATE_HZ:
        raise PartError(
            f"the part from {begin / SAMPLE_RATE_HZ:.2f} to {end / SAMPLE_RATE_HZ:.2f} s lies beyond the end "
            f"of {path}, which lasts {len(samples) / SAMPLE_RATE_HZ:.2f} s"
        )
    if min(end, len(samples)) - begin < audio_file.MIN_SECONDS * SAMPLE_RATE_HZ:
        raise PartError(
            f"the part of {path} at {begin / SAMPLE_RATE_HZ:.2f} s is shorter than {audio_file.MIN_SECONDS} s"
        )
    return Part(samples[begin:end].copy(), is_whole=begin == 0 and end >= len(samples))


def _first(path: Path, samples: np.ndarray, declared_seconds: float | None) -> Part:
    seconds = len(samples) / SAMPLE_RATE_HZ
    if declared_seconds is None or abs(seconds - declared_seconds) <= _slack(declared_seconds):
        return Part(samples)
    told = f"duration says {declared_seconds:g} s, but {path.name} lasts {seconds:.2f} s"
    if seconds < declared_seconds:
        raise PartError(f"{told}; it may be cut off, or a different recording")
    if path.suffix.lower() == ".mp3":
        return Part(
            samples, remark=f"{told}; all of it is used, because the lengths of MP3 files are often guesses"
        )
    used = round(declared_seconds * SAMPLE_RATE_HZ)
    if used < audio_file.MIN_SECONDS * SAMPLE_RATE_HZ:
        raise PartError(f"{told}; the part is shorter than {audio_file.MIN_SECONDS} s")
    remark = f"{told}; only its first {declared_seconds:g} s are used"
    return Part(samples[:used].copy(), is_whole=False, remark=remark)


@lru_cache(maxsize=1)
def _whole(path: Path, modified_ns: int, max_hours: float) -> np.ndarray:
    return audio_file.decode(path, max_hours)


def _slack(declared_seconds: float) -> float:
    return max(DURATION_SLACK_SECONDS, DURATION_SLACK * declared_seconds)
