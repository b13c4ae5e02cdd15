"""Keyword recall: of the names and terms that were said, how many an engine wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asrgate.backends.base import AsrgateError
from asrgate.harness.metrics.word_errors import Sample, Texts
from asrgate.harness.record_types import KeywordRecall, Run

FIELD = "keywords"  # of a clip: a list of texts


class KeywordsError(AsrgateError):
    """A file of keywords cannot be used; the message says why."""


def read(path: Path) -> list[str]:
    """Return the keywords of a file, one a line; each may have several words.

    Raises:
        KeywordsError: it cannot be read, is not UTF-8 or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise KeywordsError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeywordsError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise KeywordsError(f"{path} names no keywords; write one a line")
    return found


def recall(run: Run, first: Mapping[str, Sample], texts: Texts) -> KeywordRecall | None:
    """Return how many of the keywords that are said a result's answers have; None if none is said.

    Keywords are those of the run and of each clip. They are normalised like the texts and looked for as whole
    words. One that is said twice and written once is found once.
    """
    said = found = 0
    for clip in run["clips"]:
        if clip["reference"] is None:
            continue
        name = clip["name"]
        reference = texts.normalised(clip["reference"], name).split()
        answer = texts.normalised(first[name]["text"] or "", name).split() if name in first else []
        asked = [*run["settings"].get("keywords", []), *clip["tags"].get(FIELD, [])]
        for term in {texts.normalised(keyword, name) for keyword in asked} - {""}:
            times = _occurrences(term.split(), reference)
            said += times
            found += min(times, _occurrences(term.split(), answer))
    return {"recall": found / said, "found": found, "said": said} if said else None


def is_field(value: Any) -> bool:
    """Whether a manifest's field holds keywords: a list of texts."""
    return isinstance(value, list) and all(isinstance(keyword, str) for keyword in value)


def _occurrences(term: Sequence[str], words: Sequence[str]) -> int:
    return sum(list(words[n : n + len(term)]) == list(term) for n in range(len(words) - len(term) + 1))
