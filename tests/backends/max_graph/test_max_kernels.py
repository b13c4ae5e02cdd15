"""Our Mojo kernels compute what float64 numpy does, in one small compiled graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("max", reason="needs the package max, which not every platform has")

from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Dim, Graph, TensorType, ops

from asrgate.backends.max_graph import (
    bfloat16_ops,
    custom_ops,
    device_ops,
    encoder_ops,
    int8_ops,
    processor,
    session,
    split_ops,
)
from asrgate.backends.max_graph.decoder import WindowState

pytestmark = pytest.mark.slow

SEED = 7
SIZE, HEADS, LAYERS, ROOM = 64, 2, 2, 9
STATE = SIZE * HEADS
K, N = 66, 37  # neither a multiple of what a register holds
MELS = 3
FAR = 600  # positions: more than the threads of a GPU's block
VOCABULARY, BEGIN = 101, 70

_CPU = DeviceRef.CPU()
_F32, _BF16 = DType.float32, DType.bfloat16
DEVICE_TYPES = _F32, DType.float16, _BF16
HAS_TILES = processor.has_tiles()
needs_tiles = pytest.mark.skipif(not HAS_TILES, reason="needs a processor with AMX")


def matrix(*shape: int | str, dtype: DType = _F32) -> TensorType:
    return TensorType(dtype, shape, device=_CPU)


INPUTS: dict[str, Any] = {
    "x": matrix("rows", K),
    "w32": matrix(N, K),
    "w16": matrix(N, K, dtype=DType.float16),
    "wb16": matrix(N, K, dtype=_BF16),
    "w8": matrix(N, K, dtype=DType.int8),
    "scale": matrix(N),
    "bias": matrix(N),
    "added": matrix("rows", N),
    "pairs": matrix(2, K // 2, 32, 2, dtype=_BF16),
    "planes": matrix(2, 2, split_ops.whole_depth(K) // 2, 32, 2, dtype=_BF16),
    "quads": matrix(2, int8_ops.whole_depth(K) // 4, 32, 4, dtype=DType.int8),
    "quads_scale": matrix(64),
    "bias64": matrix(64),
    "added64": matrix("rows", 64),
    "q": matrix("positions", STATE),
    "k": matrix("positions", STATE),
    "v": matrix("positions", STATE),
    "step": matrix("windows", STATE),
    "qkv": matrix("windows", 3 * STATE),
    "cross_keys": matrix("heard", LAYERS, HEADS, "audio", SIZE),
    "cross_values": matrix("heard", LAYERS, HEADS, "audio", SIZE),
    "far_keys": matrix(LAYERS, HEADS, FAR, SIZE),
    "far_values": matrix(LAYERS, HEADS, FAR, SIZE),
    "cache": BufferType(_F32, ("windows", LAYERS, 2, ROOM, STATE), device=_CPU),
    "state": BufferType(DType.int64, ("windows", 8), device=_CPU),
    "sums": BufferType(_F32, ("windows", 2), device=_CPU),
    "sampled": BufferType(DType.int64, ("windows", ROOM), device=_CPU),
    "prompt": matrix("windows", ROOM, dtype=DType.int64),
    "numbers": matrix("windows", 8, dtype=DType.int64),
    "norm_weight": matrix(K),
    "norm_bias": matrix(K),
    "w_positions": matrix(ROOM, K),
    "both": matrix("audio", 2 * LAYERS * STATE),
    "audio": matrix("samples"),
    "filters": matrix(MELS, 201),
    "logits": matrix("windows", VOCABULARY),
    "masks": matrix(2, VOCABULARY),
    "rules": matrix("windows", 6, dtype=DType.int64),
    "candidates": BufferType(DType.int64, ("windows", "candidates"), device=_CPU),
    "chances": BufferType(_F32, ("windows", "candidates"), device=_CPU),
}

WINDOW = "state", "sums", "sampled", "prompt", "numbers"


def everything(*values: Any) -> tuple[Any, ...]:
    """The graph: every kernel, on inputs that differ in size from one call to the next."""
    at = {
        name: value.buffer if isinstance(INPUTS[name], BufferType) else value.tensor
        for name, value in zip(INPUTS, values, strict=True)
    }
    linear, step = custom_ops.linear, at["step"]
    window = [at[name] for name in WINDOW]
    mixed = custom_ops.self_attention(at["qkv"], at["state"], at["cache"], 1, HEADS)
    vectors = [
        custom_ops.embedded(at["w16"], None, at["w_positions"], at["state"]),
        custom_ops.embedded(at["w8"], at["scale"], at["w_positions"], at["state"]),
    ]
    next_rules = custom_ops.rules(window, VOCABULARY)
    selected = custom_ops.select(at["logits"], at["masks"], at["rules"], at["candidates"], at["chances"])
    running = custom_ops.advance(window, at["candidates"], *selected)
    return (
        linear(at["x"], at["w32"], bias=at["bias"], gelu=True, added=at["added"]),
        linear(at["x"], at["w16"]),
        linear(at["x"], at["wb16"]),
        linear(at["x"], at["w8"], scale=at["scale"]),
        bfloat16_ops.product(at["x"], at["pairs"], bias=at["bias64"], gelu=True, added=at["added64"]),
        ops.cast(
            bfloat16_ops.product(at["x"], at["pairs"], rows=Dim("rows") - 1, step=K // 2, out_dtype=_BF16),
            _F32,
        ),
        *in_int8(at),
        *(in_parts(at) if HAS_TILES else ()),
        bfloat16_ops.attention(at["q"], at["k"], at["v"], HEADS),
        encoder_ops.attention(at["q"], at["k"], at["v"], HEADS),
        custom_ops.cross_attention(step, at["cross_keys"], at["cross_values"], at["state"], 1),
        mixed,
        *custom_ops.log_mel(at["audio"], at["filters"], Dim("samples") // 160),
        custom_ops.layer_norm(at["x"], at["norm_weight"], at["norm_bias"]),
        encoder_ops.padded(at["x"]),
        encoder_ops.padded(at["x"], turned=True),
        encoder_ops.sum_of_rows(at["x"], ops.concat([at["x"], at["w_positions"]])),
        *(ops.cast(x, _F32) for x in encoder_ops.heads(at["both"], LAYERS, HEADS, _BF16)),
        *vectors,
        next_rules,
        ops.cast(running, DType.int64),
        *(
            ops.cast(
                device_ops.cross_attention(
                    *(ops.cast(x, dtype) for x in (step[:1], at["far_keys"], at["far_values"])), 1
                ),
                _F32,
            )
            for dtype in DEVICE_TYPES
        ),
        *selected,
    )


def in_int8(at: dict[str, Any]) -> tuple[Any, ...]:
    factors, half = [at["x"], at["quads"], at["quads_scale"]], ops.cast(at["x"], _BF16)
    rest = {"bias": at["bias64"], "gelu": True, "added": at["added64"]}
    return (
        int8_ops.product(*factors, **rest),
        int8_ops.product(*factors, **rest, tiles=False),
        ops.cast(int8_ops.product(half, *factors[1:], out_dtype=_BF16), _F32),
    )


def in_parts(at: dict[str, Any]) -> tuple[Any, ...]:
    product = split_ops.product
    return (
        product(at["x"], at["planes"], bias=at["bias64"], gelu=True, added=at["added64"]),
        product(at["x"], at["planes"], rows=Dim("rows") - 1, step=K // 2),
        split_ops.attention(at["q"], at["k"], at["v"], HEADS),
    )


INT8 = "product8", "product8_in_vectors", "product8_of_halves"
OUTPUTS = (
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "product",
    "overlapping",
    *INT8,
    *(("in_parts", "overlapping_in_parts", "attention_in_parts") if HAS_TILES else ()),
    "attention_bf16",
    "attention",
    "cross",
    "self",
    "log_mel",
    "silence",
    "normed",
    "padded",
    "turned",
    "sum_of_rows",
    "keys",
    "values",
    "embedded16",
    "embedded8",
    "next_rules",
    "running",
    *(f"device_{dtype.name}" for dtype in DEVICE_TYPES),
    "token",
    "logprob",
    "quiet",
)


class Kernels:
    """The compiled graph; each call draws all inputs but those given."""

    def __init__(self) -> None:
        graph = Graph(
            "kernels",
            forward=everything,
            input_types=list(INPUTS.values()),
            custom_extensions=[custom_ops.KERNELS],
        )
        self.model = InferenceSession(devices=[CPU()]).load(graph)

    def __call__(
        self,
        *,
        rows: int = 3,
        positions: int = 33,
        audio: int = 20,
        samples: int = 3210,
        windows: int = 1,
        heard: int | None = None,
        wanted: int = 1,
        **given: Any,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Inputs and outputs by name; inputs of 8 and 16 bits are as the kernel sees them.

        What is given for one window is that of all.
        """
        rng = np.random.default_rng(SEED)
        sizes = {"rows": rows, "positions": positions, "audio": audio}
        sizes |= {"samples": samples, "windows": windows, "candidates": wanted}
        sizes["heard"] = windows if heard is None else heard
        held: dict[str, np.ndarray] = {}
        for name, kind in INPUTS.items():
            shape = [sizes[d.name] if hasattr(d, "name") else int(d) for d in kind.shape]
            held[name] = rng.standard_normal(shape).astype(np.float32)
        held |= {"state": np.array([5, 3, 0, 0, 0, 0, 0, 0]), "rules": np.array([0, BEGIN, BEGIN, 0, -1, 0])}
        held |= {"sums": np.zeros(2, np.float32), "sampled": np.zeros(ROOM, int)}
        held |= {"prompt": np.arange(ROOM), "numbers": np.array([0, 0, BEGIN, 17, ROOM, 1, ROOM, 1])}
        held |= {"candidates": np.zeros(wanted, int)}
        held |= {"masks": np.zeros((2, VOCABULARY), np.float32), "filters": triangles()}
        held |= {name: np.asarray(value) for name, value in given.items()}
        for name, kind in INPUTS.items():
            if held[name].ndim < len(kind.shape):
                held[name] = np.repeat(held[name][None], windows, axis=0)
        held["w8"], held["scale"] = custom_ops.quantize_rows(held["w32"])
        held["qkv"] = np.concatenate([held["step"] * n for n in (1, 2, 3)], axis=1)
        held["w16"] = held["w32"].astype(np.float16)
        held["wb16"] = bfloat16_bits(held["w32"])
        held["pairs"] = bfloat16_ops.pairs(held["w32"])
        held["quads"], held["quads_scale"] = int8_ops.quads(held["w32"])
        held["planes"] = split_ops.planes(held["w16"])
        buffers = []
        for name, kind in INPUTS.items():
            buffer = Buffer.from_numpy(np.array(held[name], order="C"))  # which a graph may change
            buffers.append(buffer.view(_BF16, list(held[name].shape)) if kind.dtype == _BF16 else buffer)
        results = self.model.execute(*buffers)
        for name in ("cache", *WINDOW[:3], "candidates", "chances"):
            held[f"{name}_after"] = buffers[list(INPUTS).index(name)].to_numpy()
        return held, {name: value.to_numpy() for name, value in zip(OUTPUTS, results, strict=True)}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels()


