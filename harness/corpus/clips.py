"""The clips of a run: found, decoded and checked completely before anything is measured."""

from __future__ import annotations

import contextlib
import logging
import math
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

from asrgate.backends.base import AUTO, AsrgateError
from asrgate.backends.installation import shipped
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.corpus import languages, parts
from asrgate.harness.corpus.manifests import Entry, read, read_manifest

ON_REQUEST = "on_request"
BUNDLED_MANIFEST = shipped(
    "audio_samples/manifest.jsonl", Path(__file__).resolve().parent / "bundled" / "manifest.jsonl"
)

DEFAULT_LANGUAGE = "en"
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
        audio_seconds: length of the decoded audio, or of the part of it that is meant.
        sha256: of the decoded samples, see asrgate.harness.corpus.audio.sha256.
        language: Whisper's code, see asrgate.harness.corpus.languages.
        reference: what is said; "" if nothing is, None if unknown.
        tags: everything else in the manifest, including its `duration` if that disagrees with the audio,
            and the `offset` of a part.
        is_language_told: whether the manifest or the caller names the language; else it is DEFAULT_LANGUAGE.
        is_detected: whether engines have to detect the language, and are not told it.
    """

    name: str
    path: Path
    audio_seconds: float
    sha256: str
    language: str
    reference: str | None
    tags: Mapping[str, Any] = field(default_factory=dict)
    is_language_told: bool = True
    start_seconds: float | None = None  # as in Entry, like the next
    declared_seconds: float | None = None
    is_detected: bool = False

    @property
    def call_language(self) -> str:
        """What an engine is told: the language, or that it has to detect it."""
        return AUTO if self.is_detected else self.language

    def samples(self) -> np.ndarray:
        """Decode the file, or the part of it, again: float32, shape (samples,), mono, 16 kHz, in [-1, 1].

        Raises:
            AudioError: the file is gone or has changed since the clip was loaded.
        """
        # with a margin for rounding; a part's recording may be longer, and was found short enough before
        is_whole = self.start_seconds is None and self.declared_seconds is None
        most_hours = self.audio_seconds / 3600 * 1.01 if is_whole else math.inf
        with contextlib.suppress(audio_file.TooLong):
            samples = parts.read(self.path, self.start_seconds, self.declared_seconds, most_hours).samples
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
    """Return the clips of a manifest and of files and folders, or bundled ones if neither is given.

    Of the bundled clips those are left out that have the field `on_request`: a first look takes a minute.

    Args:
        audio: files (`name.txt` next to `name.wav` is its reference), manifests, and folders. A folder with a
            manifest.jsonl is read through it; any other is searched for audio, with references from
            `name.txt` next to it or from a LibriSpeech `*.trans.txt`.
        manifest: a manifest file.
        language: replaces every clip's language, by name or code; without it, English if a manifest names
            none.
        max_hours: how long a file of audio may be.

    Raises:
        CorpusError: any file or line is wrong; the message lists all problems.
        LanguageError: Whisper knows no such language.
    """
    if language is not None:
        language = languages.code_of(language)
    problems: list[str] = []
    entries = [] if manifest is None else read_manifest(Path(manifest), problems, language)
    if manifest is None and not audio:
        bundled = read_manifest(BUNDLED_MANIFEST, problems, language)
        entries = [entry for entry in bundled if not entry.tags.get(ON_REQUEST)]
    for path in map(Path, audio):
        entries += read(path, problems, language)
    entries = _without_repeats(entries, problems)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter's lock
        checked = list(pool.map(_check, entries, _names(entries), repeat(language), repeat(max_hours)))
    problems += [outcome for outcome in checked if isinstance(outcome, str)]
    if problems:
        raise CorpusError(_listed(problems))
    return [outcome for outcome in checked if isinstance(outcome, Clip)]


def _without_repeats(entries: list[Entry], problems: list[str]) -> list[Entry]:
    first: dict[tuple[str, float | None, float | None], Entry] = {}
    for entry in entries:
        length = None if entry.start_seconds is None else entry.declared_seconds
        original = first.setdefault((os.path.realpath(entry.path), entry.start_seconds, length), entry)
        if original is not entry:
            problems.append(f"{entry.where}: {entry.path.name} is already listed at {original.where}")
    return list(first.values())


def _names(entries: Sequence[Entry]) -> list[str]:
    """Return a unique name for each: the shortest path that distinguishes it from the others."""

    def safe(path: Path) -> str:
        return re.sub(r"[^\w./+-]+", "_", path.as_posix())

    def named(entry: Entry) -> Path:
        path = Path(os.path.relpath(entry.path, entry.root))
        start = "" if entry.start_seconds is None else f"-{entry.start_seconds:.3f}"
        return path.with_name(f"{path.stem}{start}{path.suffix}")

    relative = [named(entry) for entry in entries]
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
        sound = parts.measure(entry.path, entry.start_seconds, entry.declared_seconds, max_hours)
    except AsrgateError as error:
        return str(error) if entry.where == str(entry.path) else f"{entry.where}: {error}"
    seconds = sound.seconds
    tags = dict(entry.tags)
    if sound.remark is not None:
        _log.warning("%s: %s", entry.where, sound.remark)
        tags["duration"] = entry.declared_seconds
    if sound.is_unfinished:
        _log.warning("%s: %s", entry.path, parts.UNFINISHED)
    if entry.start_seconds is not None:
        tags["offset"] = entry.start_seconds
    return Clip(
        name=name,
        path=entry.path,
        audio_seconds=seconds,
        sha256=sound.sha256,
        language=language or entry.language or DEFAULT_LANGUAGE,
        reference=entry.reference,
        tags=tags,
        is_language_told=bool(language or entry.language),
        start_seconds=entry.start_seconds,
        declared_seconds=entry.declared_seconds,
    )


def _listed(problems: Sequence[str]) -> str:
    shown = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_SHOWN])
    rest = len(problems) - PROBLEMS_SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    noun = "problem" if len(problems) == 1 else "problems"
    return f"{len(problems)} {noun} with the clips; nothing was run:{shown}{more}"
