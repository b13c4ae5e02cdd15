"""Lhotse's cuts: a JSON object per line with a recording, a part of it and its supervisions, mostly gzipped.

The fields: https://lhotse.readthedocs.io/en/latest/cuts.html. Paths are absolute, or relative to the folder
of the file, one above it or the current one, because Lhotse writes them relative to where a recipe ran.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asrgate.harness.corpus.importers.utterance import (
    CorpusImportError,
    Options,
    Utterance,
    json_lines,
    part_name,
    plain,
    read_text,
)
from asrgate.harness.corpus.stored import as_stored
from asrgate.harness.metrics import word_times

ENDINGS = (".jsonl", ".jsonl.gz")
_WRITE = "write the cuts' audio with CutSet.save_audios first"
SLACK_SECONDS = 0.2  # that a text may begin before its cut or end after it
_TAGS = ("speaker", "gender")  # of a supervision


def recognises(path: Path) -> bool:
    """Whether it is a file of lines of which the first is a cut, a recording or a supervision."""
    if path.is_dir() or not path.name.lower().endswith(ENDINGS):
        return False
    try:
        first = json.loads(read_text(path).lstrip().split("\n", 1)[0])
    except (CorpusImportError, ValueError, RecursionError):
        return path.suffix.lower() == ".gz"  # no other format is gzipped, so `read` says what is wrong
    return isinstance(first, dict) and bool({"recording", "tracks", "sources", "recording_id"} & set(first))


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Yield an utterance for each cut.

    Raises:
        CorpusImportError: a line is no cut of one channel of one file.
    """
    found = [(where, *_cut(value, where)) for where, value in json_lines(path)]
    if not found:
        raise CorpusImportError(f"{path} has no cuts; it is empty")
    files = [_file(path.parent, source) for _, _, source in found]
    root = Path(os.path.commonpath([file.parent for file in files]))
    for (where, cut, _), file in zip(found, files, strict=True):
        start, seconds = _number(cut, "start", where), _number(cut, "duration", where)
        is_part = start > 0 or abs(seconds - _number(cut["recording"], "duration", where)) > 1e-3
        name = file.relative_to(root).as_posix()
        spoken = _supervisions(cut, where)
        yield Utterance(
            name=part_name(name, start) if is_part else name,
            where=where,
            path=file,
            text=" ".join(str(one["text"]).strip() for one in spoken) if spoken else None,
            language=options.language,
            language_fields=spoken[0] if spoken else {},
            start_seconds=start if is_part else None,
            seconds=seconds,
            tags=plain(_tags(cut, spoken, where)),
        )


def _cut(cut: Any, where: str) -> tuple[dict[str, Any], str]:
    """Return a line's cut and the path in it."""
    if not isinstance(cut, dict):
        raise CorpusImportError(f"{where}: not a cut")
    if "tracks" in cut:
        raise CorpusImportError(f"{where}: a mixed cut, whose sound no file holds; {_WRITE}")
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise CorpusImportError(
            f"{where}: not a cut with its recording; make cuts of recordings and supervisions with: "
            "lhotse cut simple -r recordings.jsonl.gz -s supervisions.jsonl.gz cuts.jsonl.gz"
        )
    channel = cut.get("channel", 0)
    sources = recording.get("sources")
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise CorpusImportError(f"{where}: its recording has no list of sources")
    source = next((x for x in sources if x.get("channels") == [channel]), None)
    if source is None:
        raise CorpusImportError(f"{where}: channel {channel!r} has no file of its own; {_WRITE}")
    if source.get("type") != "file" or not isinstance(source.get("source"), str):
        raise CorpusImportError(f"{where}: its sound is a {source.get('type')!r}, not a file; {_WRITE}")
    return cut, source["source"]


def _file(folder: Path, name: str) -> Path:
    """Return where a recording lies: in the folder of the cuts, one above it or the current one."""
    folders = folder, *folder.absolute().parents, Path.cwd()
    places = [as_stored(Path(os.path.abspath(place / name))) for place in folders]
    return next((place for place in places if place.is_file()), places[0])


def _supervisions(cut: Mapping[str, Any], where: str) -> Sequence[Mapping[str, Any]]:
    """Return what is said in a cut, in the order of time; those without text are left out."""
    given = cut.get("supervisions") or []
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise CorpusImportError(f"{where}: supervisions must be a list of objects")
    said = [one for one in given if isinstance(one.get("text"), str)]
    starts = [_number(one, "start", where, least=-math.inf) for one in said]
    seconds = _number(cut, "duration", where)
    for one, start in zip(said, starts, strict=True):
        if start < -SLACK_SECONDS or start + _number(one, "duration", where) > seconds + SLACK_SECONDS:
            raise CorpusImportError(
                f"{where}: its text begins before the cut or ends after it, so it is not what the cut says; "
                "make cuts of whole supervisions with CutSet.trim_to_supervisions"
            )
    return [said[index] for index in sorted(range(len(said)), key=starts.__getitem__)]


def _tags(cut: Mapping[str, Any], spoken: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Return a cut's id, what all its supervisions have in common, and its words' times."""
    tags: dict[str, Any] = {"id": cut.get("id")}
    for name in _TAGS:
        if spoken and len(values := {str(one.get(name)) for one in spoken}) == 1 and spoken[0].get(name):
            tags[name] = values.pop()
    try:
        words = [word for one in spoken for word in word_times.of_manifest(one) or []]
    except ValueError as error:
        raise CorpusImportError(f"{where}: {error}") from error
    return {**tags, word_times.FIELD: words} if words else tags


def _number(fields: Mapping[str, Any], name: str, where: str, least: float = 0.0) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise CorpusImportError(f"{where}: {name} must be a number of seconds, not {value!r}")
    return float(value)
