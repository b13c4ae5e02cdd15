"""Reads manifests, folders and single files into entries for clips, which are not decoded yet.

A manifest has one JSON object per line with NeMo's field names: `audio_filepath` (relative to the manifest),
`text`, `offset` and `duration` in seconds, `lang` or another name for the language (see languages.py),
`words` with their times (see metrics/word_times.py); any
other field (`license`, `source`, ...) becomes a tag of the clip. Hugging Face's audio folders name the same
with `file_name` and `transcription`, in a metadata.jsonl or a metadata.csv; LJSpeech's metadata.csv has no
heading.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mimetypes
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrgate.harness.corpus import languages, stored
from asrgate.harness.corpus.audio import EXTENSIONS
from asrgate.harness.corpus.languages import LanguageError
from asrgate.harness.corpus.stored import as_stored
from asrgate.harness.metrics import keywords, word_times

MANIFEST_EXTENSIONS = (".jsonl", ".json")  # NeMo names its line-by-line manifests .json
FOLDER_MANIFEST = "manifest.jsonl"
# Ours, then Hugging Face's (https://huggingface.co/docs/datasets/audio_dataset#audiofolder), or LJSpeech's
FOLDER_MANIFESTS = (FOLDER_MANIFEST, "metadata.jsonl", "metadata.csv")
_AUDIO_NAMES = (  # NeMo's old name too: https://github.com/NVIDIA-NeMo/Speech/issues/108
    *(
        "audio_filepath",
        "audio_filename",
        "file_name",
        "audio_file_name",
        "audio_file",
        "audio_path",
        "audio",
    ),
    *("path", "wav"),
)
_TEXT_NAMES = ("text", "transcription", "sentence", "transcript")
_OF_LHOTSE = {"recording", "recording_id", "supervisions", "tracks", "sources"}
_IMPORT = "asrgate corpus import"
FILES_SHOWN = 5
_SIDE_FILES = (  # that recordings have beside them
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".lab", ".textgrid", ".srt", ".vtt", ".ctm", ".stm"),
    *(".xml", ".pdf", ".png", ".jpg", ".npy", ".pt"),
)
TRANSCRIPTS = ".trans.txt"  # LibriSpeech: one file per chapter, "utterance-id TEXT" per line

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A clip that is named but not decoded yet; fields as in Clip, None if not given."""

    path: Path
    root: Path  # names are paths relative to this folder
    where: str  # where it is named, for messages
    reference: str | None = None
    language: str | None = None
    declared_seconds: float | None = None
    start_seconds: float | None = None  # of the part that is meant; None: no offset is given
    tags: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path, problems: list[str], language: str | None = None) -> list[Entry]:
    """Return the clips that a manifest, a folder or an audio file names; add what is wrong to `problems`.

    Args:
        language: of every clip, whatever the fields of a manifest say.
    """
    if path.is_dir():
        manifest = folder_manifest(path)
        return (
            _read_folder(path, problems) if manifest is None else read_manifest(manifest, problems, language)
        )
    if path.suffix.lower() in MANIFEST_EXTENSIONS:
        return read_manifest(path, problems, language)
    if path.suffix.lower() == ".gz":
        problems.append(f"{path} is packed; unpack it with gunzip, or convert it: {_IMPORT} {path}")
        return []
    return [_single(path, problems, language)]


def folder_manifest(folder: Path) -> Path | None:
    """Return the file in a folder that says what its recordings are, None if it has none."""
    there = (folder / name for name in FOLDER_MANIFESTS if (folder / name).is_file())

    def says(path: Path) -> bool:
        return path.suffix in MANIFEST_EXTENSIONS or _names_audio(path) or is_ljspeech(path)

    return next((path for path in there if says(path)), None)


def _names_audio(table: Path) -> bool:
    """Whether a table's heading names the files."""
    heading = re.split(r'[,;\t|"\s]+', _first_line(table).lower())
    return bool(set(_AUDIO_NAMES) & set(heading))


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(10_000)
        return file.readline(10_000) if stored.STATED_DELIMITER.fullmatch(first) else first


def is_ljspeech(table: Path) -> bool:
    """Whether a table is as LJSpeech's (https://keithito.com/LJ-Speech-Dataset/), which has no heading.

    Each of its lines has the name of a file in `wavs/` without its ending, the text, and mostly the text with
    numbers and abbreviations written out, divided by bars; others write a path in place of the name.
    """
    cells = _first_line(table).rstrip("\r\n").split("|")
    return len(cells) in (2, 3) and (table.parent / _of_ljspeech(cells[0])).is_file()


def _of_ljspeech(cell: str) -> str:
    """Return the path that the first cell of a line stands for."""
    is_path = Path(cell.strip()).suffix.lower() in EXTENSIONS
    return cell.strip() if is_path else f"wavs/{cell.strip()}.wav"


