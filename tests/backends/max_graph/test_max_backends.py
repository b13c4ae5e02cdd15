"""The MAX graphs compute what openai-whisper computes, token for token, or refuse."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoint import fake_content, write_fake_checkpoint

from asrgate.backends.base import BackendError, BackendUnavailable, Settings
from asrgate.backends.checkpoints.cache import locked
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.inspection.encoder_trace import layer_shapes
from asrgate.backends.max_graph import engine, processor, session
from asrgate.backends.max_graph import place as places
from asrgate.backends.max_graph.weights import prepared
from asrgate.backends.max_hybrid import MaxHybrid
from asrgate.backends.max_whisper import MaxWhisper
from asrgate.backends.openai_whisper import WhisperCpu
from asrgate.backends.torch_whisper.encoder import TorchEncoder
from asrgate.backends.whisper_common.greedy import SILENCE_ENCODED_SECONDS, TRIMMED

pytest.importorskip("max.engine", reason="needs the package max")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # a test may have to compile an engine's graphs
]

WIDE = {"n_audio_state": 64, "n_text_state": 64}  # two heads of 32, the narrowest the kernels take
SETTINGS = Settings(threads=2, no_speech_threshold=2.0)  # the fakes' own probability of silence is chance
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2, "int8": 5e-2}


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000))).astype(np.float32)


class Engines:
    """All engines on one fake checkpoint; each is loaded, its graphs compiled, when it is first wanted."""

    def __init__(self, folder: Path):
        self.cache = str(folder / "graphs")
        self.checkpoint = resolve(str(write_fake_checkpoint(folder / "fake.pt", **WIDE)))

    def loaded(self, backend: Any, precision: str = "float32", settings: Settings = SETTINGS) -> Any:
        """Load with graphs from the engines' cache, which outlives the test's own."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ASRGATE_CACHE", self.cache)
            return backend.load(self.checkpoint, "cpu", precision, settings)

    @cached_property
    def reference(self) -> Any:
        return self.loaded(WhisperCpu)

    @cached_property
    def max(self) -> Any:
        return self.loaded(MaxWhisper)

    @cached_property
    def half(self) -> Any:
        return self.loaded(MaxWhisper, "bfloat16")

    @cached_property
    def int8(self) -> Any:
        return self.loaded(MaxWhisper, "int8")

    @cached_property
    def trimmed(self) -> Any:
        return self.loaded(MaxWhisper, "bfloat16+trim")

    @cached_property
    def hybrid(self) -> Any:
        return self.loaded(MaxHybrid)  # which takes what was compiled for `max`

    @cached_property
    def products(self) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ASRGATE_MAX_LOG_MEL", "matmul")
            return SimpleNamespace(_engine=OnlyLogMel(self.checkpoint, "cpu", "float32", SETTINGS))

    @cached_property
    def device(self) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(places, "place", without_kernels)
            return self.loaded(MaxWhisper)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


class OnlyLogMel(engine.MaxEngine):
    """The first stage, so that no other is compiled."""

    def _compiled_graphs(self) -> tuple[str, ...]:
        return ("log_mel",)


def without_kernels(device: Any, precision: str, halves: bool) -> Any:
    """Where a GPU's graphs compute, on the CPU."""
    from max.dtype import DType

    return places.Place(device, *[DType[precision]] * 4, has_kernels=False)


@pytest.mark.parametrize("name", ["max", "hybrid", "device"])
@pytest.mark.parametrize("seconds", [0.05, 4.0, 31.0, 65.0])
def test_float32_decodes_the_reference_tokens(engines: Engines, name: str, seconds: float) -> None:
    """Short and sequential long-form, without and with timestamps."""
    ours = getattr(engines, name).transcribe(noise(seconds), "en")
    theirs = engines.reference.transcribe(noise(seconds), "en")
    assert ours.tokens == theirs.tokens
    assert ours.text == theirs.text
    assert seconds < 1 or len(set(theirs.tokens)) > 2
    assert set(ours.stage_seconds) == {"log_mel", "encode", "decode"}


def test_prompted_windows_decode_the_reference_tokens(engines: Engines) -> None:
    texts = []
    for backend in (engines.max, engines.device, engines.reference):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(backend._options, "condition_on_previous_text", True)
            texts.append(backend.transcribe(noise(65), "en").tokens)
    assert texts[0] == texts[1] == texts[2]
    assert texts[2] != engines.reference.transcribe(noise(65), "en").tokens, "the prompt made no difference"


