"""A checkpoint as a whisper.cpp model: one ggml file a tensor type, kept in the cache under the hash."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from asrgate.backends.base import BackendError, Checkpoint
from asrgate.backends.checkpoints.cache import cache_dir, locked, temporary_beside
from asrgate.backends.checkpoints.conversions.tokenizer_json import openai_ranks
from asrgate.backends.checkpoints.file import CheckpointError, read_tensors
from asrgate.backends.checkpoints.sha256 import file_sha256

WRITER_VERSION = 1
# History: 1 = first version.

MAGIC = 0x67676D6C  # "ggml"
BLOCK = 32  # numbers that share one scale
QUANTISATION_VERSION = 2  # GGML_QNT_VERSION; the file type holds it in its thousands
HYPERPARAMETERS = (  # in the order of whisper_hparams; the file type follows them
    "n_vocab",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
    "n_mels",
)


def quantise_q8_0(values: np.ndarray) -> bytes:
    """Return ggml's q8_0 blocks: a float16 scale, then 32 int8; as quantize_row_q8_0_ref rounds them.

    Args:
        values: float32, any shape whose size is a multiple of 32.
    """
    rows = values.reshape(-1, BLOCK)
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    scaled = (rows * _inverse(scale)).astype(np.float64)
    blocks = np.empty(len(rows), dtype=[("scale", "<f2"), ("numbers", "i1", BLOCK)])
    blocks["scale"] = scale[:, 0]
    blocks["numbers"] = np.trunc(scaled + np.copysign(0.5, scaled))  # roundf: halves away from zero
    return blocks.tobytes()


def quantise_q5_1(values: np.ndarray) -> bytes:
    """Return ggml's q5_1 blocks: float16 scale and minimum, 32 fifth bits, 32 times four bits.

    As quantize_row_q5_1_ref: byte j holds number j in its low half and number j + 16 in its high half.

    Args:
        values: float32, any shape whose size is a multiple of 32.
    """
    rows = values.reshape(-1, BLOCK)
    low = rows.min(axis=1, keepdims=True)
    scale = (rows.max(axis=1, keepdims=True) - low) / np.float32(31)
    numbers = ((rows - low) * _inverse(scale) + np.float32(0.5)).astype(np.uint8)
    first, second = numbers[:, : BLOCK // 2], numbers[:, BLOCK // 2 :]
    blocks = np.empty(
        len(rows), dtype=[("scale", "<f2"), ("low", "<f2"), ("fifth", "u1", 4), ("four", "u1", BLOCK // 2)]
    )
    blocks["scale"], blocks["low"] = scale[:, 0], low[:, 0]
    blocks["fifth"] = np.packbits(numbers >> 4 & 1, axis=1, bitorder="little")
    blocks["four"] = (first & 15) | (second & 15) << 4
    return blocks.tobytes()


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _float32(values: np.ndarray) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _float16(values: np.ndarray) -> bytes:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2", copy=False)
    if not np.isfinite(halves).all():
        raise BackendError("the checkpoint has weights too large for float16, which whisper.cpp needs")
    return halves.tobytes()


class TensorType(NamedTuple):
    """How ggml stores a tensor: its number there, and how float32 values become its bytes."""

    number: int  # ggml_type
    encode: Callable[[np.ndarray], bytes]


F32, F16 = TensorType(0, _float32), TensorType(1, _float16)


class FileType(NamedTuple):
    """What a model file is made of: its number (ggml_ftype) and the type of its matrices.

    Convolutions are float16 in all of them: ggml's im2col on the CPU aborts the process on float32, which
    is why there is no float32 model here.
    """

    number: int
    matrices: TensorType


FILE_TYPES: Mapping[str, FileType] = {
    "f16": FileType(1, F16),
    "q8_0": FileType(QUANTISATION_VERSION * 1000 + 7, TensorType(8, quantise_q8_0)),
    "q5_1": FileType(QUANTISATION_VERSION * 1000 + 9, TensorType(7, quantise_q5_1)),
}


def ggml_file(checkpoint: Checkpoint, file_type: str) -> Path:
    """Return the checkpoint's ggml file, written first if it is not in the cache.

    Args:
        checkpoint: the weights.
        file_type: a key of FILE_TYPES.

    Raises:
        BackendError: the weights cannot be stored in this type.
        CheckpointError: the file changed since it was resolved.
    """
    path = cache_dir() / "ggml" / f"{checkpoint.sha256}-{WRITER_VERSION}-{file_type}.bin"
    if path.is_file():
        return path
    with locked(path):
        if path.is_file():
            return path  # another process was first
        if file_sha256(checkpoint.path) != checkpoint.sha256:
            raise CheckpointError(f"{checkpoint.path} changed after it was checked; start the run again")
        temporary = temporary_beside(path)
        try:
            with temporary.open("wb") as file:
                write(file, checkpoint, FILE_TYPES[file_type])
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as error:
            raise BackendError(f"cannot write {path}: {error.strerror}; free or move the cache") from error
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write(file: BinaryIO, checkpoint: Checkpoint, file_type: FileType) -> None:
    """Write the format whisper_model_load of whisper.cpp reads: all numbers little-endian."""
    dimensions = checkpoint.dimensions
    numbers = [dimensions[name] for name in HYPERPARAMETERS]
    file.write(struct.pack("<I11i", MAGIC, *numbers, file_type.number))
    filters = _mel_filters(dimensions["n_mels"])
    file.write(struct.pack("<2i", *filters.shape) + _float32(filters))
    # the ordinary tokens only: whisper.cpp derives the special ones from n_vocab
    words = sorted(openai_ranks(checkpoint.is_multilingual).items(), key=lambda item: item[1])
    file.write(struct.pack("<i", len(words)))
    for word, _ in words:
        file.write(struct.pack("<i", len(word)) + word)
    for name, values in read_tensors(checkpoint.path):
        _write_tensor(file, name, values, file_type)


def _write_tensor(file: BinaryIO, name: str, values: np.ndarray, file_type: FileType) -> None:
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values[:, None]  # added to (channels, frames)
    stored = F32
    if values.ndim == 3:
        stored = F16
    elif values.ndim == 2 and name.endswith(".weight"):
        stored = file_type.matrices
    if stored.number > F16.number and values.shape[-1] % BLOCK:
        raise BackendError(
            f"{name} has rows of {values.shape[-1]} numbers, not a multiple of the {BLOCK} that whisper.cpp "
            "quantises together; take the precision f16"
        )
    encoded_name = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded_name), stored.number))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + encoded_name)  # innermost first
    file.write(stored.encode(np.ascontiguousarray(values, dtype=np.float32)))


def _mel_filters(n_mels: int) -> np.ndarray:
    # openai-whisper's own, (n_mels, 201) float32, without importing it
    spec = find_spec("whisper")
    assert spec is not None and spec.origin is not None
    with np.load(Path(spec.origin).parent / "assets" / "mel_filters.npz", allow_pickle=False) as file:
        return file[f"mel_{n_mels}"]
