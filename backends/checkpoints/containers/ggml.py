"""Reads a whisper.cpp model in ggml's format (float16 or float32), without trusting its header."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from asrgate.backends.checkpoints.containers.contents import (
    Contents,
    Stored,
    checked_dimensions,
    checked_shape,
    missing,
    quantised,
    unknown,
)
from asrgate.backends.checkpoints.conversions.ggml_model import HYPERPARAMETERS, MAGIC
from asrgate.backends.checkpoints.file import CheckpointError, expected_tensors

EMBEDDING = "decoder.token_embedding.weight"
TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}  # ggml_type
QUANTISED = {2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_K", 11: "q3_K", 12: "q4_K"}
QUANTISED |= {13: "q5_K", 14: "q6_K"}
FREQUENCIES = 201  # of the mel filters
RANK_LIMIT = 4
NAME_LIMIT = 128
TENSORS_LIMIT = 1 << 14


class Tensor(NamedTuple):
    """One tensor as the file describes it, the outermost dimension first."""

    kind: int  # a key of TYPES
    shape: tuple[int, ...]
    offset: int  # of its bytes in the file


def is_ggml(start: bytes) -> bool:
    """Whether a file with this beginning is a ggml model."""
    return start[:4] == struct.pack("<I", MAGIC)


def read(path: Path) -> Contents:
    """Return the contents of the file.

    Raises:
        CheckpointError: it is truncated, inconsistent, quantised, or not Whisper's.
    """
    try:
        with path.open("rb") as file:
            dimensions, found = _header(file, str(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    tensors = {}
    for name, shape in expected_tensors(dimensions).items():
        if name not in found:
            raise missing(str(path), name)
        tensor = found.pop(name)
        if name in ("encoder.conv1.bias", "encoder.conv2.bias") and tensor.shape[1:] == (1,):
            tensor = tensor._replace(shape=tensor.shape[:1])  # whisper.cpp adds it to (channels, frames)
        tensors[name] = checked_shape(str(path), Stored(name, tensor.shape, _loader(path, tensor)), shape)
    if found:
        raise unknown(str(path), found)
    return Contents(dimensions, tensors)


def _header(file: BinaryIO, where: str) -> tuple[dict[str, int], dict[str, Tensor]]:
    size = os.fstat(file.fileno()).st_size

    def numbers(count: int) -> tuple[int, ...]:
        data = file.read(4 * count)
        if len(data) < 4 * count:
            raise CheckpointError(f"{where} is cut short at byte {size:,}; copy it again")
        return struct.unpack(f"<{count}i", data)

    def skip(count: int, what: str) -> None:
        left = size - file.tell()
        if not 0 <= count <= left:
            raise CheckpointError(f"{where} is damaged: {what} needs {count:,} bytes, but {left:,} are left")
        file.seek(count, os.SEEK_CUR)

    if numbers(1) != (MAGIC,):
        raise CheckpointError(f"{where} is not a ggml model of whisper.cpp")
    *hyperparameters, _ = numbers(
        len(HYPERPARAMETERS) + 1
    )  # the file type adds nothing to the tensors' types
    dimensions = checked_dimensions(
        where, dict(zip(HYPERPARAMETERS, hyperparameters, strict=True)), EMBEDDING
    )
    mels, frequencies = numbers(2)
    if (mels, frequencies) != (dimensions["n_mels"], FREQUENCIES):
        raise CheckpointError(
            f"{where}: its mel filters are {mels} by {frequencies}, "
            f"not {dimensions['n_mels']} by {FREQUENCIES}"
        )
    skip(4 * mels * frequencies, "the mel filters' table")
    (words,) = numbers(1)
    if not 0 < words <= dimensions["n_vocab"]:
        raise CheckpointError(
            f"{where}: it lists {words:,} tokens, but {EMBEDDING} has {dimensions['n_vocab']:,} rows"
        )
    for _ in range(words):
        skip(numbers(1)[0], "a token's text")
    tensors: dict[str, Tensor] = {}
    while file.tell() < size and len(tensors) <= TENSORS_LIMIT:
        name, tensor, count = _tensor(file, where, numbers)
        if name in tensors:
            raise CheckpointError(f"{where} is damaged: {name} occurs twice")
        skip(count, name)
        tensors[name] = tensor
    return dimensions, tensors


def _tensor(file: BinaryIO, where: str, numbers: Callable[[int], tuple[int, ...]]) -> tuple[str, Tensor, int]:
    rank, length, kind = numbers(3)
    place = file.tell() - 12
    if not 1 <= rank <= RANK_LIMIT or not 1 <= length <= NAME_LIMIT:
        raise CheckpointError(f"{where} is damaged: no tensor begins at byte {place:,}")
    shape = tuple(reversed(numbers(rank)))  # the file has the innermost first
    name = file.read(length).decode("ascii", "replace")
    if len(name) < length or not name.isprintable():
        raise CheckpointError(f"{where} is damaged: the tensor at byte {place:,} has no name")
    if min(shape) < 1:
        raise CheckpointError(f"{where} is damaged: {name} has shape {shape}")
    if kind not in TYPES:
        raise quantised(where, name, QUANTISED.get(kind, f"of ggml's type {kind}"))
    return name, Tensor(kind, shape, file.tell()), math.prod(shape) * TYPES[kind].itemsize


def _loader(path: Path, tensor: Tensor) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        count = math.prod(tensor.shape)
        numbers = np.fromfile(path, TYPES[tensor.kind], count, offset=tensor.offset)
        if len(numbers) < count:
            raise CheckpointError(f"{path} became shorter while it was read; import it again")
        return numbers.reshape(tensor.shape)

    return load
