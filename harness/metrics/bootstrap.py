"""Statistics on plain numbers: bootstrap intervals, paired probabilities, percentiles.

The bootstrap resamples whole utterances with replacement, because errors inside one utterance depend on each
other (Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP
2004). Intervals are percentile intervals (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13). Utterances of one speaker are not independent either, so with few speakers the intervals are too
narrow (Liu & Peng 2019, https://arxiv.org/abs/1912.09508).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REPLICATES = 10_000
LEVEL = 0.95
_BLOCK_COUNTS = 2_000_000  # resampling counts in memory at once: 16 MB of float64, however many utterances

Interval = tuple[float, float]


def resampled_sums(values: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Return column sums over bootstrap resamples of the rows.

    Columns are resampled together, so ratios and differences of the returned columns are paired. The same
    seed and number of rows give the same resamples, whatever the columns contain.

    Args:
        values: shape (utterances, columns); at least one utterance.
        replicates: the number of resamples, each with as many rows as `values`.
        seed: any integer.

    Returns:
        float64, shape (replicates, columns).
    """
    values = np.asarray(values, dtype=np.float64)
    utterances = len(values)
    rng = np.random.default_rng(seed % 2**64)
    sums = np.empty((replicates, values.shape[1]))
    block = max(1, _BLOCK_COUNTS // utterances)
    counts = np.empty((min(block, replicates), utterances))
    for start in range(0, replicates, block):
        size = min(block, replicates - start)
        for row in counts[:size]:
            drawn = rng.integers(0, utterances, utterances, dtype=np.int32)
            row[:] = np.bincount(drawn, minlength=utterances)
        sums[start : start + size] = counts[:size] @ values
    return sums


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, level: float = LEVEL) -> Interval | None:
    """Percentile interval of a ratio of resampled sums.

    Args:
        numerators, denominators: shape (replicates,), columns of `resampled_sums`. Resamples whose
            denominator is 0 have no ratio and are left out.

    Returns:
        The interval, or None if no resample has a ratio.
    """
    defined = denominators != 0
    if not defined.any():
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(numerators[defined] / denominators[defined], [tail, 1 - tail])
    return float(low), float(high)


def probability_worse(error_differences: np.ndarray) -> float:
    """Share of resamples in which the system makes more errors than the other one.

    This is the complement of Bisani & Ney's probability of improvement, except that resamples without any
    difference count for neither.

    Args:
        error_differences: shape (replicates,), resampled sums of (its errors - the other's).
    """
    return float(np.mean(error_differences > 0))


def probability_different(error_differences: np.ndarray) -> float:
    """One minus the two-sided bootstrap p-value of the hypothesis that both make equally many errors.

    It is 0 for systems with the same errors, and near 1 if resamples agree on the sign of the difference
    (Efron & Tibshirani 1993, section 15.4).
    """
    not_worse, not_better = np.mean(error_differences <= 0), np.mean(error_differences >= 0)
    return float(max(0.0, 1 - 2 * min(not_worse, not_better)))


def percentiles(values: Sequence[float], ranks: Sequence[float]) -> list[float]:
    """Percentiles (ranks in 0..100) by linear interpolation between the closest order statistics.

    This is Hyndman & Fan's definition 7, the default of numpy and R. For n values, no percentile above
    100 (1 - 1/n) says more than the maximum: p99 needs about a hundred values.
    """
    return np.percentile(np.asarray(values, dtype=np.float64), ranks).tolist()
