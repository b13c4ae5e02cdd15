"""debug-encoder: faults planted in openai-whisper's encoder, each found at its own layer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fake_checkpoint import write_fake_checkpoint
from paths import ROOT, SUPPORT

from asrgate import backends
from asrgate.backends.base import BackendError, Checkpoint, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.inspection.encoder_trace import layer_shapes, require_trace
from asrgate.backends.openai_whisper import WhisperCpu
from asrgate.harness.cli import main
from asrgate.harness.diagnose.layers import first_divergence, layer_errors

FAULTY = SUPPORT / "faulty_encoders"
TOLERANCES = (1e-5, 1e-4)

FAULTS = {
    "Sound": None,
    "WithoutLnPost": "ln_post",
    "TransposedQuery": "block.1",
    "GeluTanh": "conv1",
    "GeluTanhSecond": "conv2",
    "GeluTanhInBlock": "block.1",
    "Epsilon": "block.0",
    "EpsilonOfLnPost": "ln_post",
    "SwappedKeys": "cross_key.1",
    "NarrowFilters": "log_mel",
    "ShiftedFilters": "log_mel",
    "NotFinite": "block.1",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("encoder") / "fake.en.pt"
    return resolve(str(write_fake_checkpoint(path, n_audio_layer=3)))


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return soundfile.read(ROOT / "audio_samples" / "short.flac", dtype="float32")[0]


@pytest.fixture(scope="module")
def load(weights: Checkpoint) -> Callable[[Any], Any]:
    return lambda engine: engine.load(weights, "cpu", "float32", Settings(threads=1))


@pytest.fixture(scope="module")
def right(load: Callable[[Any], Any], speech: np.ndarray) -> dict[str, np.ndarray]:
    return load(WhisperCpu).encoder_trace(speech)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the faulty engines' package known here and to the workers."""
    monkeypatch.syspath_prepend(str(FAULTY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAULTY), os.environ["PYTHONPATH"]]))


@pytest.mark.parametrize(("fault", "layer"), FAULTS.items())
def test_a_fault_is_found_at_its_own_layer(
    fault: str, layer: str | None, load: Callable[..., Any], right: Any, speech: np.ndarray, faulty: None
) -> None:
    import faulty_encoders

    trace = load(getattr(faulty_encoders, fault)).encoder_trace(speech)
    errors = layer_errors(trace, right, *TOLERANCES)
    first = first_divergence(errors)
    assert (first and first.layer) == layer
    before = [
        error for error in errors if list(right).index(error.layer) < list(right).index(layer or "ln_post")
    ]
    assert all(error.relative_error is not None and error.relative_error < 1e-6 for error in before)


def test_another_order_of_sums_is_no_divergence_but_no_identity_either(
    load: Callable[..., Any], right: Any, speech: np.ndarray, faulty: None
) -> None:
    import faulty_encoders

    errors = layer_errors(load(faulty_encoders.Sound).encoder_trace(speech), right, *TOLERANCES)
    output = next(error for error in errors if error.layer == "ln_post")
    assert output.relative_error is not None
    assert 0 < output.relative_error < 1e-6
    assert output.cosine == pytest.approx(1, abs=1e-12)


def test_the_trace_is_what_the_model_computes(
    load: Callable[..., Any], right: Any, weights: Checkpoint, speech: np.ndarray
) -> None:
    import torch

    require_trace(right, weights.dimensions)
    model = load(WhisperCpu)._model
    gelu = torch.nn.functional.gelu
    with torch.no_grad():
        mel = torch.from_numpy(right["log_mel"])[None]
        conv1 = gelu(model.encoder.conv1(mel))
        conv2 = gelu(model.encoder.conv2(conv1))
        block0 = model.encoder.blocks[0](conv2.permute(0, 2, 1) + model.encoder.positional_embedding)
        encoded = model.encoder(mel)
        key = model.decoder.blocks[1].cross_attn.key(encoded)
    for name, tensor in {"conv1": conv1[0].T, "conv2": conv2[0].T, "block.0": block0[0],
                         "ln_post": encoded[0], "cross_key.1": key[0]}.items():  # fmt: skip
        assert np.array_equal(right[name], tensor.numpy()), name


@pytest.mark.parametrize("seconds", [0.5, 30.0, 31.0])
def test_the_window_is_the_one_that_is_transcribed(
    seconds: float, load: Callable[..., Any], speech: np.ndarray
) -> None:
    """Short clips end in zeros, not in silence; long ones are scaled by the whole clip's maximum."""
    engine = load(WhisperCpu)
    audio = np.resize(speech, int(seconds * 16_000)) * np.linspace(0.1, 1, int(seconds * 16_000), dtype="f4")
    seen = []
    encode = engine._model.encoder.forward

    def stop(mel: Any) -> None:
        seen.append(mel.clone())
        raise StopIteration

    engine._model.encoder.forward = stop
    with pytest.raises(StopIteration):
        engine.transcribe(audio, "en")
    engine._model.encoder.forward = encode
    assert np.array_equal(engine.encoder_trace(audio)["log_mel"], seen[0][0].numpy())


