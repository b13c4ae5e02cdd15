"""whisper.cpp runs the checkpoint's own numbers, with the decoding asked for, or refuses."""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from fake_checkpoint import MULTILINGUAL, fake_content, write_fake_checkpoint
from paths import ROOT

from asrgate.backends.base import Backend, BackendError, BackendUnavailable, Settings
from asrgate.backends.checkpoints.catalog import CheckpointError, resolve
from asrgate.backends.checkpoints.conversions import ggml_model
from asrgate.backends.checkpoints.conversions.ggml_model import BLOCK, ggml_file, quantise_q5_1, quantise_q8_0
from asrgate.backends.openai_whisper import WhisperCpu
from asrgate.backends.whisper_cpp import WhisperCpp
from asrgate.harness.corpus.audio import decode

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow
HEARING = {"no_speech_threshold": 2.0}  # the fakes' own no-speech probability is near 0 or 1 by chance


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("_pywhispercpp", reason="needs pywhispercpp")


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a fake checkpoint, written once for each description."""
    folder, written = tmp_path_factory.mktemp("fakes"), {}

    def checkpoint(**content: Any) -> Any:
        key = json.dumps(content, default=str)
        if key not in written:
            written[key] = resolve(str(write_fake_checkpoint(folder / f"fake{len(written)}.pt", **content)))
        return written[key]

    return checkpoint


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def hear(
    checkpoint: Any, audio: np.ndarray, precision: str = "f16", language: str = "en", **settings: Any
) -> Any:
    wanted = Settings(**{**HEARING, **settings})
    return WhisperCpp.load(checkpoint, "cpu", precision, wanted).transcribe(audio, language)


# --- the file -------------------------------------------------------------------------------------------


def read_ggml(path: Path) -> tuple[tuple[int, ...], dict[bytes, int], dict[str, tuple[int, tuple, bytes]]]:
    """Read the format as whisper.cpp does: numbers at the head, tokens, tensors (type, shape, bytes)."""
    data, at = path.read_bytes(), 0

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        at += struct.calcsize(layout)
        return struct.unpack_from(layout, data, at - struct.calcsize(layout))

    head = take("<I11i")
    rows, columns = take("<2i")
    at += 4 * rows * columns
    assert (rows, columns) == (80, 201)
    tokens = {}
    for number in range(take("<i")[0]):
        (length,) = take("<i")
        tokens[bytes(data[at : at + length])] = number
        at += length
    tensors = {}
    while at < len(data):
        dimensions, length, kind = take("<3i")
        shape = tuple(reversed(take(f"<{dimensions}i")))
        name = data[at : at + length].decode()
        at += length
        size = {0: 4.0, 1: 2.0, 7: 24 / 32, 8: 34 / 32}[kind] * np.prod(shape)
        tensors[name] = (kind, shape, data[at : at + int(size)])
        at += int(size)
    assert at == len(data)
    return head, tokens, tensors


def test_the_f16_file_holds_the_checkpoints_own_numbers(fake: Callable[..., Any]) -> None:
    checkpoint = fake()
    weights = torch.load(checkpoint.path, weights_only=True)["model_state_dict"]
    head, tokens, tensors = read_ggml(ggml_file(checkpoint, "f16"))
    assert head == (0x67676D6C, 51_864, 1500, 32, 2, 2, 448, 32, 2, 2, 80, 1)
    assert len(tokens) == 50_256 and tokens[b" "] == 220 and tokens[b" the"] == 262
    assert set(tensors) == set(weights)
    for name, (kind, shape, raw) in tensors.items():
        stored = np.frombuffer(raw, "<f4" if kind == 0 else "<f2").reshape(shape)
        assert np.array_equal(stored.reshape(weights[name].shape), weights[name].numpy()), name
        is_matrix = name.endswith(".weight") and weights[name].ndim > 1
        assert kind == (1 if is_matrix else 0), f"whisper.cpp wants {name} as the other type"
    assert tensors["encoder.conv1.bias"][1] == (32, 1), "added to (channels, frames)"


def test_quantised_files_hold_blocks_in_matrices_only(fake: Callable[..., Any]) -> None:
    for file_type, number, kind in (("q8_0", 2007, 8), ("q5_1", 2009, 7)):
        head, _, tensors = read_ggml(ggml_file(fake(), file_type))
        assert head[-1] == number
        kinds = {name: stored[0] for name, stored in tensors.items()}
        assert kinds["decoder.token_embedding.weight"] == kinds["encoder.blocks.0.mlp.0.weight"] == kind
        assert kinds["encoder.conv2.weight"] == 1
        assert kinds["decoder.positional_embedding"] == kinds["encoder.ln_post.weight"] == 0


def values_of_every_size() -> np.ndarray:
    generator = np.random.default_rng(0)
    values = generator.standard_normal((256, 96)) * generator.lognormal(0, 3, (256, 1))
    values[0, :32], values[1, :32] = 0, 3
    values[2, :32] = np.arange(-16, 16) * 127 / 16  # halves, which round away from zero
    return values.astype(np.float16).astype(np.float32)


def test_blocks_are_those_of_ggml_to_the_bit(library: Any) -> None:
    maps = Path("/proc/self/maps").read_text().split()
    ggml = ctypes.CDLL(next(path for path in maps if "libggml-base" in path))
    values = values_of_every_size()
    for name, quantise in (("quantize_q8_0", quantise_q8_0), ("quantize_q5_1", quantise_q5_1)):
        function, ours = getattr(ggml, name), quantise(values)
        function.restype = ctypes.c_size_t
        function.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]
        theirs = np.zeros(len(ours), np.uint8)
        assert function(values.ctypes.data, theirs.ctypes.data, *values.shape, None) == len(ours)
        assert theirs.tobytes() == ours


def test_blocks_give_back_the_numbers_to_half_a_step() -> None:
    """Needs no whisper.cpp."""
    values = np.random.default_rng(1).standard_normal((64, BLOCK)).astype(np.float32)
    layout = [("scale", "<f2"), ("numbers", "i1", 32)]
    blocks = np.frombuffer(quantise_q8_0(values), layout)
    back = blocks["scale"][:, None].astype(np.float32) * blocks["numbers"]
    assert (np.abs(back - values) <= 0.51 * np.abs(values).max(1, keepdims=True) / 127 + 2e-3).all()
    five = np.frombuffer(
        quantise_q5_1(values), [("scale", "<f2"), ("low", "<f2"), ("fifth", "<u4"), ("four", "u1", 16)]
    )
    low = np.concatenate([five["four"] & 15, five["four"] >> 4], axis=1)
    numbers = low + ((five["fifth"][:, None] >> np.arange(32) & 1) << 4)
    back = five["scale"][:, None].astype(np.float32) * numbers + five["low"][:, None].astype(np.float32)
    assert (np.abs(back - values) <= 0.51 * np.ptp(values, axis=1, keepdims=True) / 31 + 2e-3).all()


def test_the_file_is_written_once_and_whole(
    fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = fake()

    def breaks(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ggml_model, "read_tensors", breaks)
        with pytest.raises(BackendError, match="No space left"):
            ggml_file(checkpoint, "f16")
    path = ggml_file(checkpoint, "f16")
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".bin"] == [path.name]
    assert not list(path.parent.glob(f".{path.name}.[!l]*")), "the half-written file is gone"
    before = path.stat().st_mtime_ns
    assert ggml_file(checkpoint, "f16") == path and path.stat().st_mtime_ns == before
    assert checkpoint.sha256 in path.name


def test_a_file_that_changed_is_not_written_under_the_old_hash(tmp_path: Path) -> None:
    path = write_fake_checkpoint(tmp_path / "changes.pt")
    checkpoint = resolve(str(path))
    write_fake_checkpoint(path, seed=1)
    with pytest.raises(CheckpointError, match="changed after it was checked"):
        ggml_file(checkpoint, "q8_0")


def test_weights_that_do_not_fit_are_refused(fake: Callable[..., Any], tmp_path: Path) -> None:
    narrow = fake(n_text_state=48, n_text_head=2, n_audio_state=48)
    with pytest.raises(BackendError, match="not a multiple of the 32"):
        ggml_file(narrow, "q5_1")
    content = torch.load(write_fake_checkpoint(tmp_path / "w.pt", dtype=torch.float32), weights_only=True)
    content["model_state_dict"]["decoder.blocks.0.mlp.0.weight"][0, 0] = 1e6
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(BackendError, match="too large for float16"):
        ggml_file(resolve(str(tmp_path / "w.pt")), "f16")


# --- the engine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["short.flac", "statement.flac"])
def test_all_precisions_of_the_bundled_model_hear_what_openai_whisper_hears(library: Any, clip: str) -> None:
    checkpoint, audio = resolve("nano.en"), decode(ROOT / "audio_samples" / clip)
    theirs = WhisperCpu.load(checkpoint, "cpu", "float32", Settings()).transcribe(audio, "en")
    assert len(theirs.tokens) >= 5
    for precision in ("f16", "q8_0", "q5_1"):
        ours = WhisperCpp.load(checkpoint, "cpu", precision, Settings()).transcribe(audio, "en")
        assert ours.tokens == theirs.tokens and ours.text == theirs.text, precision


@pytest.mark.parametrize(("content", "language"), [({}, "en"), ({"n_vocab": MULTILINGUAL}, "de")])
def test_f16_decodes_openai_whispers_tokens_up_to_the_first_timestamp(
    library: Any, fake: Callable[..., Any], content: dict[str, int], language: str
) -> None:
    checkpoint = fake(**content)
    # 30 s exactly: nothing is padded, which the two do differently
    wanted = Settings(**HEARING)
    theirs = WhisperCpu.load(checkpoint, "cpu", "float32", wanted).transcribe(noise(30), language).tokens
    special = 50_257 if checkpoint.is_multilingual else 50_256
    # a timestamp nobody asked for: openai-whisper samples it, whisper.cpp does not
    first = next(index for index, token in enumerate(theirs) if token >= special)
    ours = hear(checkpoint, noise(30), language=language).tokens
    assert first > 5 and ours[:first] == theirs[:first] and max(ours) < special


def test_settings_reach_whisper_cpp(library: Any, fake: Callable[..., Any]) -> None:
    multilingual = fake(n_vocab=MULTILINGUAL)
    plain = hear(multilingual, noise(4))
    assert plain.tokens
    assert hear(multilingual, noise(4), task="translate").tokens != plain.tokens
    assert hear(multilingual, noise(4), language="fr").tokens != plain.tokens
    # every window is above a threshold of -1, and none is likelier than e^0
    audio = decode(ROOT / "audio_samples" / "short.flac")
    above = {"no_speech_threshold": -1.0}
    assert hear(resolve("nano.en"), audio, **above, logprob_threshold=0.0).text == ""
    assert hear(resolve("nano.en"), audio, **above, logprob_threshold=-100.0).text != ""
    assert hear(resolve("nano.en"), audio, logprob_threshold=0.0).text != ""


def test_its_no_speech_rule_skips_nothing_and_is_recorded_as_not_applied(
    library: Any, tmp_path: Path
) -> None:
    """If this fails because whisper.cpp skips the window, the rule works: state the setting as applied."""
    content = fake_content()
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**content["dims"]))
    model.load_state_dict(content["model_state_dict"])
    tokens = whisper.tokenizer.get_tokenizer(False)
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(noise(4)), model.dims.n_mels)
    with torch.no_grad():
        first = model(mel[None], torch.tensor([[tokens.sot]]))[0, 0]
    rows = content["model_state_dict"]["decoder.token_embedding.weight"]
    rows[tokens.no_speech] = 3 * rows[first.argmax()]  # the window is almost certainly silent
    torch.save(content, tmp_path / "silent.pt")
    checkpoint = resolve(str(tmp_path / "silent.pt"))
    wanted = Settings(no_speech_threshold=0.6, logprob_threshold=0.0)
    assert WhisperCpu.load(checkpoint, "cpu", "float32", wanted).transcribe(noise(4), "en").text == ""
    engine = WhisperCpp.load(checkpoint, "cpu", "f16", wanted)
    assert engine.transcribe(noise(4), "en").text != ""
    assert engine.applied_settings["no_speech_threshold"] is None
    assert "close to 0" in engine.applied_settings["not_applied"]["no_speech_threshold"]


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05, 30.0])
def test_clips_of_every_length_come_back(library: Any, fake: Callable[..., Any], seconds: float) -> None:
    engine = WhisperCpp.load(fake(), "cpu", "f16", Settings(**HEARING))
    engine.transcribe(noise(4), "en")
    audio = noise(seconds)
    audio.setflags(write=False)
    heard = engine.transcribe(audio, "en")
    assert bool(heard.tokens) == (seconds > 0), "less than a frame is no audio"
    assert np.array_equal(audio, noise(seconds))


def test_a_trimmed_context_is_another_computation(library: Any, fake: Callable[..., Any]) -> None:
    checkpoint = fake()
    engine = WhisperCpp.load(checkpoint, "cpu", "f16+trim", Settings(**HEARING))
    full = WhisperCpp.load(checkpoint, "cpu", "f16", Settings(**HEARING))
    assert engine._parameters("en", False, 200).audio_ctx == 200
    assert engine._parameters("en", True, 2000).audio_ctx == 1500
    assert full._parameters("en", False, 200).audio_ctx == 0, "the whole context"
    assert engine.applied_settings["audio_context"] != full.applied_settings["audio_context"] == "30 s"
    assert engine.transcribe(noise(30), "en").tokens == full.transcribe(noise(30), "en").tokens


def test_long_clips_take_timestamps_which_two_layers_never_get(
    library: Any, fake: Callable[..., Any]
) -> None:
    with pytest.raises(BackendError, match="2 decoder layers"):
        hear(fake(), noise(31))
    heard = hear(fake(n_text_layer=3), noise(31))
    assert heard.tokens is None and heard.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 2}, "beam search is not openai-whisper's"),
        ({"suppress_tokens": "-1,5"}, "Whisper's own list of tokens or none"),
        ({"temperature": 0.2}, "would sample at random"),
        ({"task": "translate"}, "English-only and cannot translate"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_written(
    fake: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        WhisperCpp.load(fake(), "cpu", "f16", Settings(**settings))


def test_languages_the_model_lacks_are_refused(library: Any, fake: Callable[..., Any]) -> None:
    with pytest.raises(BackendError, match="English-only and cannot decode 'de'"):
        hear(fake(), noise(1), language="de")
    with pytest.raises(BackendError, match=r"has no language 'yue'.* It has af, am, .*zh"):
        hear(fake(n_vocab=MULTILINGUAL), noise(1), language="yue")


def test_applied_settings_are_complete(library: Any, fake: Callable[..., Any]) -> None:
    settings = Settings(threads=2, condition_on_previous_text=True, suppress_tokens="")
    engine = WhisperCpp.load(fake(), "cpu", "q8_0", settings)
    assert isinstance(engine, Backend)
    applied = json.loads(json.dumps(engine.applied_settings))
    assert (asdict(settings) | {"no_speech_threshold": None}).items() <= applied.items()
    assert applied["max_tokens_per_window"] == 220 and "AVX" in applied["system_info"]
    parameters = engine._parameters("en", True, 1500)
    assert parameters.n_threads == 2 and parameters.temperature_inc == 0
    assert not parameters.suppress_nst and parameters.n_max_text_ctx == 224
    assert not parameters.no_timestamps and engine._parameters("en", False, 1500).no_timestamps


def test_an_absent_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "_pywhispercpp", raising=False)
    monkeypatch.setattr("asrgate.backends.devices.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable) as refused:
        WhisperCpp.check("cpu", "f16")
    assert refused.value.remedy == "pip install pywhispercpp"
