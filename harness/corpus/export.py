"""Writes utterances as an asrgate corpus: the audio in one folder, one line each in manifest.jsonl."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError
from asrgate.harness import record
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.corpus import languages, parts
from asrgate.harness.corpus.importers import CorpusImportError, Utterance
from asrgate.harness.corpus.manifests import FOLDER_MANIFEST

AUDIO_FOLDER = "audio"
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Imported:
    """What was written: the number and length of the clips, their languages, and why others were left out."""

    manifest: Path
    clips: int
    audio_seconds: float
    without_text: int
    languages: Mapping[str, int]  # code -> clips; "" where none is named
    problems: tuple[str, ...]
    remarks: tuple[str, ...]  # what the corpus says of clips that their audio contradicts


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
    remarks: list[str] = []
    taken: set[str] = set()
    total_seconds, without_text = 0.0, 0
    spoken: Counter[str] = Counter()
    for utterance in utterances:
        if limit is not None and len(lines) + len(problems) >= limit:
            break
        try:
            language = utterance.language or languages.spoken(utterance.language_fields)
            name, seconds, found = _place(utterance, folder, taken)
        except AsrgateError as error:
            problems.append(f"{utterance.where}: {error}")
            continue
        lines.append(_line(utterance, name, seconds, language, tags or {}))
        spoken[language or ""] += 1
        remarks += [f"{utterance.where}: {remark}" for remark in found]
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
    return Imported(
        manifest, len(lines), total_seconds, without_text, spoken, tuple(problems), tuple(remarks)
    )


def listed(problems: list[str], consequence: str, remedy: str = "") -> str:
    """Return one message that counts the problems and shows the first."""
    shown = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_SHOWN])
    rest = len(problems) - PROBLEMS_SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    noun = "problem" if len(problems) == 1 else "problems"
    return f"{len(problems)} {noun}, {consequence}{'; fix them, ' + remedy if remedy else ''}:{shown}{more}"


def _place(utterance: Utterance, folder: Path, taken: set[str]) -> tuple[str, float, list[str]]:
    """Put the audio into the folder; return its path relative to the folder, its seconds, and remarks on it.

    A file that is used whole stays as it is; a part becomes a FLAC of its own.
    """
    if utterance.content is not None:
        name = _free(f"{AUDIO_FOLDER}/{utterance.name}", taken)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return name, _write_content(utterance.content, target), []
    path = utterance.path
    assert path is not None
    part = parts.read(path, utterance.start_seconds, utterance.seconds)
    seconds = len(part.samples) / SAMPLE_RATE_HZ
    remarks = [part.remark] if part.remark else []
    remarks += [parts.UNFINISHED] if part.is_unfinished else []
    if part.is_whole and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        return os.path.relpath(path, folder), seconds, remarks
    placed = f"{AUDIO_FOLDER}/{utterance.name}"
    name = _free(placed if part.is_whole else f"{os.path.splitext(placed)[0]}.flac", taken)
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.is_whole:
        shutil.copyfile(path, target)
    else:
        soundfile.write(target, part.samples, SAMPLE_RATE_HZ, subtype="PCM_16")
    return name, seconds, remarks


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


def _free(name: str, taken: set[str]) -> str:
    stem, ending = os.path.splitext(name)
    number, chosen = 2, name
    while chosen in taken:
        chosen = f"{stem}~{number}{ending}"
        number += 1
    taken.add(chosen)
    return chosen


def _line(utterance: Utterance, name: str, seconds: float, language: str | None, tags: dict[str, Any]) -> str:
    fields: dict[str, Any] = {"audio_filepath": name}
    if utterance.text is not None:
        fields["text"] = utterance.text
    fields["duration"] = round(seconds, 3)
    if language is not None:
        fields["lang"] = language
    clean = {
        key: value for key, value in utterance.tags.items() if key not in (*fields, "text", "lang", "offset")
    }
    return json.dumps(fields | clean | tags, ensure_ascii=False)