def ljspeech_rows(table: Path, problems: list[str]) -> Iterable[tuple[str, dict[str, str]]]:
    """Return (place, fields) for each line; the text is the one with numbers written out, if it has one."""
    found = []
    for where, line in _lines(table, problems):
        cells = [cell.strip() for cell in line.rstrip("\r").split("|")]
        if len(cells) not in (2, 3):
            problems.append(f"{where}: has {len(cells)} cells, not id|text|normalised text")
            continue
        text = next((cell for cell in reversed(cells[1:]) if cell), "")
        found.append((where, {"audio_filepath": _of_ljspeech(cells[0]), "text": text}))
    return found


def with_our_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's fields with `audio_filepath` and `text` in place of others' names for them."""
    named = dict(fields)
    for names in (_AUDIO_NAMES, _TEXT_NAMES):
        first = next((name for name in names if name in named), None)
        if first is not None:
            value = named.pop(first)
            is_stored = isinstance(value, Mapping) and "path" in value  # as datasets writes a column of audio
            named[names[0]] = value["path"] if is_stored else value
    return named


def _single(path: Path, problems: list[str], language: str | None) -> Entry:
    """Return one file's entry: with the text next to it, or else as its folder's manifest has it."""
    text = _text_beside(path, problems)
    manifest = folder_manifest(path.parent)
    if text is None and manifest is not None:
        others: list[str] = []
        for entry in read_manifest(manifest, others, language):
            if os.path.realpath(entry.path) == os.path.realpath(path):
                return entry
        problems += others  # one of the bad lines may be this file's
    return Entry(path, path.parent, str(path), text)


def read_manifest(path: Path, problems: list[str], language: str | None = None) -> list[Entry]:
    """Return the clips of a manifest's good lines; add what is wrong with the others to `problems`.

    Args:
        language: of every clip, whatever the lines say.
    """
    before = len(problems)
    entries = []
    is_table = path.suffix.lower() not in MANIFEST_EXTENSIONS
    for where, line in _rows(path, problems) if is_table else _lines(path, problems):
        try:
            fields = line if isinstance(line, dict) else _parsed(line)
            entries.append(_manifest_entry(with_our_names(fields), path, where, language))
        except (ValueError, LanguageError) as error:
            problems.append(f"{where}: {error}")
        except RecursionError:
            problems.append(f"{where}: the JSON is nested too deeply to be read")
    if not entries and len(problems) == before:
        problems.append(f"{path} names no clips; a manifest has one JSON object per line")
    return entries


def _parsed(line: str) -> dict[str, Any]:
    """Return the fields of a line; raise ValueError if it is no JSON object."""
    try:
        fields = json.loads(line, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_int64)
        json.dumps(fields, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise ValueError("contains half of a surrogate pair, which is not valid text") from error
    if not isinstance(fields, dict):
        raise ValueError(f"is a {type(fields).__name__}, not a JSON object")
    return fields


def _rows(path: Path, problems: list[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Return (place, fields) for each row of a table; empty cells are absent, but for the text."""
    from asrgate.harness.corpus.importers import utterance  # here, because importers import this module

    if path.is_file() and is_ljspeech(path):
        return list(ljspeech_rows(path, problems))
    try:
        rows = utterance.read_table(path, None)
    except utterance.CorpusImportError as error:
        problems.append(str(error))
        return []
    kept = [{name: v for name, v in row.items() if v.strip() or name in _TEXT_NAMES} for row in rows]
    return [(f"{path}: row {n}", _with_numbers(row)) for n, row in enumerate(kept, start=2)]


def _with_numbers(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("offset", "duration"):
        with contextlib.suppress(KeyError, ValueError):  # what is no number is told as in a line of JSON
            row[name] = _finite(row[name])
    return row


def _manifest_entry(fields: dict[str, Any], manifest: Path, where: str, language: str | None) -> Entry:
    """Turn a record into an entry; raise ValueError or LanguageError saying what is wrong with it."""
    name = fields.pop("audio_filepath", None)
    if name is None and not _OF_LHOTSE.isdisjoint(fields):
        raise ValueError(f"is a line of Lhotse's; convert the whole file: {_IMPORT} {manifest}")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"audio_filepath must be a path, not {reprlib.repr(name)}")
    text = fields.pop("text", None)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text must be a string, or absent if unknown, not {reprlib.repr(text)}")
    if "keywords" in fields and not keywords.is_field(fields["keywords"]):
        raise ValueError(f"keywords must be a list of texts, not {reprlib.repr(fields['keywords'])}")
    words = word_times.of_manifest(fields)
    if words is not None:
        fields.pop(word_times.ALIGNMENT, None)
        fields[word_times.FIELD] = words
    if language is None:
        language = languages.spoken(fields)
    fields = languages.without(fields)
    duration = fields.pop("duration", None)
    if duration is not None and not (_is_number(duration) and duration > 0):
        raise ValueError(f"duration must be a number of seconds above 0, not {reprlib.repr(duration)}")
    offset = fields.pop("offset", None)
    if offset is not None and not (_is_number(offset) and offset >= 0):
        raise ValueError(f"offset must be a number of seconds from 0, not {reprlib.repr(offset)}")
    path = _inside(manifest.parent, name)
    return Entry(path, manifest.parent, where, text, language, duration, offset, fields)


