"""NeMo manifests: a JSON object per line with audio_filepath, duration, text, perhaps offset and lang.

Paths may be absolute or relative to the manifest, as NeMo reads them. The fields:
https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html. The metadata.jsonl of
Hugging Face's audio folders is read too: its names for the same are file_name and transcription.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asrgate.harness.corpus import languages
from asrgate.harness.corpus.importers.utterance import (
    CorpusImportError,
    Options,
    Utterance,
    json_lines,
    part_name,
    plain,
)
from asrgate.harness.corpus.manifests import MANIFEST_EXTENSIONS, folder_manifest, with_our_names
from asrgate.harness.corpus.stored import as_stored

_OWN = ("audio_filepath", "text", "duration", "offset")


def recognises(path: Path) -> bool:
    """Whether it is a manifest, or a folder with one."""
    if path.is_dir():
        found = folder_manifest(path)
        return found is not None and found.suffix in MANIFEST_EXTENSIONS
    return path.suffix.lower() in MANIFEST_EXTENSIONS


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Yield the manifest's utterances.

    Raises:
        CorpusImportError: a line is not a JSON object with a path, or a number is not valid.
    """
    if path.is_dir():
        path = folder_manifest(path) or path
    lines = json_lines(path)
    if not lines:
        raise CorpusImportError(f"{path} names no clips; a manifest has one JSON object per line")
    items = [(where, _fields(line, where)) for where, line in lines]
    files = [as_stored(Path(os.path.abspath(path.parent / fields["audio_filepath"]))) for _, fields in items]
    root = Path(os.path.commonpath([file.parent for file in files]))
    for (where, fields), file in zip(items, files, strict=True):
        start, seconds = _number(fields, "offset", where), _number(fields, "duration", where)
        name = file.relative_to(root).as_posix()
        if start is not None:
            name = part_name(name, start)
        yield Utterance(
            name=name,
            where=where,
            path=file,
            text=_text(fields, where),
            language=options.language,
            language_fields=fields,
            start_seconds=start,
            seconds=seconds,
            tags=plain(languages.without({key: value for key, value in fields.items() if key not in _OWN})),
        )


def _fields(fields: Any, where: str) -> dict[str, Any]:
    fields = with_our_names(fields) if isinstance(fields, dict) else {}
    name = fields.get("audio_filepath")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise CorpusImportError(f"{where}: not an object with an audio_filepath")
    return fields


def _text(fields: dict[str, Any], where: str) -> str | None:
    text = fields.get("text")
    if text is not None and not isinstance(text, str):
        raise CorpusImportError(f"{where}: text must be a string, not {text!r}")
    return text


def _number(fields: dict[str, Any], name: str, where: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise CorpusImportError(f"{where}: {name} must be a number of seconds, not {value!r}")
    return float(value)
