"""Hugging Face datasets, streamed: only the requested rows are downloaded, and no dataset code is run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrgate.backends.checkpoints.sha256 import hash_now
from asrgate.harness.corpus import languages
from asrgate.harness.corpus.audio import EXTENSIONS
from asrgate.harness.corpus.importers import tabular
from asrgate.harness.corpus.importers.utterance import (
    CorpusImportError,
    Options,
    Utterance,
    choose_column,
    plain,
)

EXTRA = "python -m pip install datasets"
_ROWS = (".parquet", ".arrow", ".tar", ".zip")  # files that hold rows with their audio
SIGNATURES = ((b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"))


@dataclass(frozen=True)
class Source:
    """A dataset's rows as they will be read: `revision` is the commit, or the hash of a local one's files."""

    dataset: str
    config: str | None
    split: str
    revision: str


def parse(text: str) -> tuple[str, str | None, str | None]:
    """Split `ORG/NAME[:config[:split]]`; the config may be left empty.

    Raises:
        CorpusImportError: no name, or more than three parts.
    """
    name, *rest = text.split(":")
    if not name or len(rest) > 2:
        raise CorpusImportError(f"--dataset takes ORG/NAME:config:split, not {text!r}")
    config, split = (*rest, "", "")[:2]
    return name, config or None, split or None


def open_dataset(text: str, options: Options) -> tuple[Source, Iterator[Utterance]]:
    """Return the source with its revision pinned, and an iterator over its utterances.

    Args:
        text: `ORG/NAME:config:split` on the hub, or a local folder in place of `ORG/NAME`.

    Raises:
        CorpusImportError: the extra is not installed, or there is no such dataset, config, split or column.
    """
    name, config, split = parse(text)
    _require_rows(Path(name))
    try:
        import datasets
    except ImportError as error:
        raise CorpusImportError(f"Hugging Face datasets need another package: {EXTRA}") from error
    split = split or options.split
    try:
        revision = (
            _local_revision(Path(name)) if Path(name).is_dir() else _hub_revision(name, options.revision)
        )
        pinned = {} if Path(name).is_dir() else {"revision": revision}
        if split is None:
            splits = datasets.get_dataset_split_names(name, config, **pinned)
            if len(splits) != 1:
                raise CorpusImportError(f"{name} has several splits; choose one of {', '.join(splits)}")
            split = splits[0]
        rows = datasets.load_dataset(name, config, split=split, streaming=True, **pinned)
        if rows.features is None:
            rows = rows._resolve_features()
    except CorpusImportError:
        raise
    except Exception as error:  # from a dozen libraries: offline, private, misspelt or not a dataset
        raise CorpusImportError(f"cannot open {text}: {_first_line(error)}") from error
    source = Source(name, config, split, revision)
    there = list(rows.features)
    audio = options.audio_column or next(
        (column for column, kind in rows.features.items() if isinstance(kind, datasets.Audio)), None
    )
    audio = choose_column(audio, tabular.AUDIO_COLUMNS, there, "--audio-column", name)
    texts = choose_column(options.text_column, tabular.TEXT_COLUMNS, there, "--text-column", name)
    language = choose_column(
        options.language_column, tabular.LANGUAGE_COLUMNS, there, "--language-column", name
    )
    classes = {column: kind for column, kind in rows.features.items() if hasattr(kind, "int2str")}
    for column, option, what in ((audio, "--audio-column", "audio"), (texts, "--text-column", "texts")):
        if column is None:
            raise CorpusImportError(
                f"cannot tell which column of {name} holds the {what}; name it with {option}, "
                f"one of {', '.join(there)}"
            )
    assert audio is not None and texts is not None
    rows = rows.cast_column(audio, datasets.Audio(decode=False))  # our decoder is the one that is measured
    return source, _utterances(rows, source, (audio, texts, language), classes, options)


def _require_rows(folder: Path) -> None:
    """Refuse a folder of loose audio: the library would need torchcodec, and take folders for texts."""
    if not folder.is_dir():
        return
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    has_rows = any(path.suffix.lower() in _ROWS for path in files)
    if not has_rows and any(path.suffix.lower() in EXTENSIONS for path in files):
        raise CorpusImportError(
            f"{folder} is a folder of audio files, not a dataset; import it without --dataset: "
            f"asrgate corpus import {folder}"
        )


def _utterances(
    rows: Any,
    source: Source,
    columns: tuple[str, str, str | None],
    classes: Mapping[str, Any],
    options: Options,
) -> Iterator[Utterance]:
    audio, texts, language = columns
    rows = iter(rows)
    number = 0
    while True:
        where = f"{source.dataset}:{source.split} row {number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # whatever a broken download or file raises inside the library
            raise CorpusImportError(f"{where}: {_first_line(error)}") from error
        cell, text = row[audio], row[texts]
        if text is not None and not isinstance(text, str):
            raise CorpusImportError(f"{where}: the column {texts} contains {type(text).__name__}, not text")
        content, path = cell.get("bytes"), cell.get("path")
        if content is None and path and Path(path).is_file():
            content = Path(path).read_bytes()
        if content is None:
            raise CorpusImportError(f"{where}: the column {audio} contains no audio")
        yield Utterance(
            name=f"{number:06}{_ending(content, path)}",
            where=where,
            content=content,
            text=None if text is None else text.strip(),
            language=options.language,
            language_fields=_language_fields(row, language, classes, source, options),
            tags=plain(languages.without({key: value for key, value in row.items() if key not in columns})),
        )
        number += 1


def _language_fields(
    row: Mapping[str, Any], column: str | None, classes: Mapping[str, Any], source: Source, options: Options
) -> Mapping[str, Any]:
    """Return the fields that name a row's language, classes by their names; else the config, such as de."""
    told = {
        name: classes[name].int2str(value) if name in classes and isinstance(value, int) else value
        for name, value in row.items()
        if name in (*languages.FIELDS, *languages.TARGET_FIELDS, column)
    }
    if options.language_column is not None:
        return {"language": told[column or ""]}
    return told if column is not None else {**told, "lang": languages.find(source.config)}


def _ending(content: bytes, path: str | None) -> str:
    known = next((ending for start, ending in SIGNATURES if content.startswith(start)), None)
    return known or os.path.splitext(path or "")[1].lower() or ".bin"


def _hub_revision(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    sha = HfApi().dataset_info(name, revision=revision).sha
    if sha is None:
        raise CorpusImportError(f"the hub does not give a revision for {name}; pass --revision")
    return sha


def _local_revision(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of all the folder's files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + hash_now(file).encode())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
