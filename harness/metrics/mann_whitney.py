"""The exact Mann-Whitney test of two samples, with the corresponding estimate and interval of the shift.

Mann & Whitney, "On a test of whether one of two random variables is stochastically larger than the other",
1947; Hodges & Lehmann, "Estimates of location based on rank tests", 1963. The samples are small (the rounds
of a run), so nothing is approximated by a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from asrgate.harness.metrics import bootstrap


def shift(base: Sequence[float], new: Sequence[float]) -> float:
    """Hodges-Lehmann estimate: the median of all differences between a value of NEW and one of BASE."""
    return float(np.median(_differences(base, new)))


def shift_interval(
    base: Sequence[float], new: Sequence[float], level: float = bootstrap.LEVEL
) -> bootstrap.Interval | None:
    """Interval of the shift that the Mann-Whitney test does not reject; None with too few values."""
    below = np.cumsum(_u_probabilities(len(base), len(new)))
    left_out = int(np.count_nonzero(below <= (1 - level) / 2))
    if left_out == 0:
        return None
    ordered = np.sort(_differences(base, new))
    return float(ordered[left_out - 1]), float(ordered[-left_out])


def mann_whitney(base: Sequence[float], new: Sequence[float]) -> float:
    """Exact two-sided p-value of the Mann-Whitney U test. Ties count against significance."""
    differences = _differences(base, new)
    most = differences.size
    smaller_side = min(np.sum(differences > 0), np.sum(differences < 0))
    ties = most - np.count_nonzero(differences)
    u = min(int(smaller_side) + math.ceil(ties / 2), most // 2)
    return float(min(1.0, 2 * _u_probabilities(len(base), len(new))[: u + 1].sum()))


def smallest_p_value(base: int, new: int) -> float:
    """The two-sided p-value if all values of one run are above all of the other's: 7 and 7 give 0.0006."""
    return min(1.0, 2 / math.comb(base + new, base))


def rounds_needed(alpha: float) -> int:
    """The smallest number of rounds in each run with which the test can be significant."""
    return next(n for n in range(1, 1000) if smallest_p_value(n, n) < alpha)


def _differences(base: Sequence[float], new: Sequence[float]) -> np.ndarray:
    return np.subtract.outer(np.asarray(new, np.float64), np.asarray(base, np.float64)).ravel()


@cache
def _u_probabilities(base: int, new: int) -> np.ndarray:
    """Probability of each value of U, 0 to base * new, if both runs have the same distribution.

    By the recurrence of Mann & Whitney (1947): the largest of all values belongs to BASE with probability
    base / (base + new), and is then above all of NEW.
    """
    row = [np.ones(1) for _ in range(new + 1)]
    for i in range(1, base + 1):
        above, row = row, [np.ones(1)]
        for j in range(1, new + 1):
            both = np.zeros(i * j + 1)
            both[j:] += i / (i + j) * above[j]
            both[: i * (j - 1) + 1] += j / (i + j) * row[j - 1]
            row.append(both)
    return row[new]
