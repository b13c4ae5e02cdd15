"""The clips of a run: found, decoded and checked completely before anything is measured."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from asrgate.backends.base import AsrgateError
from asrgate.backends.installation import shipped
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.corpus.manifests import Entry, is_language, read, read_manifest

BUNDLED_MANIFEST = shipped(
    "audio_samples/manifest.jsonl", Path(__file__).resolve().parent / "bundled" / "manifest.jsonl"
)

DEFAULT_LANGUAGE = "en"
DURATION_SLACK_SECONDS = 0.1  # how far a manifest's duration may be off, in seconds, or
DURATION_SLACK = 0.01  # as a share of it, whichever is more: encoders pad, and tools round
PROBLEMS_SHOWN = 10

_log = logging.getLogger(__name__)


class CorpusError(AsrgateError):
    """Clips cannot be used. The message lists all their problems, not only the first."""


@dataclass(frozen=True)
class Clip:
    """One recording to transcribe. It holds no samples, so memory does not grow with the set.

    Attributes:
        name: unique in the set, without characters that would break a table.
        path: the audio file.
        audio_seconds: length of the decoded audio.
        sha256: of the decoded samples, see asrgate.harness.corpus.audio.sha256.
        language: ISO 639-1 code.
        reference: what is said; "" if nothing is, None if unknown.
        tags: everything else in the manifest, including its `duration` if that disagrees with the audio.
    """

    name: str
    path: Path
    audio_seconds: float
    sha256: str
    language: str
    reference: str | None
    tags: Mapping[str, Any] = field(default_factory=dict)

    def samples(self) -> np.ndarray:
        """Decode the file again: float32, shape (samples,), mono, 16 kHz, in [-1, 1].

        Raises:
            AudioError: the file is gone or has changed since the clip was loaded.
        """
        with contextlib.suppress(audio_file.TooLong):
            samples = audio_file.decode(self.path, self.audio_seconds / 3600 * 1.01)  # a margin for rounding
            if audio_file.sha256(samples) == self.sha256:
                return samples
        raise audio_file.AudioError(f"{self.path} changed during the run; run again without changing it")


def load_clips(
    audio: Sequence[Path] = (),
    manifest: Path | None = None,
    *,
    language: str | None = None,
    max_hours: float = audio_file.MAX_CLIP_HOURS,
) -> list[Clip]:
    """Return the clips of a manifest and of files and folders, or the bundled ones if neither is given.

    Args:
        audio: files (`name.txt` next to `name.wav` is its reference), manifests, and folders. A folder with a
            manifest.jsonl is read through it; any other is searched for audio, with references from
            `name.txt` next to it or from a LibriSpeech `*.trans.txt`.
        manifest: a manifest file.
        language: replaces every clip's language; without it, English if a manifest names none.
        max_hours: how long a clip may be.

    Raises:
        CorpusError: any file or line is wrong; the message lists all problems.
    """
    if language is not None and not is_language(language):
        raise CorpusError(f"{language!r} is not a language code; give an ISO 639-1 code such as en, de or zh")
    if manifest is None and not audio:
        manifest = BUNDLED_MANIFEST
    problems: list[str] = []
    entries = [] if manifest is None else read_manifest(Path(manifest), problems)
    for path in map(Path, audio):
        entries += read(path, problems)
    entries = _without_repeats(entries, problems)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter's lock
        checked = list(pool.map(_check, entries, _names(entries), repeat(language), repeat(max_hours)))
    problems += [outcome for outcome in checked if isinstance(outcome, str)]
    if problems:
        raise CorpusError(_listed(problems))
    return [outcome for outcome in checked if isinstance(outcome, Clip)]


def _without_repeats(entries: list[Entry], problems: list[str]) -> list[Entry]:
    first: dict[str, Entry] = {}
    for entry in entries:
        original = first.setdefault(os.path.realpath(entry.path), entry)
        if original is not entry:
            problems.append(f"{entry.where}: {entry.path.name} is already listed at {original.where}")
    return list(first.values())


def _names(entries: Sequence[Entry]) -> list[str]:
    """Return a unique name for each: the shortest path that distinguishes it from the others."""

    def safe(path: Path) -> str:
        return re.sub(r"[^\w./+-]+", "_", path.as_posix())

    relative = [Path(os.path.relpath(entry.path, entry.root)) for entry in entries]
    names = [safe(path.with_suffix("")) for path in relative]
    longer = [safe(path) for path in relative]
    longest = [safe(Path(e.root.resolve().name) / path) for e, path in zip(entries, relative, strict=True)]
    for alternatives in (longer, longest):
        count = Counter(names)
        names = [b if count[a] > 1 else a for a, b in zip(names, alternatives, strict=True)]
    taken: set[str] = set()
    for i, name in enumerate(names):
        choices = (f"{name}~{number}" for number in range(2, len(names) + 2))
        names[i] = name if name not in taken else next(choice for choice in choices if choice not in taken)
        taken.add(names[i])
    return names


def _check(entry: Entry, name: str, language: str | None, max_hours: float) -> Clip | str:
    """Decode the entry and return its clip, or what is wrong with it."""
    try:
        sound = audio_file.measure(entry.path, max_hours)
    except AsrgateError as error:
        return str(error) if entry.where == str(entry.path) else f"{entry.where}: {error}"
    seconds = sound.seconds
    tags = dict(entry.tags)
    declared = entry.declared_seconds
    problem = disagreement(entry, seconds)
    if problem:
        return f"{entry.where}: {problem}"
    if declared is not None and abs(seconds - declared) > _slack(declared):
        _log.warning("%s: duration says %g s, but the MP3 lasts %.2f s", entry.where, declared, seconds)
        tags["duration"] = declared
    return Clip(
        name=name,
        path=entry.path,
        audio_seconds=seconds,
        sha256=sound.sha256,
        language=language or entry.language or DEFAULT_LANGUAGE,
        reference=entry.reference,
        tags=tags,
    )


def disagreement(entry: Entry, seconds: float) -> str | None:
    """Say how the audio's length contradicts the manifest's duration; None if it does not."""
    declared = entry.declared_seconds
    if declared is None or abs(seconds - declared) <= _slack(declared):
        return None
    # Many tools guess an MP3's length from its first frame; one that is longer than the guess is complete.
    if entry.path.suffix.lower() == ".mp3" and seconds > declared:
        return None
    return (
        f"duration says {declared:g} s, but {entry.path.name} lasts {seconds:.2f} s; "
        "it may be cut off, or a different recording"
    )


def _slack(declared_seconds: float) -> float:
    return max(DURATION_SLACK_SECONDS, DURATION_SLACK * declared_seconds)


def _listed(problems: Sequence[str]) -> str:
    shown = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_SHOWN])
    rest = len(problems) - PROBLEMS_SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    noun = "problem" if len(problems) == 1 else "problems"
    return f"{len(problems)} {noun} with the clips; nothing was run:{shown}{more}"
