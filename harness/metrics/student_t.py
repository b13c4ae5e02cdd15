"""Intervals of a mean of few values, by Student's t distribution ("The probable error of a mean", 1908)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

import numpy as np

_STEPS = 20_001  # of the integral; the quantiles in use are then right to five digits


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Return half the width of the interval of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    return quantile(level, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


@cache
def quantile(level: float, freedom: int) -> float:
    """Return t such that a t variable lies within ±t with probability `level`.

    Args:
        freedom: degrees of freedom, one less than the number of values.
    """
    # With x = sqrt(freedom) * tan(a), the density in a is that of cos(a)**(freedom - 1), which has no tails.
    angles = np.linspace(0, math.pi / 2, _STEPS)
    heights = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((heights[1:] + heights[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level * below[-1], below, angles)))
