"""CTranslate2 models that cannot come back exactly, are broken or lie: one clear error each, and cheaply."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_containers import Variable, change_ct2, copy, originals, read, read_ct2, refused, write_ct2

__all__ = ["copy", "originals"]  # fixtures: pytest finds them by their names here

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow


KEYS = "encoder/layer_0/self_attention/linear_0"


def quantised(variable: Variable) -> list[Variable]:
    count = len(variable.data) // 2
    scale = Variable(f"{variable.name}_scale", variable.shape[:1], 0, bytes(4 * variable.shape[0]))
    return [variable._replace(dtype=1, data=bytes(count)), scale]


def biased(variable: Variable) -> list[Variable]:
    numbers = np.frombuffer(variable.data, "<f2").copy()
    numbers[len(numbers) // 2] = 1
    return [variable._replace(data=numbers.tobytes())]


def cut_row(variable: Variable) -> list[Variable]:
    row = len(variable.data) // variable.shape[0]
    shape = (variable.shape[0] - 1, *variable.shape[1:])
    return [variable._replace(shape=shape, data=variable.data[:-row])]


def grown(variable: Variable) -> list[Variable]:
    row = len(variable.data) // variable.shape[0]
    shape = (variable.shape[0] + 5, *variable.shape[1:])
    return [variable._replace(shape=shape, data=variable.data + variable.data[: 5 * row])]


def number(value: int) -> Callable[[Variable], list[Variable]]:
    return lambda v: [v._replace(data=value.to_bytes(len(v.data), "little"))]


CT2_CHANGES: dict[str, tuple[str, Callable[[Variable], list[Variable]], str]] = {
    "int8": ("encoder/conv1/weight", quantised, r"encoder/conv1/weight is int8; quantised"),
    "int8 without a scale": (
        f"{KEYS}/weight",
        lambda v: quantised(v)[:1],
        rf"{KEYS}/weight is int8; quantised weights cannot be converted",
    ),
    "int16": (
        f"{KEYS}/weight",
        lambda v: [v._replace(dtype=2)],
        rf"{KEYS}/weight is int16; quantised weights cannot be converted",
    ),
    "missing": ("decoder/layer_norm/beta", lambda _: [], r"tensor decoder/layer_norm/beta is missing"),
    "misshapen": (f"{KEYS}/weight", cut_row, rf"{KEYS}/weight has shape \(23, 8\).* require \(24, 8\)"),
    "unknown": (
        "decoder/layer_norm/beta",
        lambda v: [v, v._replace(name="decoder/extra/weight")],
        r"Whisper has no tensor decoder/extra/weight",
    ),
    "another layer": (
        "decoder/layer_norm/beta",
        lambda v: [v, v._replace(name="decoder/layer_4000000000/ffn/layer_norm/beta")],
        r"tensor decoder/layer_1/self_attention/linear_0/weight is missing",
    ),
    "key bias": (f"{KEYS}/bias", biased, rf"{KEYS}/bias gives the keys a non-zero bias"),
    "cross key bias": (
        "decoder/layer_0/attention/linear_1/bias",
        lambda v: [v._replace(data=b"\0<" + v.data[2:])],
        r"decoder/layer_0/attention/linear_1/bias gives the keys a non-zero bias",
    ),
    "added token": (
        "decoder/embeddings/weight",
        grown,
        r"decoder/embeddings/weight has 51,869 rows.* 51,864, 51,865, 51,866\. Added",
    ),
    "activation": ("decoder/activation", number(0), r"Whisper has no tensor decoder/activation"),
    "no activation": ("decoder/activation", lambda _: [], r"decoder/activation is missing"),
    "alibi": ("decoder/alibi", number(1), r"no tensor decoder/alibi;"),
    "scale": ("decoder/scale_embeddings", number(1), r"no tensor decoder/scale_embeddings"),
    "heads": ("encoder/num_heads", number(3), r"n_audio_state is not a multiple of n_audio_head"),
    "negative heads": ("encoder/num_heads", number(65_535), r"n_audio_head is -1; it must be"),
    "type": (
        f"{KEYS}/weight",
        lambda v: [v._replace(dtype=9)],
        rf"{KEYS}/weight has an unknown type, number 9",
    ),
    "twice": (f"{KEYS}/weight", lambda v: [v, v], rf"{KEYS}/weight occurs twice"),
    "rank": (f"{KEYS}/weight", lambda v: [v._replace(shape=(1,) * 9)], rf"{KEYS}/weight has 9 dimensions"),
    "name": (f"{KEYS}/weight", lambda v: [v._replace(name="a\x1b[0m")], r"'a\\x1b\[0m' is not the name"),
    "shape": (
        f"{KEYS}/weight",
        lambda v: [v._replace(shape=(0xFFFFFFFF,) * 8)],
        rf"{KEYS}/weight of \(.*\) needs [\d,]+ bytes, not 384",
    ),
}


@pytest.mark.parametrize("case", CT2_CHANGES)
def test_ctranslate2_that_cannot_come_back(case: str, copy: Callable[[str], Path]) -> None:
    name, change, message = CT2_CHANGES[case]
    folder = copy("ct2")
    change_ct2(folder, name, change)
    with refused(message):
        read(folder)


def test_ctranslate2_of_another_projection(copy: Callable[[str], Path]) -> None:
    folder = copy("ct2")
    variables, _ = read_ct2(folder / "model.bin")
    embedding = next(v for v in variables if v.name == "decoder/embeddings/weight")
    projection = embedding._replace(name="decoder/projection/weight")
    write_ct2(folder / "model.bin", [*variables, projection], [])
    read(folder)  # stored twice, and the same
    changed = projection._replace(data=b"\0<" + projection.data[2:])
    write_ct2(folder / "model.bin", [*variables, changed], [])
    with refused(r"decoder/projection/weight differs from decoder/embeddings/weight"):
        read(folder)


@pytest.mark.parametrize("offset", [5, 30, 60, 1000, 800_000, -1])
def test_ctranslate2_cut_short(offset: int, copy: Callable[[str], Path]) -> None:
    model = copy("ct2") / "model.bin"
    start = model.read_bytes()[:offset]
    model.write_bytes(start)
    with refused(r"model\.bin (is cut short|is damaged|has no Whisper)|ct2 has no Whisper"):
        read(model.parent)


def test_ctranslate2_lies(copy: Callable[[str], Path]) -> None:
    folder = copy("ct2")
    variables, aliases = read_ct2(folder / "model.bin")
    write_ct2(folder / "model.bin", variables, aliases, count=0xFFFFFFFF)
    with refused(r"it claims 4,294,967,295 variables"):
        read(folder)
    write_ct2(folder / "model.bin", variables, aliases, count=60_000)
    with refused("damaged|cut short"):
        read(folder)
    write_ct2(folder / "model.bin", variables, [*aliases, ("a", "gone")])
    with refused("a cannot be an alias of gone"):
        read(folder)
    write_ct2(folder / "model.bin", variables, aliases, spec="TransformerSpec")
    with refused("has a TransformerSpec, not a WhisperSpec"):
        read(folder)
    write_ct2(folder / "model.bin", variables, aliases)
    data = bytearray((folder / "model.bin").read_bytes())
    place = data.index(b"decoder/embeddings/weight\0") + len(b"decoder/embeddings/weight\0")
    struct.pack_into("<2I", data, place + 1, 51_864, 20_000)
    struct.pack_into("<I", data, place + 10, 51_864 * 20_000 * 2)
    (folder / "model.bin").write_bytes(data)
    with refused(r"decoder/embeddings/weight needs 2,074,560,000 bytes, but [\d,]+ are left"):
        read(folder)
    write_ct2(folder / "model.bin", variables, aliases)
    with (folder / "model.bin").open("ab") as file:
        file.write(b"more")
    with refused("4 bytes follow its end"):
        read(folder)


def test_ctranslate2_with_another_vocabulary(copy: Callable[[str], Path]) -> None:
    path = copy("ct2") / "vocabulary.json"
    names = json.loads(path.read_text())
    path.write_text(json.dumps([*names[:50_300], "<|mine|>", *names[50_301:]]))
    with refused(r"'<\|mine\|>' is token 50300.* was added, so decoder/embeddings/weight"):
        read(path.parent)
    path.write_text(json.dumps(names[:-1]))
    with refused("lists 51863 tokens, but decoder/embeddings/weight has 51,864 rows"):
        read(path.parent)
