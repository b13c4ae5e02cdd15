"""How many times as fast as the reference a variant is, judged by the rounds that both were measured in."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from asrgate.harness.metrics import bootstrap, student_t
from asrgate.harness.metrics.word_errors import timed, walls_by_clip
from asrgate.harness.record import reference_of
from asrgate.harness.record_types import Result, Run

ROUNDS_FOR_SPREAD = 3  # fewer say too little about how rounds differ
REPLICATES = 1000


class SpeedRatio(NamedTuple):
    """RTFx over that of another row, with its 95 % interval.

    Attributes:
        interval: from the scatter of the rounds; before there are ROUNDS_FOR_SPREAD of them from the clips,
            whose ratios differ by more than chance, so it is then too wide rather than too narrow. None if
            neither tells.
    """

    ratio: float
    interval: bootstrap.Interval | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width as a fraction of the ratio."""
        if self.interval is None:
            return None
        return math.sqrt(self.interval[1] / self.interval[0]) - 1


def over_reference(run: Run, result: Result) -> SpeedRatio | None:
    """Return a result's speed ratio; None if no round has all clips answered by both.

    See `between`.
    """
    reference = reference_of(run, result)
    return None if reference is None else between(run, result, reference)


def between(run: Run, result: Result, reference: Result) -> SpeedRatio | None:
    """Return how many times as fast as another a result is; None if no round has all clips answered by both.

    A round is one value, the ratio of the wall times of all its clips. Both were measured within minutes of
    each other, so what slows the whole machine cancels out. The ratio is the geometric mean of the rounds'
    (Fleming & Wallace, "How not to lie with statistics", 1986).
    """
    ours, theirs = _walls_by_round(run, result), _walls_by_round(run, reference)
    logs = [math.log(theirs[number] / ours[number]) for number in sorted(ours.keys() & theirs.keys())]
    if not logs:
        return None
    mean = sum(logs) / len(logs)
    if result is reference:
        return SpeedRatio(1.0, (1.0, 1.0))
    if len(logs) < ROUNDS_FOR_SPREAD:
        return SpeedRatio(math.exp(mean), _over_clips(run, result, reference))
    half = student_t.half_width(logs) or 0.0
    return SpeedRatio(math.exp(mean), (math.exp(mean - half), math.exp(mean + half)))


def _walls_by_round(run: Run, result: Result) -> dict[int, float]:
    """Return the number of each round in which every clip was answered -> its wall seconds."""
    rounds: dict[int, list[float]] = {}
    for sample in timed(result):
        rounds.setdefault(sample["round"], []).append(sample["wall_seconds"])
    return {number: sum(walls) for number, walls in rounds.items() if len(walls) == len(run["clips"])}


def _over_clips(run: Run, result: Result, reference: Result) -> bootstrap.Interval | None:
    ours, theirs = walls_by_clip(result), walls_by_clip(reference)
    both = sorted(ours.keys() & theirs.keys())
    if len(both) < 2:
        return None
    sums = np.array([[sum(theirs[clip]), sum(ours[clip])] for clip in both])
    drawn = bootstrap.resampled_sums(sums, REPLICATES, run["settings"]["seed"])
    return bootstrap.ratio_interval(drawn[:, 0], drawn[:, 1])
