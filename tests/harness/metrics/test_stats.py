import tracemalloc

import numpy as np
import pytest

from asrgate.harness.metrics import bootstrap


def sums_of(*columns, seed=0, replicates=4000):
    return bootstrap.resampled_sums(np.column_stack(columns), replicates, seed).T


def test_resampling_keeps_the_number_of_utterances_and_the_mean():
    values = np.arange(50.0)
    ones, sums = sums_of(np.ones(50), values)
    assert (ones == 50).all()
    assert sums.mean() == pytest.approx(values.sum(), rel=0.01)
    # the standard error of a sum of n draws: sqrt(n) times the population's deviation
    assert sums.std() == pytest.approx(np.sqrt(50) * values.std(), rel=0.05)


def test_same_seed_same_resamples_whatever_the_columns():
    rng = np.random.default_rng(1)
    first, second = rng.random(30), rng.random(30)
    alone, beside = sums_of(first), sums_of(second, first)
    assert np.allclose(alone[0], beside[1], rtol=1e-12)
    assert not np.allclose(alone[0], sums_of(first, seed=1)[0])
    assert np.isfinite(sums_of(first, seed=-1)).all()


def test_blocks_do_not_change_the_resamples(monkeypatch):
    values = np.random.default_rng(1).random(30)
    whole = sums_of(values, replicates=100)
    monkeypatch.setattr(bootstrap, "_BLOCK_COUNTS", 70)
    assert np.allclose(whole, sums_of(values, replicates=100), rtol=1e-12)


def test_memory_does_not_grow_with_replicates_times_utterances():
    values = np.ones((100_000, 2))
    tracemalloc.start()
    bootstrap.resampled_sums(values, replicates=60)  # all counts at once would be 48 MB
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 24e6


def test_interval_agrees_with_the_normal_approximation_on_many_utterances():
    rng = np.random.default_rng(2)
    words = np.full(2000, 20.0)
    errors = rng.binomial(20, 0.1, 2000).astype(float)
    low, high = bootstrap.ratio_interval(*sums_of(errors, words))
    middle = errors.sum() / words.sum()
    half = 1.96 * errors.std() * np.sqrt(2000) / words.sum()
    assert low == pytest.approx(middle - half, abs=0.1 * half)
    assert high == pytest.approx(middle + half, abs=0.1 * half)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        errors = rng.binomial(12, 0.2, 60).astype(float)
        low, high = bootstrap.ratio_interval(*sums_of(errors, np.full(60, 12.0), seed=trial, replicates=500))
        hits += low <= 0.2 <= high
    assert 180 <= hits <= 198


def test_interval_of_wider_level_is_wider():
    errors, words = sums_of(np.arange(40.0), np.full(40, 50.0))
    narrow, wide = bootstrap.ratio_interval(errors, words, 0.5), bootstrap.ratio_interval(errors, words, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_resamples_without_words_are_left_out():
    errors, words = sums_of([1.0, 1.0], [4.0, 0.0])  # a clip of speech and one of silence
    low, high = bootstrap.ratio_interval(errors, words)
    assert (low, high) == (0.25, 0.5)
    assert bootstrap.ratio_interval(np.zeros(5), np.zeros(5)) is None


def test_identical_systems_do_not_differ():
    errors = np.random.default_rng(4).binomial(10, 0.2, 100).astype(float)
    ours, theirs, words = sums_of(errors, errors.copy(), np.full(100, 10.0))
    assert bootstrap.probability_worse(ours - theirs) == 0
    assert bootstrap.probability_different(ours - theirs) == 0
    assert bootstrap.ratio_interval(ours - theirs, words) == (0, 0)


def test_equally_good_systems_rarely_differ():
    rng = np.random.default_rng(5)
    found = []
    for trial in range(100):
        ours, theirs = sums_of(*rng.binomial(10, 0.2, (2, 80)).astype(float), seed=trial, replicates=400)
        found.append(bootstrap.probability_different(ours - theirs))
    assert np.mean(np.array(found) > 0.95) < 0.15
    assert 0.3 < np.mean(found) < 0.7


def test_a_clearly_worse_system_is_found_out():
    rng = np.random.default_rng(6)
    theirs = rng.binomial(10, 0.1, 100).astype(float)
    ours = theirs + rng.binomial(3, 0.3, 100)
    a, b, words = sums_of(ours, theirs, np.full(100, 10.0))
    assert bootstrap.probability_worse(a - b) > 0.999
    assert bootstrap.probability_worse(b - a) == 0
    assert bootstrap.probability_different(a - b) == bootstrap.probability_different(b - a) > 0.999
    assert bootstrap.ratio_interval(a - b, words)[0] > 0


def test_pairing_sees_what_two_separate_intervals_cannot():
    rng = np.random.default_rng(7)
    hard = rng.binomial(40, rng.beta(0.5, 2, 60)).astype(float)  # clips differ far more than systems do
    ours, theirs, words = sums_of(hard + (np.arange(60) % 3 == 0), hard, np.full(60, 40.0))
    assert bootstrap.ratio_interval(ours, words)[0] < bootstrap.ratio_interval(theirs, words)[1]
    assert bootstrap.ratio_interval(ours - theirs, words)[0] > 0


def test_percentiles_interpolate_between_the_closest_values():
    assert bootstrap.percentiles([1, 2, 3, 4], [0, 25, 50, 90, 100]) == pytest.approx([1, 1.75, 2.5, 3.7, 4])
    assert bootstrap.percentiles([7], [50, 99]) == [7, 7]
