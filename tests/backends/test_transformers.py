"""transformers decodes the checkpoint's own weights as openai-whisper does, or refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoint import MULTILINGUAL, fake_content, write_fake_checkpoint

from asrgate.backends.base import Backend, BackendError, BackendUnavailable, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.checkpoints.conversions.transformers_weights import fitting, parameter_name
from asrgate.backends.checkpoints.file import expected_tensors
from asrgate.backends.openai_whisper import WhisperCpu
from asrgate.backends.transformers_whisper import TransformersWhisper

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow
HEARING = {"no_speech_threshold": 2.0}  # the fakes' own no-speech probability is near 0 or 1 by chance


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("transformers", reason="needs transformers")


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a fake checkpoint, written once for each description."""
    folder, written = tmp_path_factory.mktemp("fakes"), {}

    def checkpoint(**content: Any) -> Any:
        key = json.dumps(content)
        if key not in written:
            written[key] = resolve(str(write_fake_checkpoint(folder / f"fake{len(written)}.pt", **content)))
        return written[key]

    return checkpoint


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def hear(engine: Any, checkpoint: Any, audio: np.ndarray, language: str = "en", **settings: Any) -> Any:
    wanted = Settings(**{**HEARING, **settings})
    return engine.load(checkpoint, "cpu", "float32", wanted).transcribe(audio, language)


# seed 0's multilingual fake says a pair of timestamps unasked, behind which only generate() goes on
GERMAN = {"n_vocab": MULTILINGUAL, "seed": 1}


@pytest.mark.parametrize(
    ("content", "language", "seconds"),
    [({}, "en", 4.0), ({}, "en", 31.0), (GERMAN, "de", 4.0), ({"loops": True}, "en", 4.0)],
)
def test_its_tokens_are_openai_whispers(
    library: Any, fake: Callable[..., Any], content: dict[str, Any], language: str, seconds: float
) -> None:
    theirs = hear(WhisperCpu, fake(**content), noise(seconds), language)
    ours = hear(TransformersWhisper, fake(**content), noise(seconds), language)
    assert ours.tokens == theirs.tokens and len(ours.tokens) > 2
    assert ours.text == theirs.text


def test_settings_reach_generate(library: Any, fake: Callable[..., Any]) -> None:
    checkpoint = fake()
    plain = hear(TransformersWhisper, checkpoint, noise(4))
    first = plain.tokens[0]
    for settings in ({"suppress_tokens": f"{first},-1"}, {"suppress_tokens": ""}, {"suppress_blank": False}):
        theirs = hear(WhisperCpu, checkpoint, noise(4), **settings)
        assert hear(TransformersWhisper, checkpoint, noise(4), **settings).tokens == theirs.tokens
    assert first not in hear(TransformersWhisper, checkpoint, noise(4), suppress_tokens=str(first)).tokens


@pytest.mark.parametrize("seconds", [4, 31])
def test_windows_are_skipped_as_silent_by_both_thresholds(
    library: Any, fake: Callable[..., Any], seconds: int
) -> None:
    # every window is above a threshold of -1, and none is likelier than e^0
    for speech, likely, is_heard in ((-1.0, 0.0, False), (-1.0, -100.0, True), (2.0, 0.0, True)):
        silence = {"no_speech_threshold": speech, "logprob_threshold": likely}
        heard = hear(TransformersWhisper, fake(), noise(seconds), **silence)
        assert bool(heard.text) is is_heard


def test_silence_is_judged_by_openai_whispers_numbers(library: Any, fake: Callable[..., Any]) -> None:
    """The probability is that of the prompt's first position, the likelihood the mean of what was sampled."""
    import whisper

    checkpoint, audio = fake(), noise(4)
    engine = TransformersWhisper.load(checkpoint, "cpu", "float32", Settings(**HEARING))
    openai = WhisperCpu.load(checkpoint, "cpu", "float32", Settings(**HEARING))
    options = {"language": "en", "without_timestamps": True, "fp16": False}
    mel = whisper.audio.log_mel_spectrogram(audio)
    wanted = openai._model.decode(whisper.audio.pad_or_trim(mel, 3000), whisper.DecodingOptions(**options))
    for margin, is_silent in ((-0.001, True), (0.001, False)):
        for speech, likely in (
            (wanted.no_speech_prob + margin, 100.0),
            (-1.0, wanted.avg_logprob - margin),
        ):
            engine._settings = Settings(no_speech_threshold=speech, logprob_threshold=likely)
            assert (engine.transcribe(audio, "en").text == "") is is_silent, (speech, likely)


