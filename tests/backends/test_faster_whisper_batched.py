"""The batched pipeline decodes each window as faster-whisper does alone, and clips do not get mixed up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_checkpoint import MULTILINGUAL, write_fake_checkpoint

from asrgate.backends.base import Backend, BackendError, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.checkpoints.conversions.ctranslate2_model import build, converted_folder
from asrgate.backends.faster_whisper import FasterWhisper
from asrgate.backends.faster_whisper_batched import BATCH_SIZE, FasterWhisperBatched

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("conversions"),
]
HEARING = {"no_speech_threshold": 2.0}  # the fakes' own no-speech probability is near 0 or 1 by chance


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conversions")


@pytest.fixture
def conversions(folder: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests here share their conversions."""
    monkeypatch.setenv("ASRGATE_CACHE", str(folder))


@pytest.fixture
def fake(folder: Path) -> Callable[..., Any]:
    """Return a fake checkpoint, written and converted once for each description."""

    def checkpoint(**content: Any) -> Any:
        path = folder / f"{'-'.join(f'{name}{value}' for name, value in content.items()) or 'plain'}.pt"
        if not path.exists():
            write_fake_checkpoint(path, **content)
            converted = converted_folder(resolve(str(path)))
            converted.mkdir(parents=True)
            build(path, converted)  # in this process: the child that convert starts takes seconds
        return resolve(str(path))

    return checkpoint


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def load(engine: Any, checkpoint: Any, **settings: Any) -> Any:
    return engine.load(checkpoint, "cpu", "float32", Settings(**{**HEARING, **settings}))


def test_clips_of_one_window_are_decoded_as_alone(fake: Callable[..., Any]) -> None:
    batched, alone = (load(engine, fake()) for engine in (FasterWhisperBatched, FasterWhisper))
    # odd lengths: where one ends must not round to another sample
    clips = [noise(seconds, seed) for seed, seconds in enumerate((4.0, 0.3217, 30.0, 2.30003, 7.1))]
    expected = [alone.transcribe(clip, "en") for clip in clips]
    assert len({heard.tokens for heard in expected}) == len(clips), "the clips can be told apart"
    together = batched.transcribe_batch(clips, "en")
    for clip, wanted, heard in zip(clips, expected, together, strict=True):
        assert (heard.text, heard.tokens) == (wanted.text, wanted.tokens)
        assert batched.transcribe(clip, "en").tokens == wanted.tokens


def test_the_language_and_the_task_reach_the_model(fake: Callable[..., Any]) -> None:
    engine = load(FasterWhisperBatched, fake(n_vocab=MULTILINGUAL), task="translate")
    prompts, prompt = [], engine._model.get_prompt
    engine._model.get_prompt = lambda *rest, **named: prompts.append(prompt(*rest, **named)) or prompts[-1]
    engine.transcribe_batch([noise(1), noise(2)], "de")
    start, german, translate, no_timestamps = 50_258, 50_261, 50_358, 50_363
    assert prompts == [[start, german, translate, no_timestamps]]


def test_a_recording_is_cut_every_30_seconds(fake: Callable[..., Any]) -> None:
    batched = load(FasterWhisperBatched, fake())
    audio = noise(67.3)
    windows = [batched.transcribe(audio[start : start + 480_000], "en") for start in (0, 480_000, 960_000)]
    heard = batched.transcribe(audio, "en")
    assert heard.tokens == sum((window.tokens for window in windows), ())
    assert set(heard.stage_seconds) == {"log_mel", "encode", "decode"}


def test_windows_are_skipped_as_silent_by_both_thresholds(fake: Callable[..., Any]) -> None:
    # every window is above a threshold of -1, and none is likelier than e^0
    for speech, likely, is_heard in ((-1.0, 0.0, False), (-1.0, -100.0, True), (2.0, 0.0, True)):
        engine = load(FasterWhisperBatched, fake(), no_speech_threshold=speech, logprob_threshold=likely)
        assert bool(engine.transcribe(noise(4), "en").text) is is_heard


def test_silent_and_empty_clips_keep_their_place(fake: Callable[..., Any]) -> None:
    engine = load(FasterWhisperBatched, fake())
    assert engine.transcribe_batch([], "en") == []
    clips = [noise(0), noise(4), noise(0.009), noise(7.1, seed=4)]
    empty, first, short, second = engine.transcribe_batch(clips, "en")
    assert empty.tokens == short.tokens == () and empty.text == ""
    assert first.tokens and second.tokens and first.tokens != second.tokens
    assert engine.transcribe(noise(0), "en").text == ""
    assert np.array_equal(clips[1], noise(4)), "not modified"


def test_a_batch_is_one_call_of_the_encoder(fake: Callable[..., Any]) -> None:
    engine = load(FasterWhisperBatched, fake())
    sizes, encode = [], engine._model.encode
    engine._model.encode = lambda features: sizes.append(len(features)) or encode(features)
    engine.transcribe_batch([noise(1, seed) for seed in range(BATCH_SIZE + 2)], "en")
    assert sizes == [BATCH_SIZE + 2]
    engine.transcribe(noise(BATCH_SIZE * 30 + 1), "en")
    assert sizes[1:] == [BATCH_SIZE, 1]


def test_what_cannot_be_done_together_is_refused(fake: Callable[..., Any]) -> None:
    with pytest.raises(BackendError, match="cannot be conditioned on each other's text"):
        load(FasterWhisperBatched, fake(), condition_on_previous_text=True)
    engine = load(FasterWhisperBatched, fake())
    with pytest.raises(BackendError, match=r"a clip of 30\.1 s is longer than the 30 s"):
        engine.transcribe_batch([noise(1), noise(30.1)], "en")
    with pytest.raises(BackendError, match="English-only and cannot decode 'de'"):
        engine.transcribe_batch([noise(1)], "de")


def test_applied_settings_say_that_long_form_is_chunked(fake: Callable[..., Any]) -> None:
    settings = Settings(beam_size=2, threads=2, suppress_tokens="-1,5")
    engine = FasterWhisperBatched.load(fake(), "cpu", "float32", settings)
    assert isinstance(engine, Backend)
    applied = json.loads(json.dumps(engine.applied_settings))
    assert asdict(settings).items() <= applied.items()
    assert "chunked" in applied["long_form"] and applied["batch_size"] == BATCH_SIZE
    assert engine.transcribe(noise(2), "en").tokens
