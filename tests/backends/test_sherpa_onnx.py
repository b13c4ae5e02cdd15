"""sherpa-onnx: what a folder holds, and tiny random models that the library itself loads and runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sherpa

from asrgate import backends
from asrgate.backends import sherpa_models
from asrgate.backends.base import BackendError, BackendUnavailable, BringsModel, Checkpoint, Settings, Streams
from asrgate.backends.sherpa_models import FOLDER
from asrgate.backends.sherpa_onnx import LANGUAGES, SherpaOnnx
from asrgate.harness import record

NO_FILE = Checkpoint("own", Path(), "0" * 64, {})
ZIPFORMER, STREAMING = {"model_type": "zipformer2"}, {"model_type": "zipformer2", "decode_chunk_len": "32"}
TRANSDUCER = ["encoder-epoch-9-avg-1", "decoder-epoch-9-avg-1", "joiner-epoch-9-avg-1"]
MOONSHINE = ["preprocess", "encode.int8", "uncached_decode.int8", "cached_decode.int8"]
NEMO_STREAMING = {"model_type": "EncDecHybridRNNTCTCBPEModel", "window_size": "65", "chunk_shift": "56"}


def onnx_file(path: Path, **metadata: str) -> None:
    """Write what the reader of metadata reads: version, a graph of so many bytes, pairs of texts."""

    def counted(field: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size >= 0x80:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([field << 3 | 2]) + length + bytes([size]) + content

    pairs = (counted(1, key.encode()) + counted(2, value.encode()) for key, value in metadata.items())
    path.write_bytes(b"\x08\x08" + counted(7, bytes(300)) + b"".join(counted(14, pair) for pair in pairs))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is named, with tokens and no model."""
    named = tmp_path / "some-model"
    named.mkdir()
    (named / "tokens.txt").write_text("<blk> 0\n")
    monkeypatch.setenv(FOLDER, str(named))
    monkeypatch.setenv(LANGUAGES, "en,de")
    return named


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that loads a tiny model of a kind with the library."""
    for module, needs in (("sherpa_onnx", "sherpa-onnx"), ("onnx", "onnx")):
        pytest.importorskip(module, reason=f"needs {needs}")

    def load(kind: str, precision: str = "float32", suffix: str = "", **settings: Any) -> Any:
        folder = tiny_sherpa.write(tmp_path / "tiny-model", kind, suffix)
        monkeypatch.setenv(FOLDER, str(folder))
        monkeypatch.setenv(LANGUAGES, "en")
        SherpaOnnx.check("cpu", precision)
        return SherpaOnnx.load(NO_FILE, "cpu", precision, Settings(**settings))

    return load


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def refusal(call: Callable[[], object]) -> str:
    """Return reason and remedy in one text."""
    with pytest.raises(BackendUnavailable) as caught:
        call()
    return f"{caught.value.reason}; {caught.value.remedy}"


# --- what a folder holds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "metadata", "kind", "is_online"),
    [
        (TRANSDUCER, STREAMING, "transducer", True),
        (TRANSDUCER, ZIPFORMER, "transducer", False),
        (["encoder", "decoder", "joiner"], {"model_type": "EncDecRNNTBPEModel"}, "NeMo transducer", False),
        (["encoder", "decoder", "joiner"], NEMO_STREAMING, "transducer", True),
        (["model"], {"model_type": "EncDecCTCModelBPE"}, "NeMo CTC", False),
        (["model"], {**NEMO_STREAMING, "model_type": "EncDecCTCModelBPE"}, "NeMo CTC", True),
        (["ctc-epoch-20-avg-1-chunk-16-left-128"], STREAMING, "Zipformer CTC", True),
        (["model"], {"model_type": "zipformer2_ctc"}, "Zipformer CTC", False),
        (["model"], {"model_type": "wenet_ctc"}, "WeNet CTC", False),
        (["model"], {"model_type": "sense_voice_ctc"}, "SenseVoice", False),
        (MOONSHINE, {}, "Moonshine", False),
        (["encoder_model", "decoder_model_merged"], {}, "Moonshine 2", False),
        (["tiny.en-encoder", "tiny.en-decoder"], {"model_type": "whisper-tiny.en"}, "Whisper", False),
        ([*TRANSDUCER, "silero_vad"], ZIPFORMER, "transducer", False),
    ],
)
def test_kinds_are_told_from_the_files(
    folder: Path, names: list[str], metadata: dict[str, str], kind: str, is_online: bool
) -> None:
    for name in names:
        onnx_file(folder / f"{name}.onnx", **metadata)
    found = sherpa_models.named()
    assert (found.kind, found.is_online) == (kind, is_online)
    assert backends.describe("sherpa-onnx").streams == is_online
    files = found.files("int8" if names is MOONSHINE else "float32")
    assert {path.stem for path in files.values()} == {*names, "tokens"} - {"silero_vad"}


@pytest.mark.parametrize("metadata", [{}, {"model_type": "fire-red-asr"}, {"model_type": "zipformer2"}])
def test_a_model_of_no_known_kind_is_told_with_those_that_are(folder: Path, metadata: dict[str, str]) -> None:
    onnx_file(folder / "model.onnx", **metadata)
    told = refusal(sherpa_models.named)
    assert (f"says that it is {metadata['model_type']!r}" if metadata else "does not say what it is") in told
    assert "SenseVoice, Moonshine, or Whisper" in told


def test_what_is_missing_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has no ONNX files" in refusal(sherpa_models.named)
    for name in TRANSDUCER:
        onnx_file(folder / f"{name}.onnx", **ZIPFORMER)
    sherpa_models.named()
    monkeypatch.setenv(LANGUAGES, "")
    assert f"which languages the model understands; set {LANGUAGES}" in refusal(SherpaOnnx.model_identity)
    (folder / "tokens.txt").unlink()
    assert "has no tokens.txt" in refusal(sherpa_models.named)
    monkeypatch.setenv(FOLDER, str(tmp_path / "absent"))
    assert "is no folder" in refusal(sherpa_models.named)
    monkeypatch.delenv(FOLDER)
    assert f"no model is named; set {FOLDER}" in refusal(sherpa_models.named)
    assert not backends.describe("sherpa-onnx").streams


def test_precisions_are_files_of_their_own(folder: Path) -> None:
    for name in TRANSDUCER:
        onnx_file(folder / f"{name}.onnx", **ZIPFORMER)
    found = sherpa_models.named()
    assert "has no int8 files, but float32" in refusal(lambda: found.files("int8"))
    for name in ("encoder-epoch-9-avg-1.int8", "joiner-epoch-9-avg-1.int8", "encoder-epoch-9-avg-1.fp16"):
        onnx_file(folder / f"{name}.onnx", **ZIPFORMER)
    in_int8 = {role: path.name for role, path in found.files("int8").items()}
    assert in_int8 == {  # those who publish such models quantise no decoder
        "encoder": "encoder-epoch-9-avg-1.int8.onnx",
        "decoder": "decoder-epoch-9-avg-1.onnx",
        "joiner": "joiner-epoch-9-avg-1.int8.onnx",
        "tokens": "tokens.txt",
    }
    assert found.files("float32")["encoder"].name == "encoder-epoch-9-avg-1.onnx"
    onnx_file(folder / "encoder-epoch-9-avg-2.onnx", **ZIPFORMER)
    told = refusal(lambda: found.files("float32"))
    assert "more than one encoder" in told and "encoder-epoch-9-avg-2.onnx" in told


def test_a_file_that_is_no_model_is_told(folder: Path) -> None:
    path = folder / "model.onnx"
    onnx_file(path, model_type="sense_voice_ctc", long="x" * 300)
    whole = path.read_bytes()
    assert sherpa_models.metadata_of(path) == {"model_type": "sense_voice_ctc", "long": "x" * 300}
    for broken in (b"", b"\x3a", b"version https://git-lfs", whole[: len(whole) - 5]):
        path.write_bytes(broken)
        assert "some-model" in refusal(sherpa_models.named), broken


def test_the_model_is_declared_with_the_digest_of_its_files(folder: Path) -> None:
    onnx_file(folder / "model.onnx", model_type="wenet_ctc", version="3")
    found = SherpaOnnx.model_identity()
    assert (found.name, found.revision, found.languages) == ("some-model", "3", ("en", "de"))
    (folder / "test_wavs").mkdir()
    (folder / "test_wavs" / "0.wav").write_bytes(b"a recording to try it with")
    assert SherpaOnnx.model_identity() == found
    (folder / "tokens.txt").write_text("<blk> 0\nA 1\n")
    assert SherpaOnnx.model_identity().sha256 != found.sha256


@pytest.mark.parametrize(
    "change",
    [{"beam_size": 2}, {"task": "translate"}, {"language": "fr"}, {"temperature": 0.5}, {"threads": 0}],
)
def test_what_does_not_apply_is_refused(folder: Path, change: dict[str, Any]) -> None:
    onnx_file(folder / "model.onnx", model_type="wenet_ctc")
    with pytest.raises(BackendError):
        SherpaOnnx.load(NO_FILE, "cpu", "float32", Settings(**change))


# --- with the library -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny_sherpa.KINDS)
def test_the_library_loads_each_kind_and_hears_with_it(tiny: Callable[..., Any], kind: str) -> None:
    engine = tiny(kind, threads=2)
    assert engine.model.kind == kind.removeprefix("online ")
    assert engine._recognizer.config.model_config.num_threads == 2
    heard = engine.transcribe(noise(2.0), "en").text
    assert set(heard.split()) <= {token.lstrip("▁") for token in tiny_sherpa.LETTERS} and heard
    assert engine.transcribe(noise(2.0, seed=1), "en").text != heard
    assert engine.transcribe(noise(2.0), "en").text == heard
    assert engine.transcribe(np.zeros(100, np.float32), "en").text == ""
    with pytest.raises(BackendError, match="cannot decode 'de'"):
        engine.transcribe(noise(1.0), "de")


@pytest.mark.slow
def test_an_online_model_hears_while_it_is_spoken(tiny: Callable[..., Any]) -> None:
    engine = tiny("online transducer")
    assert isinstance(engine, Streams)
    audio = noise(3.0)
    taken = []

    def chunks() -> Any:
        for start in range(0, len(audio), 8_000):
            taken.append(start)
            yield audio[start : start + 8_000]

    shown = []
    for answer in engine.stream(chunks(), "en"):
        shown.append((len(taken), answer.text))
    assert len(taken) == 6 and shown[0][0] < 3, "it says something before the clip is over"
    texts = [text for _, text in shown]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[-1] == engine.transcribe(audio, "en").text


@pytest.mark.slow
def test_others_have_no_stream_and_are_emulated(tiny: Callable[..., Any]) -> None:
    engine = tiny("transducer", precision="int8", suffix=".int8")
    assert not isinstance(engine, Streams) and isinstance(engine, BringsModel)
    applied = engine.applied_settings
    assert applied["checkpoint_sha256"] == SherpaOnnx.model_identity().sha256
    assert applied["beam_size"] is None and "beam_size" in applied["not_applied"]
    assert applied["files"]["encoder"] == "encoder-epoch-1-avg-1.int8.onnx"


@pytest.mark.slow
def test_metadata_is_read_as_the_library_of_the_format_reads_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    folder = tiny_sherpa.write(tmp_path / "model", "SenseVoice")
    model = onnx.load(folder / "model.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert len(told) > 10 and sherpa_models.metadata_of(folder / "model.onnx") == told


@pytest.mark.slow
def test_a_streaming_run_has_a_native_row(
    tiny: Callable[..., Any], asrgate: Callable[..., int], tmp_path: Path, spoken: Path
) -> None:
    tiny("online transducer")
    arguments = [
        "--scenario",
        "streaming",
        "--backends",
        "sherpa-onnx",
        "--warmup",
        "0",
        "--chunk-seconds",
        "0.1",
    ]
    assert asrgate(*arguments, clips=spoken / "letter.wav") == 0
    run = record.read(tmp_path / "results" / "latest")
    rows = {row["backend"]: row for row in run["results"]}
    assert rows["honest"]["is_emulated"] and not rows["sherpa-onnx"]["is_emulated"]
    assert rows["sherpa-onnx"]["variant"] == "sherpa-onnx@cpu/float32:tiny-model"
    assert all(sample["error"] is None for sample in rows["sherpa-onnx"]["samples"])
    assert rows["sherpa-onnx"]["streaming"]["partials"] > 0