@pytest.mark.parametrize("name", ["max", "half", "int8", "trimmed", "hybrid", "device"])
def test_a_batch_is_its_clips_one_by_one(engines: Engines, name: str) -> None:
    """They do not all end at the same step, so that some drop out before the last one ends."""
    backend = getattr(engines, name)
    clips = [noise(seconds) for seconds in (4, 0, 9, 0.05, 29, 2, 17, 1, 12, 31)]
    alone = [backend.transcribe(clip, "en") for clip in clips[:-1]]
    together = backend.transcribe_batch(clips, "en")
    assert [found.tokens for found in together[:-1]] == [found.tokens for found in alone]
    assert len({len(found.tokens) for found in alone}) > 1
    parts = [backend.transcribe(part, "en").tokens for part in (clips[-1][:480_000], clips[-1][480_000:])]
    assert together[-1].tokens == parts[0] + parts[1]
    assert backend.transcribe(clips[0], "en").tokens == alone[0].tokens, "nothing is left over"
    assert "chunked" in backend.applied_settings["long_form"]


@pytest.mark.parametrize("backend", [MaxHybrid, MaxWhisper])
def test_beams_are_openai_whispers(engines: Engines, backend: Any) -> None:
    settings = replace(SETTINGS, beam_size=5)
    ours, theirs = (engines.loaded(engine, settings=settings) for engine in (backend, WhisperCpu))
    for seconds in (4.0, 31.0):
        found = ours.transcribe(noise(seconds), "en").tokens
        assert found == theirs.transcribe(noise(seconds), "en").tokens
        assert found != engines.hybrid.transcribe(noise(seconds), "en").tokens
    together = ours.transcribe_batch([noise(4.0), noise(9.0)], "en")
    assert together[0].tokens == theirs.transcribe(noise(4.0), "en").tokens


@pytest.mark.parametrize(
    ("name", "precision"),
    [("max", "float32"), ("hybrid", "float32"), ("half", "bfloat16"), ("int8", "int8")],
)
def test_each_layer_is_the_reference(engines: Engines, name: str, precision: str) -> None:
    ours = getattr(engines, name).encoder_trace(noise(4))
    theirs = engines.reference.encoder_trace(noise(4))
    assert list(ours) == list(layer_shapes(engines.checkpoint.dimensions))
    for layer, wanted in theirs.items():
        difference = np.linalg.norm(ours[layer] - wanted) / np.linalg.norm(wanted)
        assert ours[layer].shape == wanted.shape
        assert difference < TOLERANCE[precision], f"{layer} differs by {difference:.1e}"
    rounding = np.abs(ours["ln_post"] - theirs["ln_post"]).max()
    assert (rounding > 1e-4) == (precision != "float32"), "the precision asked for is not the one computed in"


def test_a_gpus_graphs_encode_the_same(engines: Engines) -> None:
    from whisper.audio import pad_or_trim

    ours, theirs = engines.device._engine, engines.max._engine
    for found, wanted in (
        (ours.log_mel(noise(4)), theirs.log_mel(noise(4))),
        *zip(*(encoded(x, pad_or_trim(x.log_mel(noise(4)), 3000)) for x in (ours, theirs)), strict=True),
    ):
        assert found.shape == wanted.shape
        assert (found - wanted).norm() / wanted.norm() < TOLERANCE["float32"]


