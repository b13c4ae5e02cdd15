"""Parts of a run's clips, by a field of the manifest or by length: their WER and RTFx, with intervals.

Everything is derived from the record, so any stored run can be sliced by any field of its clips.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asrgate.backends.base import AsrgateError
from asrgate.harness.corpus.fields import ABSENT, LENGTH, value_of
from asrgate.harness.metrics import bootstrap
from asrgate.harness.metrics.word_errors import errors, ratio, walls_by_clip
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import ClipErrors, ClipRecord, Result, Run
from asrgate.harness.scenarios import registry

MOST_VALUES = 50  # with more rows than this it is a listing, not a comparison
AUTOMATIC = (LENGTH, "lang", "snr_db", "hallucination")  # shown by default if they divide the clips
REPLICATES = 2_000  # enough for a row's interval, in a fifth of the time of the whole run's

Slice = dict[str, Any]


class SliceError(AsrgateError):
    """Clips cannot be divided as requested; the message lists the fields that exist."""


def order(value: str) -> tuple[int, float, str]:
    """Sort key for values: buckets and numbers by size, then texts, then absent values."""
    if value == ABSENT:
        return 2, 0.0, value
    number = value.removeprefix("over ").split(" ")[0] if value.endswith(" s") else value
    try:
        return 0, float(number), value
    except ValueError:
        return 1, 0.0, value


def fields_of(run: Run) -> list[str]:
    """Return every field by which the run's clips can be divided."""
    tags = dict.fromkeys(name for clip in run["clips"] for name in clip["tags"])
    return [LENGTH, "lang", *(name for name in tags if name not in (LENGTH, "lang"))]


def chosen(run: Run) -> list[str]:
    """Return the fields by which the run's reports divide it: those requested, or else the automatic ones."""
    asked = run["settings"].get("slices")
    if asked:
        return [field for field in asked if field in fields_of(run)]
    return automatic(run)


def automatic(run: Run) -> list[str]:
    """Return the fields shown unless others are requested: those of AUTOMATIC that divide the clips."""
    return [field for field in AUTOMATIC if 1 < len(_values(run, field)) <= MOST_VALUES]


def check(clips: Sequence[tuple[float, str, Mapping[str, Any]]], fields: Sequence[str]) -> None:
    """Raise SliceError if a field is unknown or has too many values.

    Args:
        clips: audio_seconds, language and tags of each.
    """
    there = [LENGTH, "lang", *dict.fromkeys(name for _, _, tags in clips for name in tags)]
    for field in fields:
        if field not in there:
            raise SliceError(
                f"no clip has a field {field!r}; existing fields are {', '.join(dict.fromkeys(there))}"
            )
        count = len({value_of(*clip, field) for clip in clips})
        if count > MOST_VALUES:
            raise SliceError(f"{field!r} has {count} values; a slice can have at most {MOST_VALUES}")


def rows(run: Run, fields: Sequence[str] | None = None) -> list[Slice]:
    """Return a row for each field, value and measured variant, in that order; unknown figures are None.

    The columns: field, value, variant, is_ranked, clips, audio_seconds, reference_words, errors by kind,
    wer_percent and its interval, cer_percent, rtfx and its interval, latency_median_seconds. Values are in
    percent where the record has fractions. Speed is given for single-stream only, because elsewhere the time
    of a call is not that of one clip. Intervals come from bootstrap resamples of the slice's clips; None for
    one clip.
    """
    found = []
    for field in chosen(run) if fields is None else fields:
        for value in _values(run, field):
            clips = [clip for clip in run["clips"] if _value(clip, field) == value]
            found += [{"field": field, "value": value, **row} for row in _rows_of(run, clips)]
    return found


def _values(run: Run, field: str) -> list[str]:
    return sorted({_value(clip, field) for clip in run["clips"]}, key=order)


def _value(clip: ClipRecord, field: str) -> str:
    return value_of(clip["audio_seconds"], clip["language"], clip["tags"], field)


def _rows_of(run: Run, clips: Sequence[ClipRecord]) -> list[Slice]:
    lengths = {clip["name"]: clip["audio_seconds"] for clip in clips}
    measured = [result for result in run["results"] if result["status"] != "unavailable"]
    times_clips = registry.of(run).times_clips
    built, columns = [], []
    for result in measured:
        counted = {entry["clip"]: entry for entry in errors_of(result) if entry["clip"] in lengths}
        found = walls_by_clip(result) if times_clips else {}
        walls = {clip: seconds for clip, seconds in found.items() if clip in lengths}
        built.append(_row(result, lengths, list(counted.values()), walls))
        columns += [
            [errors(counted[name]) if name in counted else 0 for name in lengths],
            [counted[name]["reference_words"] if name in counted else 0 for name in lengths],
            [lengths[name] if name in walls else 0 for name in lengths],
            [statistics.median(walls[name]) if name in walls else 0 for name in lengths],
        ]
    values = np.array(columns, dtype=np.float64).reshape(-1, len(lengths)).T
    replicates = min(REPLICATES, run["scoring"]["bootstrap"]["replicates"] or REPLICATES)
    sums = bootstrap.resampled_sums(values, replicates, run["settings"]["seed"])
    for n, row in enumerate(built):
        low, high = _interval(values, sums, 4 * n)
        row["wer_low_percent"], row["wer_high_percent"] = _percent(low), _percent(high)
        row["rtfx_low"], row["rtfx_high"] = _interval(values, sums, 4 * n + 2)
    return built


def _row(
    result: Result,
    lengths: Mapping[str, float],
    counted: Sequence[ClipErrors],
    walls: Mapping[str, Sequence[float]],
) -> Slice:
    reference_words = sum(entry["reference_words"] for entry in counted)
    audio_seconds = sum(lengths[clip] * len(values) for clip, values in walls.items())
    every = [seconds for values in walls.values() for seconds in values]
    return {
        "variant": result["variant"],
        "is_ranked": result["gate"]["ranked"],
        "clips": len(lengths),
        "audio_seconds": sum(lengths.values()),
        "reference_words": reference_words,
        "substitutions": sum(entry["substitutions"] for entry in counted),
        "deletions": sum(entry["deletions"] for entry in counted),
        "insertions": sum(entry["insertions"] for entry in counted),
        "wer_percent": _percent(ratio(sum(map(errors, counted)), reference_words)),
        "wer_low_percent": None,
        "wer_high_percent": None,
        "cer_percent": _percent(
            ratio(
                sum(entry["character_errors"] for entry in counted),
                sum(entry["reference_characters"] for entry in counted),
            )
        ),
        "rtfx": ratio(audio_seconds, sum(every)),
        "rtfx_low": None,
        "rtfx_high": None,
        "latency_median_seconds": bootstrap.percentiles(every, [50])[0] if every else None,
    }


def _interval(values: np.ndarray, sums: np.ndarray, column: int) -> tuple[float | None, float | None]:
    """Interval of the ratio of a column's sum to the next one's; Nones if fewer than two clips count."""
    if np.count_nonzero(values[:, column + 1]) < 2:
        return None, None
    return bootstrap.ratio_interval(sums[:, column], sums[:, column + 1]) or (None, None)


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
