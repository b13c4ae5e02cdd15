"""Folders of audio files, each with its text next to it: `name.wav` and `name.txt`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from asrgate.harness.corpus.audio import EXTENSIONS
from asrgate.harness.corpus.importers.utterance import CorpusImportError, Options, Utterance, read_text
from asrgate.harness.corpus.manifests import told, unused
from asrgate.harness.corpus.stored import text_beside

_log = logging.getLogger(__name__)


def recognises(path: Path) -> bool:
    """Whether a folder holds audio anywhere below it."""
    return path.is_dir() and next(_audio(path), None) is not None


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Yield the folder's recordings by name; one without a text file has no text.

    Raises:
        CorpusImportError: there is no audio, or a text is not UTF-8.
    """
    files = sorted(_audio(path)) if path.is_dir() else []
    if not files:
        raise CorpusImportError(f"{path} contains no audio; looked for {', '.join(EXTENSIONS)}")
    if left_out := unused(path):
        _log.warning("%s", told(left_out))
    for file in files:
        beside = text_beside(file)
        text = None if beside is None else " ".join(read_text(beside).split())
        name = file.relative_to(path).as_posix()
        yield Utterance(name=name, where=str(file), path=file, text=text, language=options.language)


def _audio(path: Path) -> Iterator[Path]:
    for file in path.rglob("*"):
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file():
            yield file
