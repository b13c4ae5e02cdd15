"""Word times: how far the starts and ends that an engine gives are from those of a manifest's `words`."""

from __future__ import annotations

import math
import reprlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jiwer

from asrgate.harness.metrics import bootstrap, word_errors
from asrgate.harness.metrics.word_errors import Sample, Texts, ratio
from asrgate.harness.record_types import Result, Run, TimedWord, TimeOffset, WordTimes

FIELD = "words"  # of a clip: a list of TimedWord
ALIGNMENT = "alignment"  # Lhotse's: {"word": [[word, start, duration, …], …]}
TEXT_NAMES = ("word", "text", "symbol")
START_NAMES = ("start", "start_time", "begin")
END_NAMES = ("end", "end_time")
PERCENTILE = 95


class _Unit(NamedTuple):
    """A word, normalised, without spaces in it."""

    text: str
    start: float
    end: float


def of_manifest(fields: Mapping[str, Any]) -> list[TimedWord] | None:
    """Return the words of a manifest's record with their times, in seconds from the clip's start.

    `words` is a list of objects with `word`, `start`, and `end` or `duration`, or others' names for these, or
    `timestamp` as [start, end], as transformers writes it. Without it, Lhotse's `alignment` is read. Another
    field of that name, such as a number of words, is none.

    Raises:
        ValueError: a word has no text, or no times of which the second is not before the first.
    """
    if (given := _list_of(fields.get(FIELD), Mapping)) is not None:
        return [_timed(word) for word in given]
    lhotse = fields.get(ALIGNMENT)
    items = _list_of(lhotse.get("word") if isinstance(lhotse, Mapping) else None, list)
    if items is None:
        return None
    return [_timed(dict(zip(("word", "start", "duration"), item, strict=False))) for item in items]


def of_clip(tags: Mapping[str, Any]) -> list[TimedWord]:
    """Return the words of a clip that have times, as `of_manifest` made them; empty if there are none."""
    return _list_of(tags.get(FIELD), Mapping) or []


def _list_of(value: Any, kind: type) -> list[Any] | None:
    """Return a value if it is a list of such items, of which there is at least one."""
    is_one = isinstance(value, list) and value and all(isinstance(item, kind) for item in value)
    return value if is_one else None


def _timed(word: Mapping[str, Any]) -> TimedWord:
    text, start, end = (_first(word, names) for names in (TEXT_NAMES, START_NAMES, END_NAMES))
    if isinstance(pair := word.get("timestamp"), (list, tuple)) and len(pair) == 2:
        start, end = pair
    if end is None and _is_time(start) and _is_time(word.get("duration")):
        end = start + word["duration"]
    if not isinstance(text, str) or not (_is_time(start) and _is_time(end) and start <= end):
        raise ValueError(
            f"a word must have word, start and end in seconds from 0, not {reprlib.repr(dict(word))}"
        )
    return {"word": text, "start": float(start), "end": float(end)}


def _first(word: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((word[name] for name in names if name in word), None)


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def beyond(words: Sequence[TimedWord], audio_seconds: float, slack_seconds: float) -> TimedWord | None:
    """Return the first word that ends after a clip does, None if there is none."""
    return next((word for word in words if word["end"] > audio_seconds + slack_seconds), None)


def count(run: Run, result: Result, first: Mapping[str, Sample], texts: Texts) -> WordTimes | None:
    """Compare what an engine said of its words with the manifest's; None if it was not asked.

    Words are normalised one by one, and aligned as for the WER. Only those count that are equal in both and
    aligned with each other; an offset is the absolute difference of two starts, or of two ends.
    """
    asked = result.get("word_answers")
    if asked is None or not asked["available"]:
        return None
    spoken = {clip["name"]: of_clip(clip["tags"]) for clip in run["clips"]}
    starts: list[float] = []
    ends: list[float] = []
    said_words = changed = 0
    over = []
    for answer in asked["answers"]:
        name = answer["clip"]
        said = list(_units(spoken.get(name, []), name, texts))
        heard = list(_units(answer["words"], name, texts))
        said_words += len(said)
        for one, other in _pairs(said, heard):
            starts.append(abs(one.start - other.start))
            ends.append(abs(one.end - other.end))
        if answer["error"] is None and name in first:
            changed += texts.edits(first[name]["text"] or "", answer["text"] or "", name)
            usual = [s["wall_seconds"] for s in word_errors.timed(result) if s["clip"] == name]
            if usual:
                over.append((answer["wall_seconds"], statistics.median(usual)))
    usual_words = sum(
        texts.words(first[a["clip"]]["text"] or "", a["clip"]) for a in asked["answers"] if a["clip"] in first
    )
    return {
        "clips": len(asked["answers"]),
        "reference_words": said_words,
        "aligned_words": len(starts),
        "start": _offset(starts),
        "end": _offset(ends),
        "changed_words": ratio(changed, usual_words),
        "over_call": ratio(sum(wall for wall, _ in over), sum(usual for _, usual in over)),
    }


def _units(words: Sequence[TimedWord], clip: str, texts: Texts) -> Iterator[_Unit]:
    """Yield each word that has something to be aligned by; a word that becomes two stays one."""
    for word in words:
        text = texts.normalised(word["word"] or "", clip).replace(" ", "_")
        if text:
            yield _Unit(text, word["start"], word["end"])


def _pairs(said: Sequence[_Unit], heard: Sequence[_Unit]) -> Iterator[tuple[_Unit, _Unit]]:
    if not said or not heard or word_errors.is_too_long(len(said), len(heard)):
        return
    found = jiwer.process_words(" ".join(unit.text for unit in said), " ".join(unit.text for unit in heard))
    for chunk in found.alignments[0]:
        if chunk.type == "equal":
            yield from zip(
                said[chunk.ref_start_idx : chunk.ref_end_idx],
                heard[chunk.hyp_start_idx : chunk.hyp_end_idx],
                strict=True,
            )


def _offset(values: Sequence[float]) -> TimeOffset | None:
    if not values:
        return None
    (high,) = bootstrap.percentiles(values, [PERCENTILE])
    return {"mean_seconds": statistics.fmean(values), "p95_seconds": high}
