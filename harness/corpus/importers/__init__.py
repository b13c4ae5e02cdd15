"""Reads corpora in other formats into utterances. There is one file per format, and one table of them.

To add a format, write one file with `recognises(path)` and `read(path, options)` and add its line to FORMATS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from asrgate.backends.base import did_you_mean
from asrgate.harness.corpus.importers import common_voice, folder, lhotse, librispeech, nemo, tabular
from asrgate.harness.corpus.importers.utterance import CorpusImportError, Options, Utterance

__all__ = ["FORMATS", "CorpusImportError", "Options", "Utterance", "detect", "read"]

FORMATS: dict[str, ModuleType] = {  # in the order in which a path is tried
    "common-voice": common_voice,
    "librispeech": librispeech,
    "lhotse": lhotse,
    "nemo": nemo,
    "table": tabular,
    "folder": folder,
}


def detect(path: Path) -> str:
    """Return the name of the first format that recognises the path.

    Raises:
        CorpusImportError: it does not exist, or no format recognises it.
    """
    if not path.exists():
        raise CorpusImportError(f"{path} does not exist; check the path")
    for name, module in FORMATS.items():
        if module.recognises(path):
            return name
    raise CorpusImportError(
        f"{path} is not a corpus that asrgate recognises; name its format with --format: {', '.join(FORMATS)}"
    )


def read(path: Path, name: str | None, options: Options) -> Iterator[Utterance]:
    """Yield the utterances of a corpus on disk.

    Args:
        name: the name of its format; None to detect it.

    Raises:
        CorpusImportError: there is no such format, or the corpus's own files are wrong.
    """
    if name is not None and name not in FORMATS:
        raise CorpusImportError(
            f"no corpus format is called {name!r}.{did_you_mean(name, FORMATS)} "
            f"Available: {', '.join(FORMATS)}"
        )
    if not path.exists():
        raise CorpusImportError(f"{path} does not exist; check the path")
    yield from FORMATS[name or detect(path)].read(path, options)
