"""Student's t: the quantiles are scipy's, and the interval covers as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from asrgate.harness.metrics import student_t


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 14, 60])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_quantiles_are_those_of_scipy(level: float, freedom: int) -> None:
    assert student_t.quantile(level, freedom) == pytest.approx(
        stats.t.ppf((1 + level) / 2, freedom), rel=1e-4
    )


def test_interval_covers_the_mean_as_often_as_its_level_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        values = rng.normal(5, 2, 4).tolist()
        half = student_t.half_width(values)
        assert half is not None
        hits += abs(float(np.mean(values)) - 5) <= half
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval() -> None:
    assert student_t.half_width([1.0]) is None
