"""What changed in one variant from one run to another: its texts, its word errors, its time.

Time is judged by rounds, the independent repeats of a run, with one value per round. docs/regression.md says
why the values are computed this way, and shows by simulation what they detect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asrgate.harness.metrics import bootstrap, mann_whitney
from asrgate.harness.metrics.word_errors import errors, is_answered, is_timed
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import ClipErrors, ClipRecord, Result, Run

SPIKE = 1.25  # a longer call, as a multiple of its clip's median, is capped at this multiple


@dataclass(frozen=True)
class TextChange:
    """Raw texts compared by hash, to the letter.

    Attributes:
        compared: clips answered in both runs.
        changed: clips none of whose texts in NEW occurs among those in BASE.
        unstable: clips whose text differs between rounds of NEW, but did not in BASE.
        deterministic: whether every compared clip kept one text through all rounds, in both runs.
    """

    compared: int
    changed: tuple[str, ...]
    unstable: tuple[str, ...]
    deterministic: bool


@dataclass(frozen=True)
class WordChange:
    """Word error rates (fractions) on the common clips that have a reference text.

    `interval` is the 95 % interval of the difference over clips, resampled in pairs; None with one clip.
    """

    base: float
    new: float
    difference: float
    interval: bootstrap.Interval | None


@dataclass(frozen=True)
class TimeChange:
    """Processing time of NEW over BASE, on the clips answered in both.

    Attributes:
        ratio: NEW over BASE with `machine` factored out; above 1 is slower.
        interval: 95 % interval of the ratio, None if there are too few rounds for one.
        p_value: two-sided, of the hypothesis that the rounds of both runs have the same distribution.
        smallest_p_value: the smallest that this number of rounds can give.
        clock_ratio, clock_p_value: the same by the clock alone, with nothing factored out.
        uncut_ratio, uncut_clock_ratio, uncut_p_value: the same with spikes at their full length.
        machine: by how much the others in the same rounds changed (median), None without others.
        others: the variants from which `machine` is computed.
        base_rounds, new_rounds: the number of values compared.
        base_spikes, new_spikes: share of calls longer than SPIKE times the median of their clip.
        stages: NEW over BASE of each stage's total by the clock, if the engine reports stages.
    """

    ratio: float
    interval: bootstrap.Interval | None
    p_value: float
    smallest_p_value: float
    clock_ratio: float
    clock_p_value: float
    uncut_ratio: float
    uncut_clock_ratio: float
    uncut_p_value: float
    machine: float | None
    others: tuple[str, ...]
    base_rounds: int
    new_rounds: int
    base_spikes: float
    new_spikes: float
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Rounds:
    """One variant's time by round in both runs: round number -> log of its seconds over the clips.

    Spikes are capped in `base` and `new`, and left in the other two.
    """

    base: Mapping[int, float]
    new: Mapping[int, float]
    base_uncut: Mapping[int, float]
    new_uncut: Mapping[int, float]
    base_spikes: float
    new_spikes: float


def common_clips(base: Run, new: Run) -> list[str]:
    """Names of the clips that are the same in both runs: samples, language and reference text."""
    before = {_identity(clip) for clip in base["clips"]}
    return [clip["name"] for clip in new["clips"] if _identity(clip) in before]


def compare_texts(base: Result, new: Result, clips: Sequence[str]) -> TextChange:
    """Compare the texts of all rounds by their hashes."""
    before, after = _hashes(base, clips), _hashes(new, clips)
    both = [clip for clip in clips if before[clip] and after[clip]]
    return TextChange(
        compared=len(both),
        changed=tuple(clip for clip in both if not before[clip] & after[clip]),
        unstable=tuple(clip for clip in both if len(before[clip]) == 1 < len(after[clip])),
        deterministic=all(len(before[clip]) == len(after[clip]) == 1 for clip in both),
    )


def compare_words(base: Result, new: Result, clips: Sequence[str], seed: int = 0) -> WordChange | None:
    """Compare word errors from the stored counts of each clip; None if no common clip has any."""
    before, after = _counts(base), _counts(new)
    both = [clip for clip in clips if clip in before and clip in after]
    values = np.array(
        [[errors(before[c]), errors(after[c]), after[c]["reference_words"]] for c in both], dtype=np.float64
    ).reshape(-1, 3)
    wrong_before, wrong_after, words = values.sum(axis=0)
    if not words:
        return None
    interval = None
    if np.count_nonzero(values[:, 2]) > 1:
        sums = bootstrap.resampled_sums(values, seed=seed)
        interval = bootstrap.ratio_interval(sums[:, 1] - sums[:, 0], sums[:, 2])
    return WordChange(
        base=wrong_before / words,
        new=wrong_after / words,
        difference=(wrong_after - wrong_before) / words,
        interval=interval,
    )


def rounds(base: Result, new: Result, clips: Sequence[str]) -> Rounds | None:
    """Return a variant's time by round, over the clips that it answered in every round of both runs.

    None if there is no such clip.
    """
    before, after = _walls(base), _walls(new)
    numbers = [sorted({number for number, _ in walls}) for walls in (before, after)]
    usable = [
        clip
        for clip in clips
        if all((number, clip) in before for number in numbers[0])
        and all((number, clip) in after for number in numbers[1])
    ]
    if not usable or not all(numbers):
        return None
    cut: list[dict[int, float]] = []
    uncut: list[dict[int, float]] = []
    spikes: list[float] = []
    for walls, present in zip((before, after), numbers, strict=True):
        seconds = np.array([[walls[number, clip] for clip in usable] for number in present])
        ceiling = SPIKE * np.median(seconds, axis=0)
        for logs, values in ((cut, np.minimum(seconds, ceiling)), (uncut, seconds)):
            logs.append(dict(zip(present, np.log(values.sum(axis=1)).tolist(), strict=True)))
        spikes.append(float(np.mean(seconds > ceiling)))
    return Rounds(cut[0], cut[1], uncut[0], uncut[1], spikes[0], spikes[1])


def compare_times(own: Rounds, others: Mapping[str, Rounds], stages: Mapping[str, float]) -> TimeChange:
    """Compare a variant's rounds after factoring out the machine, as the other backends' rounds show it.

    Args:
        own: the variant's rounds.
        others: other backends' variants, measured in the same rounds, whose own work did not change.
        stages: as `compare_stages` returns them.
    """
    base, new = _without_machine(own, others, ("base", "new"))
    uncut = _without_machine(own, others, ("base_uncut", "new_uncut"))
    by_clock = list(own.base.values()), list(own.new.values())
    clock = mann_whitney.shift(*by_clock)
    ratio = mann_whitney.shift(base, new)
    interval = mann_whitney.shift_interval(base, new)
    return TimeChange(
        ratio=math.exp(ratio),
        interval=None if interval is None else (math.exp(interval[0]), math.exp(interval[1])),
        p_value=mann_whitney.mann_whitney(base, new),
        smallest_p_value=mann_whitney.smallest_p_value(len(base), len(new)),
        uncut_ratio=math.exp(mann_whitney.shift(*uncut)),
        uncut_clock_ratio=math.exp(
            mann_whitney.shift(list(own.base_uncut.values()), list(own.new_uncut.values()))
        ),
        uncut_p_value=mann_whitney.mann_whitney(*uncut),
        clock_ratio=math.exp(clock),
        clock_p_value=mann_whitney.mann_whitney(*by_clock),
        machine=math.exp(clock - ratio) if others else None,
        others=tuple(others),
        base_rounds=len(base),
        new_rounds=len(new),
        base_spikes=own.base_spikes,
        new_spikes=own.new_spikes,
        stages=stages,
    )


def compare_stages(base: Result, new: Result, clips: Sequence[str]) -> dict[str, float]:
    """Return NEW over BASE of the mean seconds per call in each stage that both report."""
    before, after = _stage_means(base, clips), _stage_means(new, clips)
    return {stage: after[stage] / before[stage] for stage in before if stage in after and before[stage] > 0}


def _without_machine(
    own: Rounds, others: Mapping[str, Rounds], sides: tuple[str, str]
) -> tuple[list[float], list[float]]:
    """Return the variant's values in both runs minus the median of the others in the same round.

    Each of the others is taken relative to its own median in BASE, so that slow and fast ones weigh the same.
    `sides` are the fields of Rounds to use, that of BASE first.
    """
    whole = (list(getattr(own, sides[0]).values()), list(getattr(own, sides[1]).values()))
    levels = {name: float(np.median(list(getattr(r, sides[0]).values()))) for name, r in others.items()}
    found: tuple[list[float], list[float]] = ([], [])
    for side, values in zip(sides, found, strict=True):
        for number, value in getattr(own, side).items():
            beside = [
                getattr(other, side)[number] - levels[name]
                for name, other in others.items()
                if number in getattr(other, side)
            ]
            if beside:
                values.append(value - float(np.median(beside)))
    return found if all(found) else whole  # whole if none was measured in the same rounds


def _hashes(result: Result, clips: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {clip: set() for clip in clips}
    for sample in result["samples"]:
        if is_answered(sample) and sample["clip"] in found:
            found[sample["clip"]].add(sample["text_sha256"] or "")
    return found


def _counts(result: Result) -> dict[str, ClipErrors]:
    return {entry["clip"]: entry for entry in errors_of(result)}


def _walls(result: Result) -> dict[tuple[int, str], float]:
    return {
        (sample["round"], sample["clip"]): sample["wall_seconds"]
        for sample in result["samples"]
        if is_timed(sample) and sample["wall_seconds"]
    }


def _stage_means(result: Result, clips: Sequence[str]) -> dict[str, float]:
    wanted = set(clips)
    answered = [s for s in result["samples"] if is_answered(s) and s["clip"] in wanted]
    totals: dict[str, float] = {}
    for sample in answered:
        for stage, seconds in sample["stage_seconds"].items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return {stage: total / len(answered) for stage, total in totals.items()}


def _identity(clip: ClipRecord) -> tuple[Any, ...]:
    return clip["name"], clip["sha256"], clip["language"], clip["reference_sha256"]