def test_logits_that_are_no_numbers_end_a_gpus_loop(engines: Engines) -> None:
    from max.driver import Buffer

    ours = engines.device._engine
    nothing = Buffer.from_numpy(np.full((2, ours.dims.n_vocab), np.nan, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "_masks", lambda *rules: nothing)
        with pytest.raises(BackendError, match="no token is allowed"):
            engines.device.transcribe(noise(4), "en")
    assert engines.device.transcribe(noise(4), "en").tokens == engines.max.transcribe(noise(4), "en").tokens


def encoded(engine: Any, mel: torch.Tensor) -> list[torch.Tensor]:
    return [torch.from_dlpack(x).float().clone() for x in engine.encode(mel)]


def test_a_trimmed_window_is_the_clip_and_behind_it_silence(engines: Engines) -> None:
    from whisper.audio import pad_or_trim

    ours, whole = engines.trimmed._engine, engines.half._engine

    mel = whole.log_mel(noise(29))
    window, short = pad_or_trim(mel[:, :2900], 3000), pad_or_trim(mel[:, :399], 3000)
    frames = 400 + round(100 * SILENCE_ENCODED_SECONDS)  # an even number of them
    positions = frames // 2
    silence = encoded(whole, torch.zeros(80, 3000))
    assert all(map(torch.equal, encoded(ours, window), encoded(whole, window)))
    features = TorchEncoder(ours.state_dict, ours.dims, "float32", "cpu").encode(short[None, :, :frames])[0]
    for name, found, quiet in zip(("key", "value"), encoded(ours, short), silence, strict=True):
        weights = ours.state_dict
        for layer, heads in enumerate(found):
            linear = f"decoder.blocks.{layer}.cross_attn.{name}"
            wanted = features @ weights[f"{linear}.weight"].float().T + weights.get(f"{linear}.bias", 0.0)
            flat = heads[:, :positions].transpose(0, 1).flatten(1)
            assert (flat - wanted).norm() / wanted.norm() < TOLERANCE["bfloat16"]
        assert torch.equal(found[:, :, positions:], quiet[:, :, positions:])
    assert engines.trimmed.applied_settings["audio_context"] == TRIMMED
    assert engines.half.applied_settings["audio_context"] == "30 s"


@pytest.mark.parametrize(("name", "method"), [("max", "mojo"), ("products", "matmul"), ("device", "mojo")])
@pytest.mark.parametrize("samples", [1, 159, 160, 201, 16_000, 100_001])
def test_log_mel_is_whispers(engines: Engines, name: str, method: str, samples: int) -> None:
    from whisper.audio import N_SAMPLES, log_mel_spectrogram

    audio = noise(samples / 16_000)
    stages = getattr(engines, name)._engine
    assert stages.applied()["log_mel"] == method
    ours = stages.log_mel(audio)
    theirs = log_mel_spectrogram(torch.from_numpy(audio), 80, padding=N_SAMPLES)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4


def test_unknown_log_mel_is_refused(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASRGATE_MAX_LOG_MEL", "librosa")
    with pytest.raises(BackendError, match=r"'librosa'; on cpu .* mojo or matmul"):
        MaxWhisper.load(engines.checkpoint, "cpu", "float32", SETTINGS)


def test_children_run_this_python_still(engines: Engines) -> None:
    """A compilation writes another Python into the environment that child processes are given."""
    code = "import sys; print(sys.prefix)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sys.prefix


def test_beams_are_refused_on_a_gpu(engines: Engines) -> None:
    with pytest.raises(BackendError, match="on cuda it only decodes greedily"):
        MaxWhisper.load(engines.checkpoint, "cuda", "float16", Settings(beam_size=2))


def test_missing_and_misshapen_tensors_are_named(engines: Engines) -> None:
    from asrgate.backends.max_graph.modules import Whisper

    place, dims = engines.max._engine.place, engines.max._engine.dims
    weights = fake_content(**WIDE)["model_state_dict"]
    kinds = Whisper(dims, place).kinds()

    def load(tensors: dict[str, Any]) -> None:
        prepared(tensors, kinds, has_kernels=True)

    load(weights)
    for name in ("encoder.ln_post.weight", "encoder.conv1.weight", "decoder.blocks.0.attn.query.weight"):
        with pytest.raises(ValueError, match=name):
            load({k: v for k, v in weights.items() if k != name})
        with pytest.raises(ValueError, match=name):
            load({**weights, name: torch.ones(*[n + 32 for n in weights[name].shape])})
    part = "decoder.blocks.0.cross_attn.key.weight"
    with pytest.raises(ValueError, match=f"there is no {part}"):
        load({k: v for k, v in weights.items() if k != part})
    with pytest.raises(ValueError, match=r"encoder\.extra"):
        load({**weights, "encoder.extra": torch.ones(1)})


def test_both_backends_take_one_artefact_and_none_imports_what_only_compiling_needs(
    engines: Engines,
) -> None:
    """A process of its own loads `max-hybrid` from what `max` compiled, and compiles nothing."""
    assert engines.max
    code = f"""
import sys
from asrgate.backends.base import Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.max_graph import session
from asrgate.backends.max_hybrid import MaxHybrid
from asrgate.backends.max_whisper import MaxWhisper
session.compiled = None
for backend in MaxHybrid, MaxWhisper:
    backend.load(resolve({str(engines.checkpoint.path)!r}), "cpu", "float32", Settings(threads=2))
print("max.nn" in sys.modules)
"""
    env = {**os.environ, "ASRGATE_CACHE": engines.cache}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.stdout.strip() == "False", done.stderr


class FakeModel:
    """What a compilation returns."""

    def export_mef(self, path: Path) -> None:
        path.write_bytes(b"code")


class FakeSession:
    """Loads anything."""

    def init_all(self, compiled: Any, weights_registry: Any) -> dict[str, Any]:
        return {"graph": weights_registry}


def test_a_compilation_tells_what_the_last_one_took_and_the_second_who_wants_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path))
    monkeypatch.setattr("max.engine.api.read", lambda path: path.read_bytes())
    caplog.set_level("INFO", logger="asrgate.load")
    begun, go_on, compilations = threading.Event(), threading.Event(), []

    def compile_slowly(*given: Any) -> FakeModel:
        compilations.append(given)
        begun.set()
        assert go_on.wait(60)
        return FakeModel()

    monkeypatch.setattr(session, "compiled", compile_slowly)
    plan = session.Plan({"graph": lambda **shared: None}, {"w": ("float32", (1,))})
    asked = []

    def load() -> dict[str, Any]:
        return session.load_all(FakeSession(), "cpu", {}, ["graph"], lambda names: plan, weigh)

    def weigh(kinds: Any) -> dict[str, Any]:
        asked.append(dict(kinds))
        return {"w": 1}

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(load)
        assert begun.wait(60)
        waiting = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(session, "locked", lambda path: announced(path, waiting))
            second = pool.submit(load)
            assert waiting.wait(60)
        go_on.set()
        assert first.result(60) == second.result(60) == {"graph": {"w": 1}}
    assert len(compilations) == 1
    assert asked == [plan.kinds] * 2
    assert "the last time" not in caplog.text
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(session, "source_sha256", lambda: "changed")
        patch.setattr(session.time, "perf_counter", iter([0.0, 7.0]).__next__)
        load()
    assert "the last time, it took 0 s" in caplog.text
    assert "compiled graph in 7 s" in caplog.text
    caplog.clear()
    session.load_all(FakeSession(), "cpu", {"dims": 2}, ["graph"], lambda names: plan, weigh)
    assert "the last time" not in caplog.text, "another model's time is no hint"


