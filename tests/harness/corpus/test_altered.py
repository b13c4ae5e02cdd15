"""From the second round on, every clip is another recording of the same words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tones

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness.corpus.audio import MOVED_SECONDS, SOFTER_DB, altered
from asrgate.harness.corpus.sample_cache import Altered
from asrgate.harness.scenarios.scenario import Load

SPOKEN = tones.speak("river stone cloud apple")


def test_it_is_as_long_says_the_same_and_has_no_sample_in_common() -> None:
    copy = altered(SPOKEN, [1, 2])
    assert copy.dtype == np.float32 and copy.shape == SPOKEN.shape
    assert tones.hear(copy) == tones.hear(SPOKEN)
    heard = SPOKEN != 0
    assert np.mean(copy[heard] == SPOKEN[heard]) < 0.01


@pytest.mark.parametrize("seed", range(20))
def test_it_is_hardly_softer_and_hardly_moved(seed: int) -> None:
    pulse = np.zeros(SAMPLE_RATE_HZ, np.float32)
    pulse[8000] = 0.9
    copy = altered(pulse, [seed])
    at = int(np.abs(copy).argmax())
    assert abs(at - 8000) <= MOVED_SECONDS * SAMPLE_RATE_HZ
    assert -SOFTER_DB - 0.01 <= 20 * np.log10(copy[at] / 0.9) <= 0.01


def test_it_stays_within_full_scale_and_the_shortest_clip_survives() -> None:
    assert np.abs(altered(np.ones(400, np.float32), [3])).max() <= 1.0
    assert altered(np.ones(1, np.float32), [3]).shape == (1,)


def test_copies_differ_by_round_and_by_clip_and_can_be_made_again() -> None:
    audio = {"a": SPOKEN, "b": SPOKEN}
    one, other = Altered(audio, [7, 1]), Altered(audio, [7, 2])
    assert list(one) == ["a", "b"] and len(one) == 2
    assert np.array_equal(one["a"], Altered(audio, [7, 1])["a"])
    for copy in (one["b"], other["a"], Altered(audio, [8, 1])["a"]):
        assert not np.array_equal(one["a"], copy)


def test_the_first_round_has_the_clips_themselves() -> None:
    audio = {"a": SPOKEN}
    load = Load([], audio, rounds=3, seed=0, audio_seed=5, stage=lambda *_: None)
    assert load.of_round(0)["a"] is SPOKEN
    copies: list[Any] = [load.of_round(number)["a"] for number in (1, 2)]
    assert not np.array_equal(copies[0], SPOKEN) and not np.array_equal(copies[0], copies[1])
