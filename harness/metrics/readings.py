"""What a WER owes to its reading: a second normaliser, the texts as written, and the words behind both."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import jiwer

from asrgate.harness.metrics import keywords, word_errors
from asrgate.harness.metrics.word_errors import Sample, Texts, errors
from asrgate.harness.record import reference_of
from asrgate.harness.record_types import Result, Run, WordErrorRate, WordPair

SHOWN = 10  # word pairs that are kept
POINTS = 0.005  # two readings that differ by more are told of
LONGEST = 4  # words on either side of a pair: longer ones are other sentences
MOST_CHARACTERS = 200  # of either side; what follows is cut
ABSENT = ""  # in place of a word that the other text lacks


def add(run: Run, firsts: Mapping[str, Mapping[str, Sample]], texts: Texts, second: Texts) -> None:
    """Fill `second`, `formatted`, `confusions` and, where any is said, `keywords` of each result's `wer`.

    Args:
        firsts: variant -> its answers that are scored.
        texts: under the run's normaliser, as `wer` was counted.
        second: under the second one.
    """
    is_formatted = _is_formatted([clip["reference"] for clip in run["clips"] if clip["reference"]])
    written = Texts(run, "formatted") if is_formatted else None
    for result in run["results"]:
        wer, first = result["wer"], firsts[result["variant"]]
        counted = None if wer is None else word_errors.count(run, result, first, second)
        if wer is None or counted is None:
            continue
        wer["second"] = {
            "wer": counted["wer"],
            "cer": counted["cer"],
            "substitutions": counted["substitutions"],
            "deletions": counted["deletions"],
            "insertions": counted["insertions"],
            "reference_words": counted["reference_words"],
            "differences": _pairs(_differences(run, wer, counted, first, texts, second)),
        }
        wer["formatted"] = None if written is None else word_errors.wer_only(run, first, written)
        spoken = keywords.recall(run, first, texts)
        if spoken is not None:
            wer["keywords"] = spoken
        wer["confusions"] = _pairs(_confusions(run, wer, first, texts))


def _pairs(counts: Counter[tuple[str, str]]) -> list[WordPair]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"reference": _cut(said), "text": _cut(heard), "count": count}
        for (said, heard), count in ordered[:SHOWN]
    ]


def _cut(words: str) -> str:
    return words if len(words) <= MOST_CHARACTERS else f"{words[:MOST_CHARACTERS]}…"


def _confusions(
    run: Run, wer: WordErrorRate, first: Mapping[str, Sample], texts: Texts
) -> Counter[tuple[str, str]]:
    """Count (word said, word heard) of every error; ABSENT stands for a word that is missing."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong = {entry["clip"] for entry in wer["per_clip"] if errors(entry)}
    for clip in run["clips"]:
        if clip["name"] not in wrong or clip["name"] not in first:  # an answer that failed confused nothing
            continue
        said = texts.normalised(clip["reference"] or "", clip["name"]).split()
        heard = texts.normalised(first[clip["name"]]["text"] or "", clip["name"]).split()
        for one, other in _aligned(said, heard):
            counts.update(zip_longest(one, other, fillvalue=ABSENT))
    return counts


def _differences(
    run: Run,
    wer: WordErrorRate,
    counted: WordErrorRate,
    first: Mapping[str, Sample],
    texts: Texts,
    other: Texts,
) -> Counter[tuple[str, str]]:
    """Count the passages, as written, that have more errors in one reading than in the other."""
    counts: Counter[tuple[str, str]] = Counter()
    theirs = {entry["clip"]: entry for entry in counted["per_clip"]}
    ours = {entry["clip"]: entry for entry in wer["per_clip"]}
    for clip in run["clips"]:
        name = clip["name"]
        if name not in ours or name not in first or errors(ours[name]) == errors(theirs[name]):
            continue
        said, heard = _written(clip["reference"] or ""), _written(first[name]["text"] or "")
        for one, another in _aligned(said, heard, folded=True):
            if max(len(one), len(another)) > LONGEST:
                continue
            pair = " ".join(one), " ".join(another)
            if texts.edits(*pair, name) != other.edits(*pair, name):
                counts[pair] += 1
    return counts


def _written(text: str) -> list[str]:
    """Return the words as written, without punctuation at their ends."""
    words = []
    for word in text.split():
        start, end = 0, len(word)
        while start < end and unicodedata.category(word[start])[0] == "P":
            start += 1
        while end > start and unicodedata.category(word[end - 1])[0] == "P":
            end -= 1
        words.append(word[start:end] or word)
    return words