def triangles() -> np.ndarray:
    """Filters (MELS, 201) with zeros around them, and one that is zero throughout."""
    filters = np.zeros((MELS, 201), np.float32)
    filters[0, 3:9] = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
    filters[1, 190:201] = 0.05
    return filters


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """float64 of what is left of numbers after rounding to bfloat16."""
    return (bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(queries, STATE), (positions, STATE) twice, to (queries, STATE), in float64."""
    mixed = []
    for head in range(HEADS):
        part = slice(head * SIZE, (head + 1) * SIZE)
        scores = q[:, part].astype(float) @ k[:, part].astype(float).T / math.sqrt(SIZE)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        mixed.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    return np.concatenate(mixed, axis=1)


def at(position: int, **other: int) -> np.ndarray:
    """A window's state."""
    fields = dict.fromkeys(WindowState._fields, 0) | {"position": position, "token": 3, **other}
    return np.array(WindowState(**fields))


def close(found: np.ndarray, wanted: np.ndarray, relative: float) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= relative * np.abs(wanted).max()


@pytest.mark.parametrize("rows", [1, 2, 7, 13])  # 13 = 8 + 4 + 1: every batch the kernel takes at once
def test_linear_in_every_type_of_weight(kernels: Kernels, rows: int) -> None:
    held, found = kernels(rows=rows)
    x, w = held["x"].astype(float), held["w32"].astype(float)
    close(found["float32"], gelu(x @ w.T + held["bias"]) + held["added"], 1e-6)
    close(found["float16"], x @ held["w16"].astype(float).T, 1e-6)
    close(found["bfloat16"], x @ bfloat16(held["w32"]).T, 1e-6)
    close(found["int8"], x @ (held["w8"].astype(float) * held["scale"][:, None]).T, 1e-6)


def test_quantized_rows_are_within_half_a_step() -> None:
    weight = np.random.default_rng(SEED).standard_normal((5, 40)).astype(np.float32)
    weight[2] = 0
    whole, scale = custom_ops.quantize_rows(weight)
    assert (np.abs(whole * scale[:, None] - weight).max(axis=1) <= scale * 0.5001).all()
    assert (np.abs(whole).max(axis=1) == [127, 127, 0, 127, 127]).all()
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("rows", [1, 12, 29, 77])  # below, at and beyond a register or matrix tile
def test_product_in_bfloat16(kernels: Kernels, rows: int) -> None:
    held, found = kernels(rows=rows)
    w = np.zeros((64, K))
    w[:N] = bfloat16(held["w32"])
    wanted = gelu(bfloat16(held["x"]) @ w.T + held["bias64"]) + held["added64"]
    close(found["product"], wanted, 2e-6)
    line = bfloat16(held["x"]).ravel()
    overlapping = [line[i * K // 2 : i * K // 2 + K] @ w.T for i in range(rows - 1)]
    if overlapping:
        close(found["overlapping"], np.array(overlapping), 2**-8)  # the result is bfloat16 too


def int8_rows(x: np.ndarray) -> np.ndarray:
    """float64 of rows rounded to steps of their largest number / 127."""
    top = np.abs(x).max(1, keepdims=True).astype(np.float32)
    return np.rint(x * (np.float32(127) / top).astype(float)) * (top / np.float32(127))


@pytest.mark.parametrize("rows", [1, 12, 32, 77])
def test_product_in_int8(kernels: Kernels, rows: int) -> None:
    """In tiles and in vectors: the same whole numbers, so that only what follows the sums rounds."""
    x = np.random.default_rng(SEED).standard_normal((rows, K)).astype(np.float32)
    x[-1] *= 600  # each row has its own scale
    x[0, :5] = [0, 3.9, -3.9, 1e-30, -1e-3]
    held, found = kernels(rows=rows, x=x)
    w = np.zeros((64, K))
    w[:N] = held["w8"] * held["scale"].astype(float)[:, None]
    wanted = gelu(int8_rows(x) @ w.T + held["bias64"]) + held["added64"]
    close(found["product8"], wanted, 2e-6)
    close(found["product8_in_vectors"], wanted, 2e-6)
    close(found["product8_of_halves"], int8_rows(bfloat16(x)) @ w.T, 2**-8)  # the result is bfloat16 too


def test_a_product_in_int8_of_no_number_is_none(kernels: Kernels) -> None:
    """A row of zeros is one; what is infinite or no number spoils its own row, and no other."""
    x = np.random.default_rng(SEED).standard_normal((4, K)).astype(np.float32)
    x[0], x[1, 3], x[2, K - 1] = 0, np.nan, np.inf
    held, found = kernels(rows=4, x=x)
    for name in INT8:
        assert np.isnan(found[name]).all(1).tolist() == [False, True, True, False], name
        assert np.isfinite(found[name][[0, 3]]).all()
    close(found["product8"][:1], gelu(held["bias64"][None]) + held["added64"][:1], 2e-6)


@needs_tiles
@pytest.mark.parametrize("rows", [1, 12, 32, 77])
def test_product_in_parts_is_float32s(kernels: Kernels, rows: int) -> None:
    """A part that is left out, or taken twice, is off by 2^-16 or more."""
    held, found = kernels(rows=rows)
    x, w = held["x"].astype(float), np.zeros((64, K))
    w[:N] = held["w16"]
    close(found["in_parts"], gelu(x @ w.T + held["bias64"]) + held["added64"], 4e-7)
    overlapping = [x.ravel()[i * K // 2 : i * K // 2 + K] @ w.T for i in range(rows - 1)]
    if overlapping:
        close(found["overlapping_in_parts"], np.array(overlapping), 4e-7)


def test_planes_are_all_of_a_float16_number() -> None:
    values = np.random.default_rng(SEED).standard_normal((40, 50)).astype(np.float16)
    values[0, :3] = [6e-8, 65504, -1]  # the smallest and the largest
    planes = (split_ops.planes(values).astype(np.uint32) << 16).view(np.float32).sum(0)
    whole = planes.transpose(0, 2, 1, 3).reshape(64, -1)
    assert whole.shape[1] == 64
    assert (whole[:40, :50] == values).all()
    assert not whole[40:].any() and not whole[:, 50:].any()


def test_pairs_need_an_even_number_of_columns() -> None:
    with pytest.raises(ValueError, match="even number of columns, not 3"):
        bfloat16_ops.pairs(np.zeros((32, 3)))


@pytest.mark.parametrize("positions", [1, 32, 77, 300])
def test_attention_over_all_positions(kernels: Kernels, positions: int) -> None:
    held, found = kernels(positions=positions)
    close(found["attention"], attend(held["q"], held["k"], held["v"]), 1e-6)
    if HAS_TILES:
        close(found["attention_in_parts"], attend(held["q"], held["k"], held["v"]), 1e-6)
    close(found["attention_bf16"], attend(*(bfloat16(held[name]) for name in "qkv")), 2**-7)


def test_attention_over_silence_adds_up_no_rounding(kernels: Kernels) -> None:
    """Of equal positions every sum rounds alike, and in a single pass over 1,500 that grows past 1e-5."""
    same = np.tile(np.random.default_rng(SEED).standard_normal(STATE).astype(np.float32), (1500, 1))
    _, found = kernels(positions=1500, q=same, k=same, v=same)
    close(found["attention"], same, 3e-6)
    if HAS_TILES:
        close(found["attention_in_parts"], same, 3e-6)


@pytest.mark.parametrize("audio", [1, 16, 53])
def test_attention_of_one_position_over_audio(kernels: Kernels, audio: int) -> None:
    held, found = kernels(audio=audio)
    keys, values = (
        held[name][0, 1].transpose(1, 0, 2).reshape(audio, STATE) for name in ("cross_keys", "cross_values")
    )
    close(found["cross"], attend(held["step"], keys, values), 1e-6)


@pytest.mark.parametrize(("dtype", "relative"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_attention_of_one_position_as_a_gpu_computes_it(
    kernels: Kernels, dtype: str, relative: float
) -> None:
    """By one thread in the place of all of a block."""
    held, found = kernels()
    rounded = {
        "float32": lambda x: x,
        "float16": lambda x: x.astype(np.float16).astype(np.float32),
        "bfloat16": bfloat16,
    }[dtype]
    keys, values = (
        rounded(held[name][1].transpose(1, 0, 2).reshape(FAR, STATE)) for name in ("far_keys", "far_values")
    )
    close(found[f"device_{dtype}"], attend(rounded(held["step"]), keys, values), relative)


@pytest.mark.parametrize("position", [0, 4, ROOM - 1])
def test_attention_of_one_position_over_itself_and_before(kernels: Kernels, position: int) -> None:
    held, found = kernels(state=at(position))
    before, _ = kernels(state=at((position + 1) % ROOM))  # which leaves this position's part as drawn
    after, earlier = held["cache_after"][0], before["cache_after"][0]
    assert (after[1, 0, position] == held["step"][0] * 2).all()
    assert (after[1, 1, position] == held["step"][0] * 3).all()
    others = [i for i in range(ROOM) if i not in (position, (position + 1) % ROOM)]
    assert (after[:, :, others] == earlier[:, :, others]).all()
    assert (after[0] == earlier[0]).all()
    seen = slice(0, position + 1)
    close(found["self"], attend(held["step"], after[1, 0, seen], after[1, 1, seen]), 1e-6)


@pytest.mark.parametrize("samples", [201, 1600, 5555])
def test_log_mel_is_a_windowed_transform_mirrored_at_both_ends(kernels: Kernels, samples: int) -> None:
    held, found = kernels(samples=samples)
    padded = np.pad(held["audio"].astype(float), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.array([padded[i * 160 : i * 160 + 400] * window for i in range(samples // 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    decades = np.log10(np.maximum(held["filters"].astype(float) @ power.T, 1e-10))
    wanted = (np.maximum(decades, decades.max() - 8) + 4) / 4
    assert found["log_mel"].shape == (MELS, samples // 160)
    assert np.abs(found["log_mel"] - wanted).max() < 1e-5
    assert (found["log_mel"][2] == found["silence"]).all()


def test_log_mel_of_silence_is_as_low_as_it_gets(kernels: Kernels) -> None:
    _, found = kernels(filters=np.zeros((MELS, 201), np.float32))
    assert (found["log_mel"] == -1.5).all()
    assert (found["silence"] == -1.5).all()


@pytest.mark.parametrize("rows", [1, 13, 1500])  # on one thread and on all
def test_layer_norm(kernels: Kernels, rows: int) -> None:
    x = np.random.default_rng(SEED).standard_normal((rows, K)).astype(np.float32) * 3 + 40
    held, found = kernels(rows=rows, x=x)
    rest = x - x.astype(float).mean(1, keepdims=True)
    normed = rest / np.sqrt((rest**2).mean(1, keepdims=True) + 1e-5)
    close(found["normed"], normed * held["norm_weight"] + held["norm_bias"], 1e-5)


@pytest.mark.parametrize("rows", [1, 13, 1500])
def test_rows_are_padded_and_added(kernels: Kernels, rows: int) -> None:
    held, found = kernels(rows=rows)
    assert (found["padded"] == np.pad(held["x"], ((1, 1), (0, 0)))).all()
    assert (found["turned"] == np.pad(held["x"].T, ((1, 1), (0, 0)))).all()
    assert (found["sum_of_rows"] == held["x"] * 2).all()


def test_keys_and_values_are_taken_apart(kernels: Kernels) -> None:
    held, found = kernels(audio=7)
    apart = bfloat16(held["both"]).reshape(7, LAYERS, 2, HEADS, SIZE).transpose(2, 1, 3, 0, 4)
    assert (found["keys"] == apart[0]).all()
    assert (found["values"] == apart[1]).all()


def test_a_token_at_a_position_is_embedded(kernels: Kernels) -> None:
    held, found = kernels(state=at(4, token=9))
    close(found["embedded16"][0], held["w16"][9].astype(float) + held["w_positions"][4], 1e-6)
    close(
        found["embedded8"][0], held["w8"][9] * held["scale"][9].astype(float) + held["w_positions"][4], 1e-6
    )
    for state in (at(4, token=N), at(4, token=-1), at(ROOM)):
        with pytest.raises(Exception, match=r"no such (token or )?position"):
            kernels(state=state)


STAMP = BEGIN + 4


@pytest.mark.parametrize(
    ("last", "before", "timestamps", "text_from", "stamps_from"),
    [
        (0, 0, 1, 0, STAMP + 1),
        (0, 1, 1, 0, STAMP + 1),
        (1, 0, 1, 60, STAMP),  # a segment has ended: the same stamp may begin the next, or the text ends
        (1, 1, 1, 0, VOCABULARY),  # a segment has begun: text
        (1, 0, 0, 0, BEGIN),
    ],
)
def test_rules_follow_the_last_two_tokens(
    kernels: Kernels, last: int, before: int, timestamps: int, text_from: int, stamps_from: int
) -> None:
    state = at(5, written=2, last_is_stamp=last, before_is_stamp=before, stamp=STAMP)
    _, found = kernels(state=state, numbers=np.array([5, 60, BEGIN, 17, ROOM, timestamps, ROOM, 1]))
    assert list(found["next_rules"][0]) == [text_from, BEGIN, stamps_from, timestamps, 17, 0]
    _, found = kernels(state=at(5), numbers=np.array([4, 60, BEGIN, 17, ROOM, timestamps, ROOM, 1]))
    assert list(found["next_rules"][0])[4:] == [-1, 1]


TEXT, END = 20, 60


@pytest.mark.parametrize(
    ("token", "start", "numbers", "wanted"),
    [
        (TEXT, at(5, written=2, stamp=STAMP), {}, at(6, token=TEXT, written=3, stamp=STAMP)),
        (TEXT, at(0), {}, at(1, token=TEXT, written=1, before_is_stamp=1)),
        (
            BEGIN + 9,
            at(5, written=2),
            {},
            at(6, token=BEGIN + 9, written=3, last_is_stamp=1, stamp=BEGIN + 9),
        ),
        (END, at(5, written=2), {}, at(6, token=END, written=2, done=1)),
        (TEXT, at(5, written=2), {"limit": 3}, at(6, token=TEXT, written=3, done=1)),
        (TEXT, at(5, written=2), {"last": 6}, at(6, token=TEXT, written=3, done=1)),
        (TEXT, at(1), {"prompt": 4}, at(2, token=2)),  # the prompt's token, and nothing is sampled
    ],
)
def test_a_selected_token_advances_the_window(
    kernels: Kernels, token: int, start: np.ndarray, numbers: dict[str, int], wanted: np.ndarray
) -> None:
    given = {"limit": ROOM, "last": ROOM, "prompt": 1, **numbers}
    logits = np.zeros(VOCABULARY, np.float32)
    logits[token] = 5
    rules = [int(start[0]), END, BEGIN, 17, given["limit"], 0, given["last"], given["prompt"]]
    held, found = kernels(
        state=start, logits=logits, sums=np.array([-2, 9], np.float32), numbers=np.array(rules)
    )
    assert list(held["state_after"][0]) == list(wanted)
    assert found["running"] == (not wanted[6])
    sampled = given["prompt"] == 1
    assert held["sums_after"][0, 0] == pytest.approx(-2 + (found["logprob"][0] if sampled else 0))
    assert held["sums_after"][0, 1] == found["quiet"][0], "this position is the start of the transcript"
    written = [token] if wanted[2] > start[2] else []
    assert list(held["sampled_after"][0, start[2] : start[2] + 1]) == (written or [0])


OF_WINDOWS = "cross", "self", "embedded16", "embedded8", "next_rules", "token", "logprob", "quiet"


@pytest.mark.parametrize(("start", "prompt"), [(at(5, written=2, stamp=STAMP), 1), (at(1), 4)])
def test_what_is_chosen_from_candidates_is_not_sampled(
    kernels: Kernels, start: np.ndarray, prompt: int
) -> None:
    """After its prompt, a window waits for the caller's choice."""
    numbers = np.array([int(start[0]), END, BEGIN, 17, ROOM, 0, ROOM, prompt])
    held, found = kernels(state=start, numbers=numbers, wanted=3, sums=np.array([-2, 9], np.float32))
    waits = prompt == 1
    wanted = at(
        int(start[0]) + 1, written=start[2], stamp=start[5], done=int(waits), token=start[1] if waits else 2
    )
    assert list(held["state_after"][0]) == list(wanted)
    assert found["running"] == (not waits)
    assert list(held["sums_after"][0]) == [-2, found["quiet"][0]]
    assert not held["sampled_after"].any()


def test_windows_hear_the_same_audio(kernels: Kernels) -> None:
    held, found = kernels(windows=3, heard=1)
    keys, values = (
        held[name][0, 1].transpose(1, 0, 2).reshape(20, STATE) for name in ("cross_keys", "cross_values")
    )
    close(found["cross"], attend(held["step"], keys, values), 1e-6)


def test_windows_together_are_each_by_itself(kernels: Kernels) -> None:
    """But for those that are done, which nothing changes any more."""
    states = np.stack([at(4, token=9), at(2, token=1, written=2), at(7, done=1), at(0)])
    together, found = kernels(windows=len(states), state=states)
    many = [name for name, kind in INPUTS.items() if kind.shape[0] in (Dim("windows"), Dim("heard"))]
    changed = "cache", "state", "sums", "sampled"
    shared = {name: together[name] for name in ("w32", "w_positions")}
    drawn, _ = kernels(windows=len(states), state=np.stack([at(0, done=1)] * len(states)))
    for index, state in enumerate(states):
        one = slice(index, index + 1)
        mine = {name: together[name][one] for name in many if name not in changed}
        alone, single = kernels(state=state, cache=drawn["cache_after"][one], **mine, **shared)
        if index == 2:
            assert (together["state_after"][index] == state).all()
            assert (together["cache_after"][index] == drawn["cache_after"][index]).all()
            continue
        for name in OF_WINDOWS:
            assert (found[name][index] == single[name][0]).all(), (index, name)
        for name in changed:
            assert (together[f"{name}_after"][index] == alone[f"{name}_after"][0]).all(), (index, name)
    assert found["running"] == 1, "three of four go on"


@pytest.mark.parametrize(("done", "running"), [(0, 1), (1, 1), (2, 0), (4, 0)])
def test_windows_go_on_together_while_most_of_them_do(kernels: Kernels, done: int, running: int) -> None:
    _, found = kernels(windows=4, state=np.stack([at(3, done=int(n < done)) for n in range(4)]))
    assert found["running"] == running


def test_log_mel_refuses_audio_shorter_than_its_mirror(kernels: Kernels) -> None:
    with pytest.raises(Exception, match="asr_log_mel"):
        kernels(samples=200)


def ranked(logits: np.ndarray, allowed: np.ndarray, weigh: bool) -> tuple[np.ndarray, np.ndarray]:
    """The allowed tokens, the likeliest first, and whisper.decoding's log-softmax of them in float64."""
    left = np.where(allowed, logits.astype(float), -np.inf)
    chances = np.exp(left - left.max())
    if weigh and chances[BEGIN:].sum() > chances[:BEGIN].max():
        left[:BEGIN] = -np.inf
    chances = left - left.max() - math.log(np.exp(left - left.max()).sum())
    order = np.argsort(-chances, kind="stable")[: np.isfinite(chances).sum()]
    return order, chances[order]


@pytest.mark.parametrize("weigh", [0, 1])
@pytest.mark.parametrize("text_from", [0, 41, BEGIN])
@pytest.mark.parametrize("stamps_from", [BEGIN, 83, VOCABULARY])
@pytest.mark.parametrize("lift", [0.0, -20.0])  # of the timestamps: likely, and hopeless
def test_select(kernels: Kernels, weigh: int, text_from: int, stamps_from: int, lift: float) -> None:
    logits = np.random.default_rng(SEED).standard_normal(VOCABULARY).astype(np.float32) * 3
    logits[BEGIN:] += lift
    allowed = np.ones(VOCABULARY, bool)
    allowed[[1, 50, int(np.argmax(logits))]] = False
    mask = np.where(allowed, 0, -np.inf).astype(np.float32)
    allowed[:text_from] = False
    allowed[BEGIN:stamps_from] = False
    masks = np.stack([np.full_like(mask, -np.inf), mask])
    rules = np.array([text_from, BEGIN, stamps_from, weigh, 17, 1])
    if not allowed.any():
        with pytest.raises(Exception, match="asr_select"):
            kernels(logits=logits, masks=masks, rules=rules)
        return
    held, found = kernels(logits=logits, masks=masks, rules=rules, wanted=20)
    tokens, chances = ranked(logits, allowed, bool(weigh))
    assert int(found["token"][0]) == tokens[0]
    assert found["logprob"][0] == pytest.approx(chances[0], abs=1e-5)
    there = min(20, len(tokens))
    assert list(held["candidates_after"][0, :there]) == list(tokens[:20])
    assert held["chances_after"][0, :there] == pytest.approx(chances[:20], abs=1e-5)
    assert (held["chances_after"][0, there:] == -np.inf).all()
    raw = np.exp(logits.astype(float))
    assert found["quiet"][0] == pytest.approx(raw[17] / raw.sum(), rel=1e-5)


def test_select_refuses_a_mask_that_is_not_there(kernels: Kernels) -> None:
    with pytest.raises(Exception, match="no such mask"):
        kernels(rules=np.array([0, BEGIN, BEGIN, 0, -1, 2]))


def test_the_first_of_equals_is_selected(kernels: Kernels) -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[33, 34, 60, 99]] = 2
    _, found = kernels(logits=logits, rules=np.array([0, BEGIN, BEGIN, 0, -1, 0]))
    assert int(found["token"][0]) == 33
    assert found["quiet"][0] == 0


def test_doctors_graph_runs_on_the_cpu() -> None:
    assert session.try_out("cpu").endswith("compiles and runs on cpu")
