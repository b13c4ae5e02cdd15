"""What every importer yields, one utterance per recording, and the errors that it raises."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrgate.backends.base import AsrgateError
from asrgate.harness.corpus.audio import EXTENSIONS
from asrgate.harness.corpus.stored import STATED_DELIMITER, as_stored
from asrgate.harness.metrics import keywords, word_times


class CorpusImportError(AsrgateError):
    """A corpus cannot be imported; the message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Options:
    """What the user said about a corpus; None means detect it."""

    split: str | None = None
    language: str | None = None  # Whisper's code, of every clip
    audio_column: str | None = None
    text_column: str | None = None
    language_column: str | None = None
    limit: int | None = None  # the maximum number of utterances
    revision: str | None = None  # of a dataset on a hub


@dataclass(frozen=True)
class Utterance:
    """One recording as a corpus names it, not decoded yet.

    Attributes:
        name: path of the audio inside the corpus, without a leading slash; unique.
        where: where it is named, for messages, such as file:line.
        path: the audio file; None if `content` holds its bytes.
        content: the bytes of an audio file, of any format that `asrgate.harness.corpus.audio` reads.
        text: what is said; "" if nothing is, None if unknown.
        language: Whisper's code, if the user or the corpus's kind says it; None: see `language_fields`.
        language_fields: as the corpus has them, see asrgate.harness.corpus.languages.
        start_seconds, seconds: the offset and duration that the corpus gives, see corpus/parts.py.
        tags: plain values only.
    """

    name: str
    where: str
    path: Path | None = None
    content: bytes | None = field(default=None, repr=False)
    text: str | None = None
    language: str | None = None
    language_fields: Mapping[str, Any] = field(default_factory=dict)
    start_seconds: float | None = None
    seconds: float | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)


def read_table(path: Path, delimiter: str | None, is_quoted: bool = True) -> list[dict[str, str]]:
    """Return a table's rows by column; missing cells are "".

    Args:
        is_quoted: whether a quote character begins a quoted cell.
        delimiter: None for the one that a first line `sep=;` states, as Excel writes it, or else for
            whichever of comma, tab, semicolon and bar is most frequent in the heading.

    Raises:
        CorpusImportError: it cannot be read, has no rows or a row has more cells than the heading.
    """
    text = read_text(path)
    stated = STATED_DELIMITER.match(text)
    if stated is not None:
        delimiter, text = delimiter or stated[1], text[stated.end() :]
    heading = text.split("\n", 1)[0]
    if delimiter is None:
        delimiter = max(",\t;|", key=heading.count)
    rows = _rows(path, text, delimiter, is_quoted)
    open_quote = _swallowing(rows, text, delimiter) if is_quoted else None
    if open_quote is None:
        return rows
    if delimiter == "\t":  # tables divided by tabs are often written without any rule for quotes
        return _rows(path, text, delimiter, False)
    raise CorpusImportError(
        f"{path}: row {open_quote} goes on over several lines and its quotes do not fit: one is never "
        "closed; double the quotes within texts, or save the table divided by tabs"
    )


def _swallowing(rows: Sequence[Mapping[str, str]], text: str, delimiter: str) -> int | None:
    """Return the number of the first row that an open quote may have filled with others; None if none is.

    Common Voice has such quotes: https://github.com/pytorch/audio/issues/2838. A cell of several lines is
    right if all quotes of the table fit.
    """
    several = (n for n, row in enumerate(rows, start=2) if any("\n" in cell for cell in row.values()))
    found = next(several, None)
    if found is None:
        return None
    try:
        list(csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True))
    except csv.Error:
        return found
    return None


def _rows(path: Path, text: str, delimiter: str, is_quoted: bool) -> list[dict[str, str]]:
    # str.splitlines would also end lines at U+2028 (https://github.com/huggingface/datasets/issues/3804)
    reader = csv.DictReader(
        io.StringIO(text, newline="\n"),
        delimiter=delimiter,
        restval="",
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
    )
    try:
        rows = list(reader)
    except csv.Error as error:
        raise CorpusImportError(f"{path}:{reader.line_num}: {error}") from error
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise CorpusImportError(
                f"{path}: row {number} has more cells than the heading; is a quote missing?"
            )
    if not rows:
        raise CorpusImportError(f"{path} has no rows; a table has a heading and one row per recording")
    return rows


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, or of a gzipped one whose name ends in .gz.

    Raises:
        CorpusImportError: it cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CorpusImportError(f"{path} cannot be read: {why}") from error
    except UnicodeDecodeError as error:
        raise CorpusImportError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def json_lines(path: Path) -> list[tuple[str, Any]]:
    """Return (place, value) for each line of JSON that is not blank.

    Raises:
        CorpusImportError: as `read_text`, or a line is no JSON.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                found.append((f"{path}:{number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise CorpusImportError(f"{path}:{number}: not JSON: {error}") from error
    return found


def part_name(name: str, start_seconds: float) -> str:
    """Return the name of the part of a recording that begins there."""
    stem, ending = os.path.splitext(name)
    return f"{stem}-{start_seconds:.3f}{ending}"


def choose_column(
    named: str | None, candidates: Sequence[str], there: Iterable[str], option: str, where: str
) -> str | None:
    """Return the named column, or else the first candidate that exists, or else None.

    Raises:
        CorpusImportError: the named column does not exist.
    """
    there = list(there)
    if named is not None:
        if named not in there:
            raise CorpusImportError(f"{where} has no column {named!r} ({option}); it has {', '.join(there)}")
        return named
    lower = {name.strip().lower(): name for name in reversed(there)}
    return next((lower[name] for name in candidates if name in lower), None)


def plain(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tags that a manifest can hold and that are not empty."""
    kept: dict[str, Any] = {}
    for name, value in tags.items():
        if isinstance(value, str) and value.strip():
            kept[name] = value.strip()
        is_number = isinstance(value, bool | int | float) and math.isfinite(value)
        is_spoken = (name == keywords.FIELD and keywords.is_field(value) and value) or (
            name == word_times.FIELD and word_times.of_clip({name: value})
        )
        if is_number or is_spoken:
            kept[name] = value
    return kept


def with_extension(path: Path) -> Path:
    """Return the path, or the audio file of that name if the extension was left out."""
    path = as_stored(path)
    if path.is_file():
        return path
    found = [Path(f"{path}{ending}") for ending in EXTENSIONS]
    return next((candidate for candidate in found if candidate.is_file()), path)
