"""Speed ratios: rounds are paired with the reference's, and few rounds claim little."""

from __future__ import annotations

import math

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of

from asrgate.harness.scoring import round_ratios

OTHER = VARIANTS[1]


def with_walls(walls: dict[str, list[list[float]]]):
    """A run with these wall seconds: variant -> round -> clip."""
    run = make_run(tuple(walls), len(next(iter(walls.values()))[0]), rounds=len(walls[REFERENCE]))
    for variant, rounds in walls.items():
        names = [clip["name"] for clip in run["clips"]]
        for sample in result_of(run, variant)["samples"]:
            sample["wall_seconds"] = rounds[sample["round"]][names.index(sample["clip"])]
    return run


def test_a_machine_that_slows_down_for_all_leaves_the_ratio_exact() -> None:
    slower = [1.0, 1.7, 0.6, 3.0]
    run = with_walls({REFERENCE: [[2 * k, 4 * k] for k in slower], OTHER: [[1 * k, 1 * k] for k in slower]})
    found = round_ratios.over_reference(run, result_of(run, OTHER))
    assert found.ratio == pytest.approx(3)
    assert found.interval == pytest.approx((3, 3))
    assert found.half_width == pytest.approx(0, abs=1e-9)


def test_interval_is_that_of_the_rounds_logarithms() -> None:
    run = with_walls({REFERENCE: [[1.0], [1.0], [1.0]], OTHER: [[0.5], [0.4], [0.8]]})
    found = round_ratios.over_reference(run, result_of(run, OTHER))
    assert found.ratio == pytest.approx((2 * 2.5 * 1.25) ** (1 / 3))
    logs = [math.log(value) for value in (2, 2.5, 1.25)]
    mean = sum(logs) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs) / 2)
    assert math.log(found.interval[1]) == pytest.approx(mean + 4.30265 * deviation / math.sqrt(3), rel=1e-4)
    assert found.half_width == pytest.approx(math.exp(4.30265 * deviation / math.sqrt(3)) - 1, rel=1e-3)


def test_before_three_rounds_the_interval_is_over_clips() -> None:
    run = with_walls({REFERENCE: [[1.0, 1.0, 1.0]], OTHER: [[0.5, 0.25, 1.0]]})
    found = round_ratios.over_reference(run, result_of(run, OTHER))
    assert 1.0 <= found.interval[0] < found.ratio < found.interval[1] <= 4.0
    alone = with_walls({REFERENCE: [[1.0]], OTHER: [[0.5]]})
    assert round_ratios.over_reference(alone, result_of(alone, OTHER)) == (2.0, None)


def test_a_round_that_lacks_a_clip_does_not_count() -> None:
    run = with_walls({REFERENCE: [[1.0, 1.0]] * 3, OTHER: [[0.5, 0.5]] * 3})
    samples = result_of(run, OTHER)["samples"]
    samples[0].update(text=None, text_sha256=None, error="failed")
    assert round_ratios.over_reference(run, result_of(run, OTHER)).ratio == pytest.approx(2)
    for sample in samples:
        sample.update(text=None, text_sha256=None, error="failed")
    assert round_ratios.over_reference(run, result_of(run, OTHER)) is None
