"""Text that engines write although nobody said it: insertions per minute, repeated 5-grams, text on silence.

It is counted from the record of a run whose clips have the field `hallucination`, such as those that
`asrgate corpus make hallucination` writes. The field's value is the kind of the clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from asrgate.harness.metrics.normalizers import NormalizerError
from asrgate.harness.metrics.word_errors import Texts, first_answers
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import ClipRecord, Result, Run

FIELD = "hallucination"
ALL = "all"
GRAM_WORDS = 5


def rows(run: Run) -> list[dict[str, Any]]:
    """Return one row for each kind and measured variant, then one over all kinds; [] without such clips.

    Columns: kind, variant, clips, audio_seconds, insertions_per_minute, repeated_5grams (None if the texts
    are left out or cannot be normalised here), silent_clips, text_on_silence. Only answered clips count.
    """
    clips = [clip for clip in run["clips"] if FIELD in clip["tags"]]
    kinds = list(dict.fromkeys(str(clip["tags"][FIELD]) for clip in clips))
    try:
        texts = Texts(run, run["scoring"]["normalizer"]["name"]) if run["settings"]["texts"] else None
    except NormalizerError:
        texts = None
    found = []
    for kind in [*kinds, *([ALL] if kinds else [])]:
        members = [clip for clip in clips if kind in (ALL, str(clip["tags"][FIELD]))]
        found += [
            {"kind": kind, **_row(result, members, texts)}
            for result in run["results"]
            if result["status"] != "unavailable"
        ]
    return found


def repeated_grams(text: Sequence[str], reference: Sequence[str], size: int = GRAM_WORDS) -> int:
    """Count the runs of `size` words that occur more than once, and more often than in the reference.

    Each occurrence beyond the first, and beyond the number in the reference, counts as one.
    """
    said = _grams(reference, size)
    return sum(max(0, count - max(1, said[gram])) for gram, count in _grams(text, size).items())


def _row(result: Result, clips: Sequence[ClipRecord], texts: Texts | None) -> dict[str, Any]:
    first = first_answers(result)
    answered = [clip for clip in clips if clip["name"] in first]
    counted = {entry["clip"]: entry for entry in errors_of(result)}
    seconds = sum(clip["audio_seconds"] for clip in answered)
    insertions = sum(counted[clip["name"]]["insertions"] for clip in answered if clip["name"] in counted)
    silent = [clip for clip in answered if clip["reference_words"] == 0]
    grams = None
    if texts is not None and answered:
        grams = 0
        for clip in answered:
            words, said = (
                texts.normalised(text or "", clip["name"]).split()
                for text in (first[clip["name"]]["text"], clip["reference"])
            )
            grams += repeated_grams(words, said)
    return {
        "variant": result["variant"],
        "clips": len(answered),
        "audio_seconds": seconds,
        "insertions_per_minute": 60 * insertions / seconds if seconds else None,
        "repeated_5grams": grams,
        "silent_clips": len(silent),
        "text_on_silence": sum(bool(first[clip["name"]]["text_words"]) for clip in silent),
    }


def _grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[n : n + size]) for n in range(len(words) - size + 1))
