"""torch-fast is openai-whisper's transcription, stage by stage and as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from fake_checkpoint import fake_content, write_fake_checkpoint
from whisper.model import ModelDimensions, Whisper

from asrgate.backends import torch_fast
from asrgate.backends.base import Backend, BackendError, BackendUnavailable, Checkpoint, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.openai_whisper import WhisperCpu
from asrgate.backends.torch_fast import TorchEngine, TorchFast
from asrgate.backends.torch_whisper.encoder import TorchEncoder, log_mel
from asrgate.backends.whisper_common.greedy import SILENCE_ENCODED_SECONDS, TRIMMED

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow

# the fakes' own no-speech probability is near 0 or 1 by chance: nothing is skipped
SETTINGS = Settings(no_speech_threshold=2.0)


BEAM_SETTINGS = "beam_size", "patience", "length_penalty", "beam_finishes"


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A short text context keeps it quick; with this seed clips differ in what is heard."""
    path = tmp_path_factory.mktemp("fast") / "fake.pt"
    return resolve(str(write_fake_checkpoint(path, seed=3, n_vocab=51_865, n_text_ctx=96)))


@pytest.fixture(scope="module")
def fast(checkpoint: Checkpoint) -> Any:
    return TorchFast.load(checkpoint, "cpu", "float32", SETTINGS)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Any:
    return WhisperCpu.load(checkpoint, "cpu", "float32", SETTINGS)


@pytest.mark.parametrize("seconds", [4.0, 31.0, 0.0])
def test_it_transcribes_as_openai_whisper_does(fast: Any, reference: Any, seconds: float) -> None:
    ours, theirs = (backend.transcribe(noise(seconds), "de") for backend in (fast, reference))
    assert ours.tokens == theirs.tokens and ours.text == theirs.text
    assert bool(ours.tokens) == (seconds > 0)
    assert set(ours.stage_seconds) == ({"log_mel", "encode", "decode"} if seconds else {"log_mel", "decode"})


def test_the_text_so_far_is_the_prompt_where_asked_for(checkpoint: Checkpoint, fast: Any) -> None:
    settings = Settings(no_speech_threshold=2.0, condition_on_previous_text=True)
    ours, theirs = (
        engine.load(checkpoint, "cpu", "float32", settings).transcribe(noise(31), "de")
        for engine in (TorchFast, WhisperCpu)
    )
    assert ours.tokens == theirs.tokens != fast.transcribe(noise(31), "de").tokens


@pytest.mark.parametrize("seconds", [4.0, 31.0])
def test_beams_are_openai_whispers(checkpoint: Checkpoint, fast: Any, seconds: float) -> None:
    settings = Settings(no_speech_threshold=2.0, beam_size=5)
    engines = [engine.load(checkpoint, "cpu", "float32", settings) for engine in (TorchFast, WhisperCpu)]
    ours, theirs = (engine.transcribe(noise(seconds), "de").tokens for engine in engines)
    assert ours == theirs != fast.transcribe(noise(seconds), "de").tokens
    stated = [{k: e.applied_settings[k] for k in BEAM_SETTINGS} for e in engines]
    assert stated[0] == stated[1]
    if seconds < 30:
        assert engines[0].transcribe_batch([noise(seconds)] * 2, "de")[1].tokens == theirs


def test_a_batch_is_its_clips_one_by_one(fast: Any) -> None:
    clips = [noise(4), noise(0), noise(9, seed=3)]
    alone = [fast.transcribe(clip, "de") for clip in clips]
    together = fast.transcribe_batch(clips, "de")
    assert [(t.text, t.tokens) for t in together] == [(t.text, t.tokens) for t in alone]
    assert alone[0].tokens != alone[2].tokens
    assert fast.transcribe(clips[0], "de").tokens == alone[0].tokens, "nothing is left over"