def _inside(folder: Path, name: str) -> Path:
    path = as_stored(folder / name)
    # realpath, because Path.resolve raises an error for circular links
    stays = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    if Path(name).is_absolute() or not stays:
        raise ValueError(
            f"audio_filepath {name!r} is outside the manifest's folder; "
            "put the audio into that folder or below it"
        )
    return path


def _read_folder(folder: Path, problems: list[str]) -> list[Entry]:
    references: dict[Path, str] = {}  # path without extension -> text
    places: dict[Path, str] = {}
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.name.endswith(TRANSCRIPTS):
            for where, line in _lines(path, problems):
                utterance, text = (*line.split(maxsplit=1), "")[:2]
                if path.parent / utterance in references:
                    problems.append(f"{where}: {utterance} is listed twice")
                references[path.parent / utterance] = text.strip()
                places[path.parent / utterance] = where
        elif path.suffix.lower() in EXTENSIONS:
            found.append(path)
    if left_out := unused(folder):
        _log.warning("%s", told(left_out))
    deeper = sorted(path for name in FOLDER_MANIFESTS for path in folder.rglob(f"*/{name}"))
    if deeper:  # such as the splits of a dataset
        _log.warning(
            "%s is not read; pass its folder to use it: %s",
            deeper[0],
            ", ".join(str(p.parent) for p in deeper),
        )
    stems = {path.with_suffix("") for path in found}
    problems += [f"{where}: there is no audio for {p.name}" for p, where in places.items() if p not in stems]
    if not found:
        problems.append(
            f"{folder} contains no audio; looked for {', '.join(EXTENSIONS)} and {FOLDER_MANIFEST}"
        )
    entries = []
    for path in found:
        reference = references.get(path.with_suffix(""))
        if reference is None:
            reference = _text_beside(path, problems)
        entries.append(Entry(path, folder, str(path), reference))
    return entries


def unused(folder: Path) -> list[Path]:
    """Return the audio and video files below a folder that are of no format that is read.

    Those are the files of other endings that are known as audio or video, or that have a text beside them.
    There are none if the folder has a manifest, which says what is used, or is no folder.
    """
    if not folder.is_dir() or folder_manifest(folder) is not None:
        return []
    found = []
    for path in sorted(folder.rglob("*")):
        ending = path.suffix.lower()
        if path.name.startswith(".") or ending in (*EXTENSIONS, *_SIDE_FILES, "") or not path.is_file():
            continue
        kind = mimetypes.guess_type(path.name)[0] or ""
        if kind.startswith(("audio/", "video/")) or stored.text_beside(path) is not None:
            found.append(path)
    return found


def told(left_out: Sequence[Path]) -> str:
    """Return a sentence that counts and names files that are left out."""
    names = ", ".join(map(str, left_out[:FILES_SHOWN]))
    more = f" and {len(left_out) - FILES_SHOWN} more" if len(left_out) > FILES_SHOWN else ""
    files = "1 file is" if len(left_out) == 1 else f"{len(left_out)} files are"
    return f"{files} left out, because only {', '.join(EXTENSIONS)} are read: {names}{more}"


def _text_beside(path: Path, problems: list[str]) -> str | None:
    text_path = stored.text_beside(path)
    if text_path is None:
        return None
    return " ".join(line.strip() for _, line in _lines(text_path, problems))


def _lines(path: Path, problems: list[str]) -> Iterable[tuple[str, str]]:
    """Return (place, line) for each non-blank line of a UTF-8 file; add read errors to `problems`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}")
        return []
    except UnicodeDecodeError as error:
        problems.append(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8")
        return []
    if path.suffix.lower() in MANIFEST_EXTENSIONS and _is_array(text):
        problems.append(
            f"{path} is one JSON array, but a manifest has one JSON object per line; convert it with: "
            f"jq -c '.[]' {path.name} > lines.jsonl"
        )
        return []
    # split only at newlines: JSON strings and texts may contain the other separators of str.splitlines
    numbered = enumerate(text.split("\n"), start=1)
    return [(f"{path}:{number}", line) for number, line in numbered if line.strip()]


def _is_array(text: str) -> bool:
    """Whether a text is one JSON array of objects, as many tools write."""
    if not text.lstrip().startswith("["):
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and any(isinstance(item, dict) for item in found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not JSON: {text[:40]} is too large a number")
    return value


def _int64(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"not JSON: {text[:40]}{'…' if len(text) > 40 else ''} is too large a number")
    return int(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"not JSON: {name} is not a number")
