"""Stored runs as data: pandas DataFrames of runs, rows, samples and clips, and paired comparisons of them.

docs/data.md has a worked example.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asrgate.backends.base import AsrgateError
from asrgate.harness.metrics import bootstrap
from asrgate.harness.report import frames, history

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["ComparisonError", "Results", "WerDifference", "load", "wer_difference"]


class ComparisonError(AsrgateError):
    """Two selections of clips cannot be paired; the message says why and what to select."""


@dataclass(frozen=True)
class Results:
    """Several runs as DataFrames; `run_id` and `variant` join them.

    Attributes:
        runs: one line per run.
        rows: one line per run and variant, with every figure of summary.csv.
        samples: one line per measured call, as in samples.csv.
        clips: one line per run, variant and clip, with the errors of the scored answer.
    """

    runs: DataFrame
    rows: DataFrame
    samples: DataFrame
    clips: DataFrame


@dataclass(frozen=True)
class WerDifference:
    """WER of two selections over the same clips, in percent, and their difference in points.

    `low_points` and `high_points` are the ends of the 95 % interval of the paired difference, None with fewer
    than two clips. `probability_worse` is the share of resamples in which NEW makes more errors.
    """

    clips: int
    base_percent: float
    new_percent: float
    difference_points: float
    low_points: float | None
    high_points: float | None
    probability_worse: float


def load(*paths: str | os.PathLike[str]) -> Results:
    """Read stored runs; each path is a run.json, its folder, or a folder of such folders.

    Every record is checked against its own samples, as `asrgate report` does.

    Raises:
        RecordError: a named path is not a record, or contradicts itself.
        HistoryError: there are no runs.
    """
    runs = history.read_runs([Path(path) for path in paths])
    return Results(
        runs=frames.of_runs(runs),
        rows=frames.of_rows(runs),
        samples=frames.of_samples(runs),
        clips=frames.of_clips(runs),
    )


def wer_difference(
    base: DataFrame, new: DataFrame, replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> WerDifference:
    """Compare two selections of `Results.clips`, such as two variants or two runs of one.

    Clips are paired by their samples' hash and resampled in pairs (asrgate.harness.metrics.bootstrap), so
    that clips which are hard for both do not widen the interval. Clips that only one side has, or without a
    reference text, are left out.

    Raises:
        ComparisonError: a side has a clip more than once, or both have none in common.
    """
    for name, side in (("base", base), ("new", new)):
        if side["clip_sha256"].duplicated().any():
            answers = side[["run_id", "variant"]].drop_duplicates().itertuples(index=False)
            told = ", ".join(f"{run_id} {variant}" for run_id, variant in answers)
            raise ComparisonError(
                f"{name} has several answers to one clip ({told}); select one variant of one run"
            )
    wanted = ["clip_sha256", "errors", "reference_words"]
    both = base[wanted].merge(new[wanted], on="clip_sha256", suffixes=("_base", "_new")).dropna()
    if not both["reference_words_base"].sum():
        raise ComparisonError(
            "the two selections have no clip with a reference text in common; "
            "compare answers to the same recordings"
        )
    values = both[["errors_base", "errors_new", "reference_words_base"]].to_numpy(dtype=np.float64)
    wrong_before, wrong_after, words = values.sum(axis=0)
    sums = bootstrap.resampled_sums(values, replicates, seed)
    differences = sums[:, 1] - sums[:, 0]
    interval = bootstrap.ratio_interval(differences, sums[:, 2]) if len(both) > 1 else None
    low, high = interval or (None, None)
    return WerDifference(
        clips=len(both),
        base_percent=float(100 * wrong_before / words),
        new_percent=float(100 * wrong_after / words),
        difference_points=float(100 * (wrong_after - wrong_before) / words),
        low_points=None if low is None else 100 * low,
        high_points=None if high is None else 100 * high,
        probability_worse=bootstrap.probability_worse(differences),
    )