def _aligned(
    said: list[str], heard: list[str], folded: bool = False
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the passages in which two texts differ; word by word where they are of equal length.

    Nothing of texts that are too long to be aligned: no word of one is known to stand for one of the other.

    Args:
        folded: whether words that differ in their case alone are equal.
    """
    if word_errors.is_too_long(len(said), len(heard)):
        return
    if not said or not heard:
        yield said, heard
        return
    reference, text = (" ".join(w.lower() if folded else w for w in words) for words in (said, heard))
    (chunks,) = jiwer.process_words(reference, text).alignments
    waiting: tuple[list[str], list[str]] = [], []
    for chunk in chunks:
        if chunk.type == "equal":
            yield from _split(*waiting)
            waiting = [], []
        else:
            waiting[0].extend(said[chunk.ref_start_idx : chunk.ref_end_idx])
            waiting[1].extend(heard[chunk.hyp_start_idx : chunk.hyp_end_idx])
    yield from _split(*waiting)


def _split(one: list[str], other: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    if len(one) == len(other):
        yield from (([a], [b]) for a, b in zip(one, other, strict=True))
    elif one or other:
        yield one, other


def _is_formatted(references: list[str]) -> bool:
    """Whether most texts have case or punctuation, so that engines can be held to theirs."""

    def is_written(text: str) -> bool:
        ends = any(c in ".,?!;:\u3002\u3001\uff0c\uff1f\uff01\u0964\u061f\u060c" for c in text)
        return ends or text not in (text.lower(), text.upper())

    return bool(references) and 2 * sum(map(is_written, references)) > len(references)


def shown(pair: Mapping[str, Any]) -> str:
    """Return a pair as said/heard; ∅ stands for no word."""
    return f"{_cut(pair['reference']) or '∅'}/{_cut(pair['text']) or '∅'}"


def remarks(run: Run) -> list[str]:
    """Return a line if a run's two readings differ by more than POINTS, and one for each other verdict."""
    identity = run["scoring"].get("second")
    both = [
        (result, own, other)
        for result in run["results"]
        if (own := _own(result)) is not None and (other := _second(result)) is not None
    ]
    if identity is None or not both:
        return []
    names = run["scoring"]["normalizer"]["name"], identity["name"]
    lines = []
    apart = [(abs(own - other), result) for result, own, other in both if abs(own - other) > POINTS]
    if apart:
        _, most = max(apart, key=lambda entry: entry[0])
        reading = None if most["wer"] is None else most["wer"].get("second")
        pairs = [] if reading is None else reading.get("differences", [])[:5]
        words = ", ".join(f"{pair['count']} × {shown(pair)}" for pair in pairs)
        others = f" (and {len(apart) - 1} more)" if len(apart) > 1 else ""
        lines.append(
            f"the normalisers {names[0]} and {names[1]} differ by more than {100 * POINTS:g} point: "
            f"{most['variant']}{others} has a WER of {100 * (_own(most) or 0):.2f} % under {names[0]} and "
            f"{100 * (_second(most) or 0):.2f} % under {names[1]}{': ' + words if words else ''}"
        )
    for result, _, _ in both:
        fits, fits_second = (_is_fit(run, result, reading) for reading in (_own, _second))
        if fits != fits_second:
            lines.append(
                f"{result['variant']}: its WER is {'within' if fits else 'beyond'} the gate's limits under "
                f"{names[0]}, by which the gate judges, but {'within' if fits_second else 'beyond'} them "
                f"under {names[1]}"
            )
    return lines


def _own(result: Result) -> float | None:
    return None if result["wer"] is None else result["wer"]["wer"]


def _second(result: Result) -> float | None:
    second = None if result["wer"] is None else result["wer"].get("second")
    return None if second is None else second["wer"]


def _is_fit(run: Run, result: Result, reading: Callable[[Result], float | None]) -> bool:
    """Whether the WER that `reading` takes from a result keeps the gate's ceiling and tolerance."""
    settings = run["settings"]
    reference = reference_of(run, result)
    ours, theirs = reading(result), None if reference is None else reading(reference)
    if ours is None or ours > settings["max_wer"]:
        return False
    return theirs is None or ours - theirs <= settings["wer_tolerance"] + 1e-12