def test_every_tensor_has_its_place(library: Any, fake: Callable[..., Any]) -> None:
    from transformers import WhisperForConditionalGeneration

    from asrgate.backends.checkpoints.conversions.transformers_weights import model_config

    model = WhisperForConditionalGeneration(model_config(fake()))
    wanted = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    content = fake_content()
    found = {name: tuple(values.shape) for name, values in fitting(content["model_state_dict"]).items()}
    assert found == wanted


def test_names_do_not_collide() -> None:
    """Needs no transformers."""
    names = [parameter_name(name) for name in expected_tensors(fake_content()["dims"])]
    assert len(set(names)) == len(names)
    assert parameter_name("decoder.blocks.1.cross_attn_ln.weight") == (
        "model.decoder.layers.1.encoder_attn_layer_norm.weight"
    )


@pytest.mark.parametrize("samples", [0, 1, 480_000])
def test_clips_of_every_length_come_back(library: Any, fake: Callable[..., Any], samples: int) -> None:
    audio = noise(30)[:samples]
    audio.setflags(write=False)
    heard = hear(TransformersWhisper, fake(), audio)
    assert bool(heard.tokens) == (samples >= 160), "less than a frame is no audio"


def test_the_contract_of_transcribe(library: Any, fake: Callable[..., Any]) -> None:
    settings = Settings(**HEARING, threads=2, suppress_tokens="-1,5")
    engine = TransformersWhisper.load(fake(), "cpu", "bfloat16", settings)
    assert isinstance(engine, Backend)
    first = engine.transcribe(noise(4), "en")
    assert engine.transcribe(noise(4), "en").tokens == first.tokens, "nothing is left of the last call"
    assert set(first.stage_seconds) == {"log_mel", "encode", "decode"}
    assert not engine._model.model.decoder._forward_hooks
    applied = json.loads(json.dumps(engine.applied_settings))
    assert asdict(settings).items() <= applied.items()
    assert applied["weights_dtype"] == "bfloat16" and applied["cache"] == "dynamic"
    assert torch.get_num_threads() == applied["threads"] == 2


def test_the_compiled_precision_has_a_static_cache(
    library: Any, fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersWhisper.load(fake(), "cpu", "float32+compiled", Settings(**HEARING))
    compiled = []
    # what inductor would make of it takes minutes; the eager call computes the same
    monkeypatch.setattr(
        type(engine._model),
        "get_compiled_call",
        lambda self, config: compiled.append(config) or self.__call__,
    )
    eager = hear(TransformersWhisper, fake(), noise(4))
    assert engine.transcribe(noise(4), "en").tokens == eager.tokens
    assert compiled, "transformers asked for the compiled call"
    assert engine.applied_settings["cache"] == "static" and engine.applied_settings["compiled"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 2}, "ends and ranks beams by different rules"),
        ({"condition_on_previous_text": True}, "condition_on_previous_text cannot be honoured"),
        ({"temperature": 0.2}, "would sample at random"),
        ({"suppress_tokens": "51864"}, "must be between 0 and 51863"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    fake: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        TransformersWhisper.load(fake(), "cpu", "float32", Settings(**settings))


def test_languages_the_model_lacks_are_refused(library: Any, fake: Callable[..., Any]) -> None:
    with pytest.raises(BackendError, match="English-only and cannot decode 'de'"):
        hear(TransformersWhisper, fake(), noise(1), "de")
    with pytest.raises(BackendError, match=r"has no language 'yue'.* It has af, am, .*zh"):
        hear(TransformersWhisper, fake(n_vocab=MULTILINGUAL), noise(1), "yue")


def test_an_absent_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        return None if name == "transformers" else type("Found", (), {"origin": str(Path(__file__))})

    monkeypatch.setattr("asrgate.backends.devices.find_spec", absent)
    with pytest.raises(BackendUnavailable) as refused:
        TransformersWhisper.check("cpu", "float32")
    assert refused.value.remedy == "pip install transformers"
