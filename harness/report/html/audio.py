"""The recordings of a run's clips as MP3 for a page, for listening only; engines were given the samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import soundfile

from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError
from asrgate.harness.corpus.clips import load_clips
from asrgate.harness.record_types import Run

SHORT_SECONDS = 30.0  # longer clips would make the page heavy
TOTAL_SECONDS = 3600.0  # about 15 MB of MP3, and a third more when encoded as text


class AudioMissing(AsrgateError):
    """The given recordings are not those of the run, or are too much for one page."""


def embed(run: Run, paths: Sequence[Path]) -> dict[str, bytes]:
    """Return clip name -> MP3 for the run's clips of at most SHORT_SECONDS that are found at the paths.

    Recordings are identified by their samples' hash, so names may have changed since.

    Args:
        paths: files, folders or manifests, as `asrgate run --audio` takes them.

    Raises:
        CorpusError: a path cannot be read.
        AudioMissing: no clip of the run is among them, or the short ones exceed TOTAL_SECONDS together.
    """
    short = {clip["name"]: clip["sha256"] for clip in run["clips"] if clip["audio_seconds"] <= SHORT_SECONDS}
    if not short:
        raise AudioMissing(
            f"run {run['run_id']} has no clip of at most {SHORT_SECONDS:g} s, so none can be embedded"
        )
    found = {clip.sha256: clip for clip in load_clips(list(paths)) if clip.sha256 in short.values()}
    if not found:
        raise AudioMissing(
            f"none of the recordings in {', '.join(map(str, paths))} is a short clip of run {run['run_id']}; "
            "pass --with-audio what the run got with --audio or --manifest"
        )
    total_seconds = sum(clip.audio_seconds for clip in found.values())
    if total_seconds > TOTAL_SECONDS:
        raise AudioMissing(
            f"the short clips last {total_seconds / 60:.0f} min together, but a page takes at most "
            f"{TOTAL_SECONDS / 60:.0f} min; pass --with-audio fewer files"
        )
    encoded = {sha256: _mp3(clip.samples()) for sha256, clip in found.items()}
    return {name: encoded[sha256] for name, sha256 in short.items() if sha256 in encoded}


def _mp3(samples: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format="MP3")
    return file.getvalue()
