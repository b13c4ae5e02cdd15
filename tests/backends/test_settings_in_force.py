"""Each engine's settings are probed by what they do: a setting stated as applied must show in the tokens.

The checkpoints are random, but each has one token made certain, so that what a rule must do is certain too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from fake_checkpoint import MULTILINGUAL, fake_content

from asrgate import backends
from asrgate.backends.base import AUTO, BackendError, BackendUnavailable, Checkpoint, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.openai_whisper import WhisperCpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # MAX compiles its graphs, once for all of this
]

ENGINES = {  # that run on a CPU -> the precision, and the settings that it may refuse
    "whisper-cpu": ("float32", ()),
    "faster-whisper": ("float32", ()),
    "faster-whisper-batched": ("float32", ("condition_on_previous_text",)),
    "torch-fast": ("float32", ("beam_size",)),
    "max-hybrid": ("float32", ("beam_size",)),
    "max": ("float32", ("beam_size",)),
    "whisper-cpp": ("f16", ("beam_size", "suppress_tokens")),
    "transformers": ("float32", ("beam_size", "condition_on_previous_text")),
}
# the same for all checkpoints, so that MAX compiles once: two heads of 32, the narrowest its kernels take,
# and three text layers, because whisper.cpp gives two no timestamps
DIMENSIONS = {"n_vocab": MULTILINGUAL, "n_audio_state": 64, "n_text_state": 64, "n_text_layer": 3}
HEARING = {"no_speech_threshold": 2.0}  # a random checkpoint's probability of silence is near 0 or 1
TOKENS = whisper.tokenizer.get_tokenizer(True, num_languages=99, language="en", task="transcribe")
NON_SPEECH = TOKENS.encoding.encode("[")[0]  # one of Whisper's own list

Hear = Callable[..., Any]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def certain(token: int | None, prompt: list[int], times: float = 3.0, **content: Any) -> dict[str, Any]:
    """Return a checkpoint's content in which a token is the likeliest after a prompt, on noise of 4 s."""
    found = fake_content(**DIMENSIONS, **content)
    if token is not None:
        model = whisper.model.Whisper(whisper.model.ModelDimensions(**found["dims"]))
        model.load_state_dict(found["model_state_dict"])
        mel = whisper.log_mel_spectrogram(noise(4), model.dims.n_mels, padding=480_000)
        with torch.no_grad():
            logits = model(whisper.pad_or_trim(mel, 3000)[None], torch.tensor([prompt]))[0, -1]
        rows = found["model_state_dict"]["decoder.token_embedding.weight"]
        rows[token] = times * rows[logits.argmax()]
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Checkpoint]:
    prompt = [*TOKENS.sot_sequence, TOKENS.no_timestamps]
    assert NON_SPEECH in TOKENS.non_speech_tokens
    contents = {
        "plain": certain(None, prompt, seed=1),
        "silent": certain(TOKENS.no_speech, [TOKENS.sot], seed=1),  # almost certainly silence
        "ending": certain(TOKENS.eot, prompt, seed=1),  # would rather write nothing
        "singing": certain(NON_SPEECH, prompt, seed=1),
        "looping": certain(None, prompt, loops=True),
    }
    folder, found = tmp_path_factory.mktemp("certain"), {}
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
        found[name] = resolve(str(folder / f"{name}.pt"))
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conversions")