def test_a_gpu_encodes_the_windows_of_a_batch_together(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fast._engine
    windows = list(torch.randn(5, 80, 3000, generator=torch.Generator().manual_seed(0)))
    one_by_one = engine.encode_batch(windows)
    calls: list[int] = []
    encode = engine._encoder.encode
    monkeypatch.setattr(torch_fast, "WINDOWS_AT_ONCE", 2)
    monkeypatch.setattr(engine, "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(engine._encoder, "encode", lambda mel: calls.append(len(mel)) or encode(mel))
    together = engine.encode_batch(windows)
    assert calls == [2, 2, 1]
    for found, wanted in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_long_clip_in_a_batch_is_cut_every_30_seconds(fast: Any) -> None:
    audio = noise(31)
    parts = [fast.transcribe(part, "de") for part in (audio[:480_000], audio[480_000:])]
    [whole] = fast.transcribe_batch([audio], "de")
    assert whole.tokens == parts[0].tokens + parts[1].tokens
    assert whole.text == f"{parts[0].text} {parts[1].text}"
    assert "chunked" in fast.applied_settings["long_form"]


@pytest.mark.parametrize("samples", [0, 1, 399, 16_000, 500_003])
@pytest.mark.parametrize("n_mels", [80, 128])
def test_the_log_mel_of_silence_is_known_without_computing_it(samples: int, n_mels: int) -> None:
    audio = noise(32)[:samples]
    theirs = whisper.log_mel_spectrogram(audio, n_mels, padding=480_000)
    torch.testing.assert_close(log_mel(audio, n_mels, "cpu"), theirs, rtol=0, atol=1e-6)


needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs a CPU on which oneDNN has bfloat16"
)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 0.03, marks=needs_bfloat16)]
)
def test_the_encoder_is_openai_whispers_in_float64(precision: str, tolerance: float) -> None:
    content = fake_content(dtype=torch.float32)
    dims, weights = ModelDimensions(**content["dims"]), content["model_state_dict"]
    exact = Whisper(dims)
    exact.load_state_dict(weights)
    mel = torch.rand(2, 80, 3000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        # openai-whisper's own layer norm computes in float32, whatever it is given
        patch.setattr("whisper.model.LayerNorm.forward", torch.nn.LayerNorm.forward)
        expected = exact.double().encoder(mel.double())
    found = TorchEncoder(weights, dims, precision, "cpu").encode(mel)
    assert found.dtype == torch.float32
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < tolerance
    assert precision == "float32" or error > 1e-4, "it is another precision"


@needs_bfloat16
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16+trim"])
def test_every_precision_says_what_it_runs(checkpoint: Checkpoint, precision: str) -> None:
    backend = TorchFast.load(checkpoint, "cpu", precision, SETTINGS)
    assert isinstance(backend, Backend)
    assert backend.transcribe(noise(4), "de").tokens
    applied = json.loads(json.dumps(backend.applied_settings))
    assert asdict(SETTINGS).items() <= applied.items()
    assert applied["precision"] == precision
    assert applied["precisions"] == {"encoder": "bfloat16", "decoder": "float32"}
    assert applied["audio_context"] == (TRIMMED if precision.endswith("+trim") else "30 s")


def test_a_trimmed_window_is_its_clip_and_some_silence(checkpoint: Checkpoint, monkeypatch: Any) -> None:
    precision = "float32+trim"  # no variant, but it runs on every CPU
    backend: Any = TorchFast(
        TorchEngine(checkpoint, "cpu", precision), checkpoint, "cpu", precision, SETTINGS
    )
    widths = []
    encode = backend._engine._encoder.encode
    monkeypatch.setattr(
        backend._engine._encoder, "encode", lambda mel: (widths.append(mel.shape[-1]), encode(mel))[1]
    )
    silence = round(100 * SILENCE_ENCODED_SECONDS)
    clips = {4.0: 400 + silence, 0.02: 2 + silence, 29.0: 3000}
    for seconds, width in clips.items():
        widths.clear()
        backend.transcribe(noise(seconds), "de")
        assert widths[0] == width
    widths.clear()
    together = backend.transcribe_batch([noise(seconds) for seconds in clips], "de")
    assert widths[:3] == sorted(clips.values(), reverse=True)
    assert [one.tokens for one in together] == [backend.transcribe(noise(s), "de").tokens for s in clips]


def test_what_it_cannot_do_is_refused(checkpoint: Checkpoint, fast: Any, monkeypatch: Any) -> None:
    with pytest.raises(BackendError, match="has no language 'English'"):
        fast.transcribe_batch([noise(1)], "English")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(BackendUnavailable, match="no bfloat16 arithmetic on this CPU"):
        TorchFast.load(checkpoint, "cpu", "bfloat16", SETTINGS)
