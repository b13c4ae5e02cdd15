"""Whisper's constants are those of the installed openai-whisper."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from whisper import audio
from whisper.model import Whisper

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.backends.whisper_common import constants


@pytest.mark.parametrize("name", ["N_FFT", "HOP_LENGTH", "N_SAMPLES", "N_FRAMES", "N_SAMPLES_PER_TOKEN"])
def test_a_constant_is_whispers(name: str) -> None:
    assert getattr(constants, name) == getattr(audio, name)


def test_rates_and_positions_are_whispers() -> None:
    assert audio.SAMPLE_RATE == SAMPLE_RATE_HZ
    assert audio.FRAMES_PER_SECOND == constants.FRAMES_PER_SECOND
    assert constants.N_AUDIO_CTX * audio.N_SAMPLES_PER_TOKEN == audio.N_SAMPLES


@pytest.mark.parametrize("n_vocab", [51_864, 51_865, 51_866])
def test_a_vocabulary_has_whispers_number_of_languages(n_vocab: int) -> None:
    model = SimpleNamespace(dims=SimpleNamespace(n_vocab=n_vocab))
    model.is_multilingual = Whisper.is_multilingual.fget(model)
    assert constants.num_languages(n_vocab) == Whisper.num_languages.fget(model)
    assert (n_vocab == constants.LARGE_V3_VOCAB) == (constants.num_languages(n_vocab) == 100)