@pytest.fixture
def shared_cache(cache: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests here share conversions and compiled graphs."""
    monkeypatch.setenv("ASRGATE_CACHE", str(cache))


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    engine: str = request.param
    try:
        backends.load(engine).check("cpu", ENGINES[engine][0])
    except BackendUnavailable as error:
        pytest.skip(f"needs {error}")
    return engine


@pytest.fixture
def loaded(
    name: str, checkpoints: Mapping[str, Checkpoint], shared_cache: None
) -> Iterator[Callable[..., Any]]:
    """Load the engine with a checkpoint; None if it refuses a setting that ENGINES says it may."""
    precision, may_refuse = ENGINES[name]
    before = torch.get_num_threads()

    def load(checkpoint: str = "plain", **settings: Any) -> Any:
        try:
            wanted = Settings(**{**HEARING, **settings})
            return backends.load(name).load(checkpoints[checkpoint], "cpu", precision, wanted)
        except BackendError:
            assert set(settings) & set(may_refuse), f"{name} refuses {settings}"
            return None

    yield load
    torch.set_num_threads(before)


def answer(engine: Any, seconds: float = 4, language: str = "en") -> Any:
    heard = engine.transcribe(noise(seconds), language)
    return heard.text, heard.tokens and list(heard.tokens)


def test_language_and_task(loaded: Hear) -> None:
    usual = answer(loaded())
    assert usual[1]
    assert answer(loaded(), language="fr") != usual
    assert answer(loaded(task="translate")) != usual


def test_beams_and_the_text_so_far(loaded: Hear) -> None:
    for change in ({"beam_size": 4}, {"condition_on_previous_text": True}):
        engine = loaded(**change)
        assert engine is None or answer(engine, 31) != answer(loaded(), 31), change


def test_thresholds_of_silence(loaded: Hear) -> None:
    """Silence of a probability near 1, at thresholds that people use."""
    text, _ = answer(loaded("silent", logprob_threshold=0.0))
    assert text, "above 1 nothing is silent"
    engine = loaded("silent", no_speech_threshold=0.6, logprob_threshold=0.0)
    assert answer(loaded("silent", no_speech_threshold=0.6, logprob_threshold=-100.0))[0]
    if answer(engine)[0]:
        assert engine.applied_settings["no_speech_threshold"] is None
        assert engine.applied_settings["not_applied"]["no_speech_threshold"]
    else:
        assert engine.applied_settings["no_speech_threshold"] == 0.6


def test_suppress_blank(loaded: Hear, name: str) -> None:
    assert answer(loaded("ending"))[1], "an answer may not begin with its end"
    engine = loaded("ending", suppress_blank=False)
    if name == "whisper-cpu":  # it divides by the number of tokens of an answer that has none
        with pytest.raises(ZeroDivisionError):
            answer(engine)
    else:
        assert not answer(engine)[1]


def test_suppress_tokens(loaded: Hear) -> None:
    assert NON_SPEECH not in answer(loaded("singing"))[1]
    assert answer(loaded("singing", suppress_tokens=""))[1][0] == NON_SPEECH
    first = answer(loaded())[1][0]
    engine = loaded(suppress_tokens=f"{first},-1")
    assert engine is None or first not in answer(engine)[1]


def test_stated_maximum_of_tokens_is_reached_and_no_more(loaded: Hear) -> None:
    engine = loaded("looping")
    assert len(answer(engine)[1]) == engine.applied_settings["max_tokens_per_window"]


def test_timestamps_are_written_where_it_says(loaded: Hear) -> None:
    """Asked for in clips over 30 s only, or, decoded in batches, never."""
    engine = loaded()
    tokens = engine.transcribe(noise(31), "en").tokens
    if tokens is None:
        return  # whisper.cpp drops them from its segments
    is_asked_for = engine.applied_settings["without_timestamps"] == "clips up to 30 s"
    assert (tokens[0] >= TOKENS.timestamp_begin) is is_asked_for
    assert answer(engine)[1][0] < TOKENS.timestamp_begin


def test_language_detection(loaded: Hear, name: str, checkpoints: Mapping[str, Checkpoint]) -> None:
    """The likeliest language's token after the first one, as openai-whisper finds it; the text is in it."""
    if name == "faster-whisper-batched":
        with pytest.raises(BackendError, match="cannot detect one for each"):
            backends.load(name).load(checkpoints["plain"], "cpu", "float32", Settings(language=AUTO))
        return
    engine = loaded(language=AUTO)
    wanted = WhisperCpu.load(checkpoints["plain"], "cpu", "float32", Settings(**HEARING))
    for seed in range(3):
        mel = whisper.log_mel_spectrogram(noise(4, seed), padding=480_000)
        _, chances = wanted._model.detect_language(whisper.pad_or_trim(mel, 3000))
        likeliest = max(chances, key=chances.get)
        heard = engine.transcribe(noise(4, seed), AUTO)
        assert heard.language == likeliest
        told = engine.transcribe(noise(4, seed), likeliest)
        assert (heard.text, told.language) == (told.text, None)
