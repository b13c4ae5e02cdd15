"""Reads a CTranslate2 model of Whisper, `model.bin`, without ctranslate2 and without trusting its header."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from asrgate.backends.checkpoints.containers.contents import (
    Contents,
    Stored,
    check_tokens,
    checked_dimensions,
    checked_shape,
    key_bias,
    missing,
    quantised,
    read_json,
    unknown,
    widened,
)
from asrgate.backends.checkpoints.file import CheckpointError, expected_tensors

VERSIONS = (5, 6)  # of the file; both have the layout below
REVISION = 3  # of WhisperSpec
VARIABLES_LIMIT = 1 << 16  # large-v3 has about 1,300
RANK_LIMIT = 8
NAME = re.compile(r"[A-Za-z0-9_.]+(/[A-Za-z0-9_.]+)*")
DTYPES = (  # by the file's number
    ("float32", np.dtype("<f4")),
    ("int8", np.dtype("<i1")),
    ("int16", np.dtype("<i2")),
    ("int32", np.dtype("<i4")),
    ("float16", np.dtype("<f2")),
    ("bfloat16", np.dtype("<u2")),
)
FLOATS = ("float32", "float16", "bfloat16")
EMBEDDING = "decoder/embeddings/weight"
SETTINGS = {"decoder/activation": 3, "decoder/pre_norm": 1}  # Whisper's GELU, and its norms before each block
ANY = {"encoder/num_heads", "decoder/num_heads", "decoder/alignment_heads", "decoder/alignment_layer"}
ANY |= {"decoder/alibi_use_positive_positions"}  # has no effect while alibi is off


class Variable(NamedTuple):
    """One variable as the header describes it."""

    name: str
    kind: str  # a name in DTYPES
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int  # of its bytes in the file


def is_ctranslate2(start: bytes) -> bool:
    """Whether a file with this beginning is CTranslate2's, for any kind of model."""
    if len(start) < 8 or not 1 <= int.from_bytes(start[:4], "little") <= 99:
        return False
    length = int.from_bytes(start[4:6], "little")
    return re.fullmatch(rb"\w+Spec\0", start[6 : 6 + length]) is not None


def files(source: Path) -> list[Path]:
    """Return the files that an import reads."""
    model = source / "model.bin" if source.is_dir() else source
    vocabulary = model.parent / "vocabulary.json"
    return [model, vocabulary] if vocabulary.is_file() else [model]


