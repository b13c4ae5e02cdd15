"""openai-whisper and faster-whisper do the same work on the same weights, or refuse."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoint import MULTILINGUAL, MULTILINGUAL_V3, write_fake_checkpoint

from asrgate.backends.base import Backend, BackendError, BackendUnavailable, Checkpoint, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.checkpoints.conversions.ctranslate2_model import build, converted_folder
from asrgate.backends.faster_whisper import FasterWhisper
from asrgate.backends.openai_whisper import WhisperCpu
from asrgate.backends.whisper_common import stage_clock
from asrgate.backends.whisper_common.stage_clock import StageClock

ENGINES = [WhisperCpu, FasterWhisper]

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("conversions"),
]

# the fakes' own no-speech probability is near 0 or 1 by chance: nothing is skipped unless a test asks for it
HEARING = {"no_speech_threshold": 2.0}


@pytest.fixture(scope="session")
def conversions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conversions")


@pytest.fixture
def conversions(conversions_folder: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests here share their conversions."""
    monkeypatch.setenv("ASRGATE_CACHE", str(conversions_folder))


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory, conversions_folder: Path) -> Callable[..., Path]:
    """Return the path of a fake checkpoint, written and converted once for each description."""
    folder, written = tmp_path_factory.mktemp("fakes"), {}

    def path(**content: Any) -> Path:
        key = json.dumps(content)
        if key not in written:
            written[key] = write_fake_checkpoint(folder / f"fake{len(written)}.pt", **content)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ASRGATE_CACHE", str(conversions_folder))
                converted = converted_folder(resolve(str(written[key])))
                converted.mkdir(parents=True)
                build(written[key], converted)  # in this process: the child that convert starts takes seconds
        return written[key]

    return path


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def both(checkpoint: Checkpoint, audio: np.ndarray, language: str = "en", **settings: Any) -> Any:
    """Transcribe with both engines, assert that tokens and text are the same, and return them."""
    wanted = Settings(**{**HEARING, **settings})
    ours, theirs = (
        engine.load(checkpoint, "cpu", "float32", wanted).transcribe(audio, language) for engine in ENGINES
    )
    assert ours.tokens == theirs.tokens
    assert ours.text == theirs.text
    return ours


@pytest.mark.parametrize(
    ("content", "language"),
    [
        ({}, "en"),
        ({"n_vocab": MULTILINGUAL}, "de"),
        ({"n_vocab": MULTILINGUAL_V3, "n_mels": 128}, "yue"),
    ],
)
@pytest.mark.parametrize("seconds", [4.0, 31.0])
def test_both_decode_the_same_tokens(
    fake: Callable[..., Path], content: dict[str, int], language: str, seconds: float
) -> None:
    checkpoint = resolve(str(fake(**content)))
    heard = both(checkpoint, noise(seconds), language)
    assert len(set(heard.tokens)) > 2
    if checkpoint.is_multilingual and seconds < 30:
        both(checkpoint, noise(seconds), language, task="translate")


def test_both_honour_every_setting_alike(fake: Callable[..., Path]) -> None:
    checkpoint, audio = resolve(str(fake())), noise(31)
    plain = both(checkpoint, audio)
    for reaches in ({"condition_on_previous_text": True}, {"beam_size": 3}):
        assert both(checkpoint, audio, **reaches).tokens != plain.tokens, f"{reaches} reached the engines"
    for harmless in ({"suppress_blank": False}, {"suppress_tokens": ""}):
        both(checkpoint, audio, **harmless)
    heard = both(checkpoint, noise(4))
    first = heard.tokens[0]
    assert first not in both(checkpoint, noise(4), suppress_tokens=f"{first},-1").tokens


def test_both_skip_windows_as_silent_by_the_same_two_thresholds(fake: Callable[..., Path]) -> None:
    checkpoint = resolve(str(fake()))
    # every window is above a threshold of -1, and none is likelier than e^0
    assert both(checkpoint, noise(4), no_speech_threshold=-1.0, logprob_threshold=0.0).text == ""
    assert both(checkpoint, noise(4), no_speech_threshold=-1.0, logprob_threshold=-100.0).text != ""
    assert both(checkpoint, noise(4), no_speech_threshold=2.0, logprob_threshold=0.0).text != ""


