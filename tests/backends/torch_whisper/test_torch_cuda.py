"""PyTorch's CUDA paths on tensors without contents, which need no GPU: devices, types, nothing asked back.

What they compute is not seen here; on the CPU the same code is held to openai-whisper by other tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoint import fake_content
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from whisper.decoding import DecodingOptions
from whisper.model import ModelDimensions

from asrgate.backends.torch_whisper.decoder import STEPS_BETWEEN_STOP_CHECKS, TorchDecoder
from asrgate.backends.torch_whisper.encoder import TorchEncoder, log_mel
from asrgate.backends.torch_whisper.selection import Selection
from asrgate.backends.whisper_common.greedy import window_rules

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "scaled_dot_product")
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Watched(TorchDispatchMode):
    """Refuses what a GPU, or a capture on one, would refuse; "meta" stands for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.capturing = False
        self.captured: list[str] = []
        self.replays = 0
        self.product_types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        name = func._schema.name.removeprefix("aten::")
        devices = {x.device.type for x in tensors if x.ndim > 0}
        if name.lstrip("_").startswith(PRODUCTS) and "meta" in devices:
            # meta kernels of products let mixed types pass, which those of a GPU refuse
            kinds = {x.dtype for x in tensors if x.is_floating_point()}
            assert len(kinds) == 1, f"{name} of {kinds}"
            self.product_types |= kinds
        if self.capturing:
            self.captured.append(name)
            assert "cpu" not in devices, f"{name} reads the host's memory in a captured step"
        if name not in ("copy_", "_to_copy"):
            assert len(devices) < 2, f"{name} of tensors on {devices}"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A device without memory, and stand-ins for torch.cuda's graphs."""

    @contextmanager
    def graph(_: Any) -> Iterator[None]:
        watched.capturing = True
        yield
        watched.capturing = False

    @contextmanager
    def stream(_: Any) -> Iterator[None]:
        yield

    class Graph:
        def replay(self) -> None:
            watched.replays += 1

    def new_stream() -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: None)

    watched = Watched()
    for name, stand_in in (
        ("Stream", new_stream),
        ("current_stream", new_stream),
        ("stream", stream),
        ("CUDAGraph", Graph),
        ("graph", graph),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setitem(STEPS_BETWEEN_STOP_CHECKS, "meta", STEPS_BETWEEN_STOP_CHECKS["cuda"])
    with watched:
        yield watched


@pytest.fixture(scope="module")
def model() -> SimpleNamespace:
    """Weights, dimensions and rules."""
    content = fake_content()
    dims = ModelDimensions(**content["dims"])
    english = SimpleNamespace(
        dims=dims, is_multilingual=False, num_languages=99, decoder=SimpleNamespace(blocks=())
    )
    rules, _ = window_rules(english, DecodingOptions(language="en", fp16=False))
    return SimpleNamespace(weights=content["model_state_dict"], dims=dims, rules=rules)


@pytest.mark.parametrize("precision", list(TYPES))
def test_encoder(gpu: Watched, model: SimpleNamespace, precision: str) -> None:
    encoder = TorchEncoder(model.weights, model.dims, precision, "meta")
    features = encoder.encode(torch.empty(2, 80, 3000, device="meta"))
    assert features.shape == (2, 1500, 32)
    assert (features.device.type, features.dtype) == ("meta", torch.float32)
    assert gpu.product_types == {TYPES[precision]}


def test_log_mel(gpu: Watched) -> None:
    found = log_mel(np.zeros(16_000, np.float32), 80, torch.device("meta"))
    assert found.shape == (80, 3100)
    assert found.device.type == "meta"


@pytest.mark.parametrize("precision", list(TYPES))
def test_decoder(
    gpu: Watched, model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Windows run until their end is seen, on replays of one captured step that asks the host for nothing."""
    looks: list[int] = []

    def ended(self: Selection) -> bool:
        looks.append(gpu.replays)
        return len(looks) == 3

    def windows(self: Selection, sampled: torch.Tensor, no_speech_prob: torch.Tensor) -> Any:
        return sampled, no_speech_prob, self._sum_logprob

    monkeypatch.setattr(Selection, "ended", ended)
    monkeypatch.setattr(Selection, "windows", windows)
    decoder = TorchDecoder(model.weights, model.dims, precision, "meta")
    features = [torch.empty(1500, 32, device="meta")] * 3
    sampled, no_speech, sums = decoder.decode_batch(features, model.rules)
    assert sampled.shape == (3, 24)
    assert {x.device.type for x in (sampled, no_speech, sums)} == {"meta"}
    assert looks == [7, 15, 23]
    assert "argmax" in gpu.captured
    assert gpu.product_types == {TYPES[precision]}
    decoder.decode_batch(features, model.rules)
    assert gpu.captured.count("argmax") == 1, "the step was captured again"


def test_decoder_of_projected_audio(
    gpu: Watched, model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `max-hybrid` gives it: keys and values in the encoder's precision."""
    monkeypatch.setattr(Selection, "ended", lambda self: True)
    monkeypatch.setattr(Selection, "windows", lambda self, sampled, no_speech_prob: [sampled])
    decoder = TorchDecoder(model.weights, model.dims, "float16", "meta", projects_audio=False)
    keys = torch.empty(2, 2, 1500, 16, device="meta", dtype=torch.float16)
    assert decoder.decode_projected(keys, keys, model.rules).shape == (1, 8)


def test_what_a_gpu_refuses_is_refused_here(gpu: Watched) -> None:
    one, half = torch.empty(2, 2, device="meta"), torch.empty(2, 2, device="meta", dtype=torch.float16)
    with pytest.raises(AssertionError, match="mm of"):
        one @ half
    with pytest.raises(AssertionError, match="tensors on"):
        one + torch.empty(2, 2)
    with pytest.raises(RuntimeError, match="meta"):
        bool((one > 0).all())
    gpu.capturing = True
    with pytest.raises(AssertionError, match="host's memory"):
        one.copy_(torch.ones(2, 2))
