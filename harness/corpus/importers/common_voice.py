"""Common Voice trees: a folder per language with clips/ and one TSV per split (test.tsv, …)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asrgate.harness.corpus import languages
from asrgate.harness.corpus.importers.utterance import (
    CorpusImportError,
    Options,
    Utterance,
    plain,
    read_table,
    with_extension,
)

DEFAULT_SPLIT = "test"
CLIPS = "clips"
_TAGS = ("age", "gender", "accents", "accent", "variant", "locale", "segment")


def recognises(path: Path) -> bool:
    """Whether it is such a folder, or one of its tables."""
    folder = path if path.is_dir() else path.parent
    if not (folder / CLIPS).is_dir():
        return False
    return next(folder.glob("*.tsv"), None) is not None if path.is_dir() else path.suffix == ".tsv"


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Yield the utterances of one split: the given table, or else `options.split`, or else test.

    Raises:
        CorpusImportError: there is no such split, or its table lacks the columns path and sentence.
    """
    folder = path if path.is_dir() else path.parent
    table = path if path.is_file() else folder / f"{options.split or DEFAULT_SPLIT}.tsv"
    if not table.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.tsv"))) or "no .tsv file"
        raise CorpusImportError(f"{folder} has no split {table.stem!r}; it has {there}. Choose with --split")
    # read without quoting: sentences may begin with a quotation mark that is never closed
    rows = read_table(table, "\t", is_quoted=False)
    missing = [name for name in ("path", "sentence") if name not in rows[0]]
    if missing:
        raise CorpusImportError(f"{table} has no column {missing[0]!r}; it has {', '.join(rows[0])}")
    for number, row in enumerate(rows, start=2):
        where = f"{table}:{number}"
        if not row["path"].strip():
            raise CorpusImportError(f"{where}: the column path is empty")
        audio = with_extension(folder / CLIPS / row["path"].strip())
        tags = {"split": table.stem, "speaker": row.get("client_id", ""), **{k: row.get(k) for k in _TAGS}}
        yield Utterance(
            name=f"{CLIPS}/{audio.name}",
            where=where,
            path=audio,
            text=_unquoted(row["sentence"]),
            language=options.language,
            language_fields={"locale": row.get("locale") or languages.find(folder.resolve().name)},
            tags=plain(tags),
        )


def _unquoted(text: str) -> str:
    """Undo the quoting that some releases use and others do not."""
    text = text.strip()
    inner = text[1:-1]
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"').strip()
    return text
