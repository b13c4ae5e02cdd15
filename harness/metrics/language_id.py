"""Language identification: of the clips whose language is known, how many an engine took for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from asrgate.backends.base import AUTO
from asrgate.harness.record_types import LanguageIdentification, Run, Sample

UNANSWERED = ""  # in place of a language that was not detected


def is_asked(run: Run) -> bool:
    """Whether engines had to detect the language of each clip (`--language auto`)."""
    return run["settings"]["decoding"].get("language") == AUTO


def count(run: Run, first: Mapping[str, Sample]) -> LanguageIdentification | None:
    """Count the languages that a result's first answers name; None if nothing was asked or is known.

    A clip without an answer counts as wrong, as its words do.
    """
    told = [clip for clip in run["clips"] if clip.get("language_told", True)]
    if not is_asked(run) or not told or not first:
        return None
    detected = {clip: sample.get("language", UNANSWERED) for clip, sample in first.items()}
    found = [(clip["language"], detected.get(clip["name"], UNANSWERED)) for clip in told]
    wrong = Counter(pair for pair in found if pair[0] != pair[1])
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    right = len(found) - sum(wrong.values())
    return {
        "accuracy": right / len(found),
        "right": right,
        "clips": len(found),
        "mistakes": [{"spoken": a, "detected": b, "count": count} for (a, b), count in ordered],
    }
