"""CSV and TSV tables with one row per recording; columns are named by the user or recognised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asrgate.harness.corpus import languages
from asrgate.harness.corpus.importers.utterance import (
    CorpusImportError,
    Options,
    Utterance,
    choose_column,
    plain,
    read_table,
    with_extension,
)
from asrgate.harness.corpus.manifests import is_ljspeech, ljspeech_rows

ENDINGS = (".csv", ".tsv")
AUDIO_COLUMNS = (
    *("audio_filepath", "audio_path", "audio", "path", "file_path", "filepath", "file_name", "filename"),
    *("file", "wav_path", "wav", "wav_filename", "clip", "audio_file"),
)
TEXT_COLUMNS = (
    *("text", "sentence", "transcript", "transcription", "reference", "raw_text", "raw_transcription"),
    *("normalized_text", "normalised_text", "label"),
)
LANGUAGE_COLUMNS = languages.FIELDS


def recognises(path: Path) -> bool:
    """Whether it is a table, or a folder with exactly one in it."""
    return _table(path) is not None


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Yield the table's utterances; paths in it are relative to it.

    Raises:
        CorpusImportError: there is no table, or the column of audio paths or of texts is not recognised.
    """
    table = _table(path)
    if table is None:
        raise CorpusImportError(
            f"{path} is neither a table nor a folder with exactly one; expected {' or '.join(ENDINGS)}"
        )
    if is_ljspeech(table):
        yield from _of_ljspeech(table, options)
        return
    rows = read_table(table, "\t" if table.suffix.lower() == ".tsv" else None)
    there = list(rows[0])
    audio = choose_column(options.audio_column, AUDIO_COLUMNS, there, "--audio-column", str(table))
    text = choose_column(options.text_column, TEXT_COLUMNS, there, "--text-column", str(table))
    language = choose_column(
        options.language_column, LANGUAGE_COLUMNS, there, "--language-column", str(table)
    )
    for column, option, what in ((audio, "--audio-column", "paths"), (text, "--text-column", "texts")):
        if column is None:
            raise CorpusImportError(
                f"cannot tell which column of {table} holds the {what}; name it with {option}, "
                f"one of {', '.join(there)}"
            )
    assert audio is not None and text is not None
    for number, row in enumerate(rows, start=2):
        where = f"{table}: row {number}"
        name = row[audio].strip()
        if not name:
            raise CorpusImportError(f"{where}: the column {audio} is empty")
        file = with_extension(table.parent / name)
        inside = Path(name.lstrip("/")) if ".." not in Path(name).parts else Path(file.name)
        used = (audio, text, language)
        yield Utterance(
            name=inside.with_suffix(file.suffix).as_posix() if not inside.suffix else inside.as_posix(),
            where=where,
            path=file,
            text=row[text].strip(),
            language=options.language,
            language_fields=row
            if language is None or not options.language_column
            else {"language": row[language]},
            tags=plain(languages.without({key: value for key, value in row.items() if key not in used})),
        )


def _of_ljspeech(table: Path, options: Options) -> Iterator[Utterance]:
    problems: list[str] = []
    rows = list(ljspeech_rows(table, problems))
    if problems:
        raise CorpusImportError("\n".join(problems))
    for where, fields in rows:
        name = fields["audio_filepath"]
        yield Utterance(
            name=name,
            where=where,
            path=table.parent / name,
            text=fields["text"],
            language=options.language,
        )


def _table(path: Path) -> Path | None:
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in ENDINGS]
        return found[0] if len(found) == 1 else None
    return path if path.suffix.lower() in ENDINGS else None
