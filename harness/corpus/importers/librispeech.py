"""LibriSpeech trees: SPLIT/SPEAKER/CHAPTER/*.flac with one *.trans.txt per chapter, and SPEAKERS.TXT above.

The corpus's own README describes the layout: https://www.openslr.org/12
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asrgate.harness.corpus.importers.utterance import (
    CorpusImportError,
    Options,
    Utterance,
    read_text,
    with_extension,
)

TRANSCRIPTS = "*.trans.txt"


def recognises(path: Path) -> bool:
    """Whether a folder holds transcripts of chapters."""
    return path.is_dir() and next(path.rglob(TRANSCRIPTS), None) is not None


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Yield the tree's utterances; `options.split` keeps one of its splits, such as test-clean.

    Raises:
        CorpusImportError: no transcripts, no such split, or a line without a text.
    """
    files = sorted(path.rglob(TRANSCRIPTS))
    if not files:
        raise CorpusImportError(
            f"{path} contains no {TRANSCRIPTS}; pass the folder that LibriSpeech was unpacked to"
        )
    splits = sorted({_split(file) for file in files})
    if options.split is not None and options.split not in splits:
        raise CorpusImportError(f"{path} has no split {options.split!r}; it has {', '.join(splits)}")
    sexes = _sexes(path)
    for file in files:
        split, speaker, chapter = _split(file), file.parent.parent.name, file.parent.name
        if options.split not in (None, split):
            continue
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not line.strip():
                continue
            utterance, text = (*line.split(maxsplit=1), "")[:2]
            audio = with_extension(file.parent / utterance)
            tags = {"split": split, "speaker": speaker, "chapter": chapter}
            if speaker in sexes:
                tags["sex"] = sexes[speaker]
            yield Utterance(
                name=audio.relative_to(path).as_posix(),
                where=f"{file}:{number}",
                path=audio,
                text=text.strip(),
                language=options.language or "en",
                tags=tags,
            )


def _split(transcripts: Path) -> str:
    return transcripts.resolve().parent.parent.parent.name


def _sexes(path: Path) -> dict[str, str]:
    """Return speaker -> F or M, from SPEAKERS.TXT in the folder or up to two above it."""
    resolved = path.resolve()
    for folder in (resolved, *list(resolved.parents)[:2]):
        if (folder / "SPEAKERS.TXT").is_file():
            lines = read_text(folder / "SPEAKERS.TXT").split("\n")
            cells = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]
            return {row[0]: row[1] for row in cells if len(row) > 1 and row[1] in ("F", "M")}
    return {}