def test_a_model_that_never_stops_is_cut_at_the_same_token(fake: Callable[..., Path]) -> None:
    checkpoint = resolve(str(fake(n_vocab=MULTILINGUAL, loops=True)))
    assert len(both(checkpoint, noise(4), "de").tokens) == 448 // 2
    # the second window: 223 tokens of prompt leave 222 of the context, for both
    conditioned = both(checkpoint, noise(31), "de", condition_on_previous_text=True)
    assert len(conditioned.tokens) == 448 // 2 + 222


def test_a_shorter_text_context_is_honoured_by_both(fake: Callable[..., Path]) -> None:
    checkpoint = resolve(str(fake(loops=True, n_text_ctx=64)))
    assert len(both(checkpoint, noise(4)).tokens) == 64 // 2


@pytest.mark.parametrize("samples", [0, 1, 399, 480_000, 480_001])
def test_clips_of_every_length_come_back(fake: Callable[..., Path], samples: int) -> None:
    heard = both(resolve(str(fake())), noise(31)[:samples])
    assert bool(heard.tokens) == (samples >= 160), "less than a frame is no audio"


def test_log_probabilities_agree_with_beams_too(fake: Callable[..., Path]) -> None:
    checkpoint, settings = resolve(str(fake())), Settings(**HEARING, beam_size=4)
    openai, faster = (engine.load(checkpoint, "cpu", "float32", settings) for engine in ENGINES)
    audio, options = noise(4), {"language": "en", "without_timestamps": True}
    with openai._instrumented():
        ours = openai._module.transcribe(openai._model, audio, **options, **openai._options)["segments"]
    theirs = list(faster._model.transcribe(audio, **options, **faster._options)[0])
    assert [s["avg_logprob"] for s in ours] == pytest.approx([s.avg_logprob for s in theirs], rel=1e-4)
    assert [s["no_speech_prob"] for s in ours] == pytest.approx([s.no_speech_prob for s in theirs], rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_contract_of_transcribe(engine: Any, fake: Callable[..., Path]) -> None:
    backend = engine.load(resolve(str(fake())), "cpu", "float32", Settings(**HEARING))
    assert isinstance(backend, Backend)
    audio = noise(4)
    audio.setflags(write=False)
    log_mel = sys.modules["whisper.transcribe"].log_mel_spectrogram
    start = time.perf_counter()
    first = backend.transcribe(audio, "en")
    wall = time.perf_counter() - start
    assert first == backend.transcribe(audio, "en").__class__(first.text, first.tokens, first.stage_seconds)
    assert np.array_equal(audio, noise(4))
    assert type(first.text) is str and first.text == first.text.strip() != ""
    assert set(first.stage_seconds) == {"log_mel", "encode", "decode"}
    assert all(seconds > 0 for seconds in first.stage_seconds.values())
    assert 0.8 * wall < sum(first.stage_seconds.values()) <= wall
    assert backend.transcribe(audio, "en").text == first.text
    assert sys.modules["whisper.transcribe"].log_mel_spectrogram is log_mel, "put back"


@pytest.mark.parametrize("engine", ENGINES)
def test_applied_settings_are_complete_and_what_was_asked_for(engine: Any, fake: Callable[..., Path]) -> None:
    settings = Settings(beam_size=2, threads=2, condition_on_previous_text=True, suppress_tokens="-1,5")
    backend = engine.load(resolve(str(fake())), "cpu", "float32", settings)
    applied = json.loads(json.dumps(backend.applied_settings))
    assert asdict(settings).items() <= applied.items()
    assert applied["precision"] == "float32" and applied["device"] == "cpu"


def test_openai_whisper_runs_the_threads_asked_for_and_true_float32(fake: Callable[..., Path]) -> None:
    torch.backends.cudnn.allow_tf32 = True
    for threads in (2, 1):
        backend = WhisperCpu.load(resolve(str(fake())), "cpu", "float32", Settings(threads=threads))
        assert torch.get_num_threads() == threads == backend.applied_settings["threads"]
    assert not torch.backends.cudnn.allow_tf32 and backend.applied_settings["tf32"] is False
    assert backend.applied_settings["weights_dtype"] == "float32"


def test_int8_is_computed_in_int8(fake: Callable[..., Path]) -> None:
    backend = FasterWhisper.load(resolve(str(fake())), "cpu", "int8", Settings(**HEARING))
    assert backend.applied_settings["compute_type"] == "int8_float32"
    assert backend.transcribe(noise(4), "en").tokens


def test_a_precision_the_device_lacks_is_unavailable(fake: Callable[..., Path]) -> None:
    with pytest.raises(BackendUnavailable, match="CTranslate2 cannot run float16 on cpu"):
        FasterWhisper.load(resolve(str(fake())), "cpu", "float16", Settings())


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "translate"}, "is English-only and cannot translate"),
        ({"task": "summarise"}, "there is no task 'summarise'; choose transcribe or translate"),
        ({"language": "de"}, "is English-only and cannot decode 'de'"),
        ({"temperature": 0.2}, "temperature 0.2 would sample at random"),
        ({"beam_size": 0}, "beam_size must be 1"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"suppress_tokens": "a,b"}, "suppress_tokens must be token ids"),
        ({"suppress_tokens": "51864"}, "must be between 0 and 51863"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_at_load(
    engine: Any, settings: dict[str, Any], message: str, fake: Callable[..., Path]
) -> None:
    with pytest.raises(BackendError, match=message):
        engine.load(resolve(str(fake())), "cpu", "float32", Settings(**settings))


@pytest.mark.parametrize("engine", ENGINES)
def test_languages_the_model_lacks_are_refused_at_the_call(engine: Any, fake: Callable[..., Path]) -> None:
    english = engine.load(resolve(str(fake())), "cpu", "float32", Settings())
    with pytest.raises(BackendError, match="English-only and cannot decode 'de'"):
        english.transcribe(noise(1), "de")
    older = engine.load(resolve(str(fake(n_vocab=MULTILINGUAL))), "cpu", "float32", Settings())
    with pytest.raises(BackendError, match=r"has no language 'yue'.* It has af, am, .*zh"):
        older.transcribe(noise(1), "yue")
    with pytest.raises(BackendError, match=r"has no language 'English'"):
        older.transcribe(noise(1), "English")


def test_both_know_the_same_languages(fake: Callable[..., Path]) -> None:
    for content, count in (
        ({"n_vocab": MULTILINGUAL}, 99),
        ({"n_vocab": MULTILINGUAL_V3, "n_mels": 128}, 100),
    ):
        checkpoint = resolve(str(fake(**content)))
        openai, faster = (engine.load(checkpoint, "cpu", "float32", Settings()) for engine in ENGINES)
        assert set(openai._languages) == set(faster._languages)
        assert len(openai._languages) == count == openai._model.num_languages


# --- stages ---------------------------------------------------------------------------------------------


def test_stage_seconds_are_of_one_call_and_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0

    def passes(seconds: float) -> None:
        nonlocal now_ns
        now_ns += round(seconds * 1e9)

    monkeypatch.setattr(stage_clock, "perf_counter_ns", lambda: now_ns)
    waits: list[int] = []
    clock = StageClock(lambda: waits.append(1))
    encode = clock.timed("encode", passes)
    with clock.call():
        encode(0.02)
        encode(0.02)
        passes(0.03)
    assert clock.seconds == pytest.approx({"encode": 0.04, "decode": 0.03})
    assert len(waits) == 5, "before and after each stage, and at the end of the call"
    with clock.call():
        pass
    assert set(clock.seconds) == {"decode"}