def test_a_layer_of_zeros_and_one_that_is_not_finite_have_no_cosine() -> None:
    zero, one = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    both, missing, broken = (
        layer_errors({"conv1": ours}, {"conv1": right}, *TOLERANCES)[0]
        for ours, right in ((zero, zero), (zero, one), (one * np.nan, one))
    )
    assert (both.cosine, both.relative_error, both.diverges) == (None, 0.0, False)
    assert (missing.cosine, missing.relative_error, missing.diverges) == (None, 1.0, True)
    assert (broken.relative_error, broken.tested.mean, broken.diverges) == (None, None, True)


def test_figures_of_a_layer_are_those_of_their_definitions() -> None:
    ours, right = np.array([[1, 2], [3, 5]], np.float32), np.array([[1, 2], [3, 4]], np.float32)
    (error,) = layer_errors({"conv1": ours}, {"conv1": right}, *TOLERANCES)
    assert error.relative_error == pytest.approx(1 / 30**0.5)
    assert error.max_absolute_error == 1
    assert error.cosine == pytest.approx(34 / (39 * 30) ** 0.5)
    assert (error.reference.mean, error.reference.min, error.reference.max) == (2.5, 1, 4)
    assert error.reference.std == pytest.approx(1.25**0.5)


def test_log_mel_is_judged_by_its_absolute_error() -> None:
    right = np.full((80, 3000), 1e-3, np.float32)
    (close,) = layer_errors({"log_mel": right + np.float32(9e-5)}, {"log_mel": right}, *TOLERANCES)
    (far,) = layer_errors({"log_mel": right + np.float32(2e-4)}, {"log_mel": right}, *TOLERANCES)
    assert (close.diverges, far.diverges) == (False, True)


def test_a_trace_with_a_layer_too_few_is_refused(right: Any, weights: Checkpoint) -> None:
    require_trace(right, weights.dimensions)
    with pytest.raises(BackendError, match=r"must have log_mel, .*ln_post"):
        require_trace({k: v for k, v in right.items() if k != "ln_post"}, weights.dimensions)
    with pytest.raises(BackendError, match=r"conv2 as float64"):
        require_trace(right | {"conv2": right["conv2"].astype(np.float64)}, weights.dimensions)


def test_layers_of_a_large_multilingual_model() -> None:
    shapes = layer_shapes({"n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_layer": 32,
                           "n_text_state": 1280, "n_text_layer": 4})  # fmt: skip
    assert shapes["log_mel"] == (128, 3000)
    assert shapes["conv1"] == (3000, 1280)
    assert list(shapes)[-2:] == ["cross_key.3", "cross_value.3"]
    assert len(shapes) == 3 + 32 + 1 + 8


# the command


@pytest.mark.slow
def test_command_names_the_layer_in_table_json_and_status(
    weights: Checkpoint, tmp_path: Path, faulty: None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    found = tmp_path / "layers.json"
    status = main(
        ["debug-encoder", "--backend", "transposed-query", "--model", str(weights.path), "--threads", "1"]
        + ["--json", str(found), "short"]
    )
    out = capsys.readouterr().out
    assert status == 1
    assert "First layer that diverges: block.1 (relative error" in out
    assert max(map(len, out.splitlines())) <= 80
    document = json.loads(found.read_text())
    assert document["schema_version"] == 1
    assert document["backend"] == "transposed-query@cpu/float32"
    (clip,) = document["clips"]
    assert clip["first_diverging_layer"] == "block.1"
    assert [layer["layer"] for layer in clip["layers"]] == list(layer_shapes(weights.dimensions))
    diverging = {layer["layer"] for layer in clip["layers"] if layer["diverges"]}
    assert {"block.1", "block.2", "ln_post"} <= diverging
    assert not {"log_mel", "conv1", "conv2", "block.0"} & diverging


@pytest.mark.slow
def test_command_passes_an_engine_that_only_rounds(
    weights: Checkpoint, faulty: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["debug-encoder", "--model", str(weights.path), "--threads", "1", "short"]
    assert main([*asked, "--backend", "sound"]) == 0
    assert "No layer diverges" in capsys.readouterr().out


def test_a_misshapen_trace_is_one_clear_error(
    weights: Checkpoint, faulty: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["debug-encoder", "--model", str(weights.path), "--threads", "1", "short"]
    assert main([*asked, "--backend", "sound", "--reference", "misshapen"]) == 2
    assert "misshapen@cpu/float32: its encoder_trace gives conv1 as float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--backend", "faster-whisper"],
            r"faster-whisper cannot show .* Backends that have one: whisper-cpu",
        ),
        (["--backend", "nothing"], r"no backend is called 'nothing'"),
        (
            ["--backend", "whisper-cpu", "no-such-clip"],
            r"neither a file nor a bundled clip; the bundled clips are .*short",
        ),
        (["--backend", "whisper-cpu", "--model", "no-such-model"], r"no model is called 'no-such-model'"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["debug-encoder", *arguments]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err)
    assert "Traceback" not in err


def test_the_parent_imports_no_engine() -> None:
    code = (
        "import sys, asrgate.harness.cli.debug_encoder, asrgate.harness.cli.compare_outputs\n"
        "import asrgate.backends.inspection.encoder_trace\n"
        "print(*{'torch', 'whisper', 'ctranslate2', 'max'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_every_builtin_that_shows_its_layers_follows_the_seam() -> None:
    assert hasattr(backends.load("whisper-cpu"), "encoder_trace")
    assert hasattr(backends.load("whisper-cuda"), "encoder_trace")
