"""Writes utterances as an asrgate corpus: the audio in one folder, one line each in manifest.jsonl."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError
from asrgate.harness import record
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.corpus.importers import CorpusImportError, Utterance
from asrgate.harness.corpus.manifests import FOLDER_MANIFEST

AUDIO_FOLDER = "audio"
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Imported:
    """What was written: the number and length of the clips, and why others were left out."""

    manifest: Path
    clips: int
    audio_seconds: float
    without_text: int
    problems: tuple[str, ...]


def write(
    utterances: Iterable[Utterance],
    folder: Path,
    *,
    limit: int | None = None,
    skip_broken: bool = False,
    tags: dict[str, Any] | None = None,
) -> Imported:
    """Write manifest.jsonl into `folder` and copy the audio there, unless it is in the folder already.

    Every file is decoded once: its length goes into the manifest, and an unreadable file is a problem.

    Args:
        limit: the maximum number of clips.
        skip_broken: leave clips with problems out instead of writing nothing.
        tags: added to every line, such as where the corpus came from.

    Raises:
        CorpusImportError: a manifest already exists, there are problems, or no clip is left.
    """
    manifest = folder / FOLDER_MANIFEST
    if manifest.exists():
        raise CorpusImportError(f"{manifest} exists; choose another --output or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    problems: list[str] = []
    taken: set[str] = set()
    total_seconds, without_text = 0.0, 0
    for utterance in utterances:
        if limit is not None and len(lines) + len(problems) >= limit:
            break
        try:
            name, seconds = _place(utterance, folder, taken)
        except AsrgateError as error:
            problems.append(f"{utterance.where}: {error}")
            continue
        lines.append(_line(utterance, name, seconds, tags or {}))
        total_seconds += seconds
        without_text += utterance.text is None
    if (problems and not skip_broken) or not lines:
        for name in taken:  # only what was copied here, nothing that was in the folder before
            (folder / name).unlink(missing_ok=True)
    if problems and not skip_broken:
        raise CorpusImportError(
            listed(problems, "nothing was imported", "or pass --skip-broken to leave these out")
        )
    if not lines:
        raise CorpusImportError(
            listed(problems, "no clip is left") if problems else "the corpus contains no clips"
        )
    record.write_text(manifest, "".join(line + "\n" for line in lines))
    return Imported(manifest, len(lines), total_seconds, without_text, tuple(problems))


def listed(problems: list[str], consequence: str, remedy: str = "") -> str:
    """Return one message that counts the problems and shows the first."""
    shown = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_SHOWN])
    rest = len(problems) - PROBLEMS_SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    noun = "problem" if len(problems) == 1 else "problems"
    return f"{len(problems)} {noun}, {consequence}{'; fix them, ' + remedy if remedy else ''}:{shown}{more}"


def _place(utterance: Utterance, folder: Path, taken: set[str]) -> tuple[str, float]:
    """Put the audio into the folder; return its path relative to the folder and its length in seconds."""
    inside = utterance.path is not None and utterance.start_seconds is None
    if inside and Path(os.path.realpath(utterance.path or "")).is_relative_to(os.path.realpath(folder)):
        assert utterance.path is not None
        return os.path.relpath(utterance.path, folder), audio_file.measure(utterance.path).seconds
    name = _free(f"{AUDIO_FOLDER}/{utterance.name}", taken)
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if utterance.content is not None:
        return name, _write_content(utterance.content, target)
    assert utterance.path is not None
    if utterance.start_seconds is None:
        seconds = audio_file.measure(utterance.path).seconds
        shutil.copyfile(utterance.path, target)
        return name, seconds
    samples = _part(audio_file.decode(utterance.path), utterance)
    soundfile.write(target, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
    return name, len(samples) / SAMPLE_RATE_HZ


def _write_content(content: bytes, target: Path) -> float:
    """Store an audio file's bytes if they can be decoded; return the length in seconds."""
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=target.suffix, delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    try:
        seconds = audio_file.measure(temporary).seconds
        temporary.chmod(0o644)
        temporary.replace(target)
    except AsrgateError as error:
        raise CorpusImportError(str(error).replace(str(temporary), target.name)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return seconds


def _part(samples: np.ndarray, utterance: Utterance) -> np.ndarray:
    start = round((utterance.start_seconds or 0.0) * SAMPLE_RATE_HZ)
    length = None if utterance.seconds is None else round(utterance.seconds * SAMPLE_RATE_HZ)
    end = len(samples) if length is None else start + length
    if start >= len(samples) or end > len(samples) + 0.1 * SAMPLE_RATE_HZ:
        raise CorpusImportError(
            f"the part from {start / SAMPLE_RATE_HZ:.2f} to {end / SAMPLE_RATE_HZ:.2f} s lies beyond the end "
            f"of {utterance.path}, which lasts {len(samples) / SAMPLE_RATE_HZ:.2f} s"
        )
    return samples[start:end]


def _free(name: str, taken: set[str]) -> str:
    stem, ending = os.path.splitext(name)
    number, chosen = 2, name
    while chosen in taken:
        chosen = f"{stem}~{number}{ending}"
        number += 1
    taken.add(chosen)
    return chosen


def _line(utterance: Utterance, name: str, seconds: float, tags: dict[str, Any]) -> str:
    fields: dict[str, Any] = {"audio_filepath": name}
    if utterance.text is not None:
        fields["text"] = utterance.text
    fields["duration"] = round(seconds, 3)
    if utterance.language is not None:
        fields["lang"] = utterance.language
    clean = {
        key: value for key, value in utterance.tags.items() if key not in (*fields, "text", "lang", "offset")
    }
    return json.dumps(fields | clean | tags, ensure_ascii=False)
