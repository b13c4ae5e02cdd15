"""OpenAI's own format, the one that everything is imported into: read, and written with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from asrgate.backends.checkpoints.file import expected_tensors, read_dimensions, read_tensors
from asrgate.backends.checkpoints.tensor_digest import as_float16


def is_openai(start: bytes) -> bool:
    """Whether a file that begins so may be torch's: a zip file, or a bare pickle from before torch 1.6."""
    return start[:2] in (b"PK", b"\x80\x02")


def read(path: Path) -> tuple[dict[str, int], Iterator[tuple[str, np.ndarray]]]:
    """Return the dimensions, and the tensors to read one by one in the order of the file.

    Raises:
        CheckpointError: as `read_dimensions`.
    """
    return read_dimensions(path), read_tensors(path)


def in_one_type(loaders: Mapping[str, Callable[[], np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the tensors in one type: float16 where it holds every value of all exactly, else float32.

    The float32 of each tensor is gone before the next is read, as long as float16 holds them.
    """
    halves: dict[str, np.ndarray] = {}
    for name, load in loaders.items():
        half = as_float16(load())
        if half is None:
            halves.clear()
            return {key: each().astype("<f4", copy=False) for key, each in loaders.items()}
        halves[name] = half
    return halves


def write(path: Path, dimensions: dict[str, int], tensors: dict[str, np.ndarray]) -> None:
    """Write the checkpoint with torch, its tensors in the order of `expected_tensors`, and read it back.

    Raises:
        CheckpointError: what was written is no checkpoint.
        OSError: the disk is full or cannot be written.
    """
    import torch

    ordered = {
        name: torch.from_numpy(
            np.require(tensors[name], requirements=["C", "W"])
        )  # no copy, large-v3 has 3 GB
        for name in expected_tensors(dimensions)
    }
    with path.open("wb") as file:  # a file, not a path: torch writes a path's name into the file
        torch.save({"dims": dict(dimensions), "model_state_dict": ordered}, file)
    read_dimensions(path)