@contextlib.contextmanager
def announced(path: Path, waiting: threading.Event) -> Iterator[None]:
    waiting.set()
    with locked(path):
        yield


def test_narrow_heads_are_refused(tmp_path: Path) -> None:
    checkpoint = resolve(str(write_fake_checkpoint(tmp_path / "narrow.pt")))
    with pytest.raises(BackendError, match="heads of a multiple of 32"):
        MaxWhisper.load(checkpoint, "cpu", "float32", SETTINGS)


@pytest.mark.parametrize(
    ("flags", "precision", "int8"),
    [
        ({"avx2"}, "int8", False),
        ({"avx512_vnni"}, "int8", True),
        ({"avx512_vnni"}, "bfloat16", False),
    ],
)
def test_the_encoder_multiplies_int8_where_the_processor_does(
    flags: set[str], precision: str, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from max.graph import DeviceRef

    monkeypatch.setattr(processor, "_flags", lambda: flags)
    place = places.place(DeviceRef.CPU(), precision, halves=True)
    assert place.multiplies_int8 == int8
    assert place.encoder_dtype.name == "bfloat16"


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "27.1.0")
    with pytest.raises(BackendUnavailable, match=r"MAX 27\.1\.0 is installed") as refused:
        engine.check("cpu")
    assert "26.7" in refused.value.remedy


def test_artefacts_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another graph, size, precision, release, machine or source never finds this one's compiled code."""

    def path(name: str, facts: dict[str, Any]) -> Path:
        return session.Artefact.of([name], "cpu", facts).code

    facts = {"dims": {"n_mels": 80}, "dtype": "float32"}
    paths = {path("encoder", facts)}
    assert path("encoder", dict(facts)) in paths
    paths.add(path("greedy", facts))
    paths.add(path("encoder", {**facts, "dtype": "bfloat16"}))
    paths.add(path("encoder", {**facts, "dims": {"n_mels": 128}}))
    for name in ("version", "source_sha256", "machine"):
        with monkeypatch.context() as patch:
            patch.setattr(session, name, lambda *_: "another")
            paths.add(path("encoder", facts))
    assert len(paths) == 7