def read(source: Path) -> Contents:
    """Return the contents of the model.

    Raises:
        CheckpointError: it is truncated, inconsistent, quantised, or not Whisper's.
    """
    path, *vocabulary = files(source)
    try:
        with path.open("rb") as file:
            variables, aliases = _header(file, str(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    _refuse_quantised(path, variables)
    for alias, name in aliases.items():
        variables[alias] = variables[name]
    dimensions = _dimensions(path, variables)
    tensors, used = {}, set()
    for name, shape in expected_tensors(dimensions).items():
        variable_name, part, parts = _place(name)
        used.add(variable_name)
        if variable_name not in variables:
            raise missing(str(path), variable_name)
        whole = (parts * shape[0], *shape[1:])
        stored = _stored(path, variables[variable_name], part, shape)
        checked_shape(str(path), Stored(variable_name, variables[variable_name].shape, stored.load), whole)
        tensors[name] = stored
    _check_rest(path, variables, used)
    _check_keys(path, variables, dimensions)
    if vocabulary:
        _check_vocabulary(vocabulary[0], dimensions["n_vocab"])
    return Contents(dimensions, tensors)


def _header(file: BinaryIO, where: str) -> tuple[dict[str, Variable], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size

    def number(code: str) -> int:
        data = file.read(struct.calcsize(code))
        if len(data) < struct.calcsize(code):
            raise CheckpointError(f"{where} is cut short at byte {size:,}; copy it again")
        return int(struct.unpack("<" + code, data)[0])

    def text() -> str:
        length = number("H")
        data = file.read(length)
        if len(data) < length or not data.endswith(b"\0"):
            raise CheckpointError(f"{where} is damaged: a name near byte {file.tell():,} has no end")
        name = data[:-1].decode("ascii", "replace")
        if not NAME.fullmatch(name):
            raise CheckpointError(f"{where} is damaged: {name[:40]!r} is not the name of a variable")
        return name

    version = number("I")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{where} has version {version} of CTranslate2's format; only 5 and 6 are supported"
        )
    spec, revision = text(), number("I")
    if spec != "WhisperSpec":
        raise CheckpointError(f"{where} has a {spec}, not a WhisperSpec: its decoder is not Whisper's")
    if revision != REVISION:
        raise CheckpointError(
            f"{where} has revision {revision} of WhisperSpec; only {REVISION} is supported. Convert it again"
        )
    variables: dict[str, Variable] = {}
    for _ in range(_count(where, number("I"))):
        name, rank = text(), number("B")
        if name in variables:
            raise CheckpointError(f"{where} is damaged: {name} occurs twice")
        if rank > RANK_LIMIT:
            raise CheckpointError(f"{where} is damaged: {name} has {rank} dimensions")
        shape = tuple(number("I") for _ in range(rank))
        dtype_number, stated = number("B"), number("I")
        if dtype_number >= len(DTYPES):
            raise CheckpointError(f"{where}: {name} has an unknown type, number {dtype_number}")
        kind, dtype = DTYPES[dtype_number]
        offset, needed = file.tell(), math.prod(shape) * dtype.itemsize
        if stated != needed:
            raise CheckpointError(
                f"{where} is damaged: {name} of {shape} needs {needed:,} bytes, not {stated:,}"
            )
        if offset + needed > size:
            raise CheckpointError(
                f"{where} is cut short: {name} needs {needed:,} bytes, but {size - offset:,} are left"
            )
        variables[name] = Variable(name, kind, dtype, shape, offset)
        file.seek(needed, os.SEEK_CUR)
    aliases: dict[str, str] = {}
    for _ in range(_count(where, number("I"))):
        alias, name = text(), text()
        if name not in variables or alias in variables or alias in aliases:
            raise CheckpointError(f"{where} is damaged: {alias} cannot be an alias of {name}")
        aliases[alias] = name
    if file.tell() != size:
        raise CheckpointError(f"{where} is damaged: {size - file.tell():,} bytes follow its end")
    return variables, aliases


def _count(where: str, count: int) -> int:
    if count > VARIABLES_LIMIT:
        raise CheckpointError(f"{where} is damaged: it claims {count:,} variables")
    return count


def _refuse_quantised(path: Path, variables: dict[str, Variable]) -> None:
    for name, variable in variables.items():
        scaled = name.removesuffix("_scale")
        if scaled != name and scaled in variables:
            raise quantised(str(path), scaled, variables[scaled].kind)
        if variable.shape and variable.kind not in FLOATS:
            raise quantised(str(path), name, variable.kind)


def _dimensions(path: Path, variables: dict[str, Variable]) -> dict[str, int]:
    def size(name: str, axis: int) -> int:
        if name not in variables:
            raise missing(str(path), name)
        shape = variables[name].shape
        if len(shape) <= axis:
            raise CheckpointError(f"{path}: {name} has shape {shape}, too few dimensions")
        return shape[axis]

    found: dict[str, int] = {
        "n_mels": size("encoder/conv1/weight", 1),
        "n_vocab": size(EMBEDDING, 0),
    }
    for side, name in (("encoder", "audio"), ("decoder", "text")):
        found[f"n_{name}_ctx"] = size(f"{side}/position_encodings/encodings", 0)
        found[f"n_{name}_state"] = size(f"{side}/position_encodings/encodings", 1)
        # counted, because the largest number may be false: a name can say layer_4000000000
        layers = {key.split("/")[1] for key in variables if key.startswith(f"{side}/layer_")} - {"layer_norm"}
        found[f"n_{name}_layer"] = len(layers)
        heads = variables.get(f"{side}/num_heads")
        found[f"n_{name}_head"] = _scalar(path, heads) if heads else found[f"n_{name}_state"] // 64
    return checked_dimensions(str(path), found, EMBEDDING)


def _scalar(path: Path, variable: Variable) -> int:
    if variable.kind in FLOATS or variable.shape:
        raise CheckpointError(f"{path}: {variable.name} must be one whole number")
    return int(_numbers(path, variable))


def _numbers(path: Path, variable: Variable) -> np.ndarray:
    count = math.prod(variable.shape)
    numbers = np.fromfile(path, variable.dtype, count, offset=variable.offset)
    if len(numbers) < count:
        raise CheckpointError(f"{path} became shorter while it was read; import it again")
    numbers = numbers.reshape(variable.shape)
    return widened(numbers) if variable.kind == "bfloat16" else numbers


def _stored(path: Path, variable: Variable, part: int, shape: tuple[int, ...]) -> Stored:
    rows = math.prod(shape) * variable.dtype.itemsize
    one = variable._replace(shape=shape, offset=variable.offset + part * rows)
    return Stored(variable.name, shape, lambda: _numbers(path, one))


def _place(name: str) -> tuple[str, int, int]:
    """Return where OpenAI's tensor is: the variable, which part of its rows, and how many parts it has."""
    side, *inner, last = name.split(".")
    if last == "positional_embedding":
        return f"{side}/position_encodings/encodings", 0, 1
    is_norm = any(part.endswith("ln") or part == "ln_post" for part in inner)
    leaf = {"weight": "gamma", "bias": "beta"}[last] if is_norm else last
    if inner[0] != "blocks":
        outer = {"ln": "layer_norm", "ln_post": "layer_norm", "token_embedding": "embeddings"}
        return f"{side}/{outer.get(inner[0], inner[0])}/{leaf}", 0, 1
    layer = f"{side}/layer_{inner[1]}"
    group = {"attn": "self_attention", "cross_attn": "attention", "mlp": "ffn"}[inner[2].removesuffix("_ln")]
    if is_norm:
        return f"{layer}/{group}/layer_norm/{leaf}", 0, 1
    fused = {
        "attn": {"query": (0, 0, 3), "key": (0, 1, 3), "value": (0, 2, 3), "out": (1, 0, 1)},
        "cross_attn": {"query": (0, 0, 1), "key": (1, 0, 2), "value": (1, 1, 2), "out": (2, 0, 1)},
        "mlp": {"0": (0, 0, 1), "2": (1, 0, 1)},
    }
    number, part, parts = fused[inner[2]][inner[3]]
    return f"{layer}/{group}/linear_{number}/{leaf}", part, parts


def _check_keys(path: Path, variables: dict[str, Variable], dimensions: dict[str, int]) -> None:
    for name, width in _key_biases(dimensions):
        part = 1 if "/self_attention/" in name else 0
        if _stored(path, variables[name], part, (width,)).load().any():
            raise key_bias(str(path), name)


def _key_biases(dimensions: dict[str, int]) -> Iterator[tuple[str, int]]:
    for name, shape in expected_tensors(dimensions).items():
        if name.endswith(".key.weight"):
            yield _place(name.replace("weight", "bias"))[0], shape[0]


def _check_rest(path: Path, variables: dict[str, Variable], used: set[str]) -> None:
    # the rest may be the projection, which is the embedding, and scalars that switch something off
    strange = []
    for name in sorted(variables.keys() - used):
        variable = variables[name]
        if name == "decoder/projection/weight":
            embedding = variables[EMBEDDING]
            same = variable == embedding or (
                variable.shape == embedding.shape
                and np.array_equal(_numbers(path, variable), _numbers(path, embedding))
            )
            if not same:
                raise CheckpointError(
                    f"{path}: {name} differs from {EMBEDDING}; in Whisper they are the same"
                )
        elif name in ANY and not variable.shape:
            continue
        elif variable.shape or _scalar(path, variable) != SETTINGS.get(name, 0):
            strange.append(name)
    if strange:
        raise unknown(str(path), strange)
    for name in SETTINGS:
        if name not in variables:
            raise missing(str(path), name)


def _check_vocabulary(path: Path, n_vocab: int) -> None:
    names = read_json(path)
    if not isinstance(names, list) or len(names) != n_vocab or not all(isinstance(n, str) for n in names):
        count = len(names) if isinstance(names, list) else "no"
        raise CheckpointError(f"{path} lists {count} tokens, but {EMBEDDING} has {n_vocab:,} rows")
    ids = {name: number for number, name in enumerate(names) if name.startswith("<|")}
    check_tokens(str(path), ids, n_vocab, EMBEDDING)
