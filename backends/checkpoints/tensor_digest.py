"""A model's identity: a digest of its tensors that does not depend on the file format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def tensors_sha256(tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return the hex SHA-256 over the tensors: for each, its name, its shape as text, and its numbers.

    Numbers are little-endian float16 if float16 holds all of the tensor's numbers exactly, or else float32.
    So OpenAI's float16 weights have the same digest even if a file stores them widened to float32.

    Args:
        tensors: (name, float16 or float32 values) in the order of the names, each name once.

    Raises:
        ValueError: the names are out of order, or a tensor has a different type.
    """
    digest = hashlib.sha256()
    last = ""
    for name, values in tensors:
        if name <= last:
            raise ValueError(f"{name} must not follow {last}: the digest uses the order of the names")
        last = name
        halves = as_float16(values)
        numbers = values.astype("<f4", copy=False) if halves is None else halves
        digest.update(name.encode())
        digest.update(str(tuple(int(size) for size in values.shape)).encode())
        digest.update(np.ascontiguousarray(numbers).data)
    return digest.hexdigest()


def as_float16(values: np.ndarray) -> np.ndarray | None:
    """Return the values as float16 if that changes none of them by a bit, or else None.

    Raises:
        ValueError: they are neither float16 nor float32.
    """
    if values.dtype == np.float16:
        return values.astype("<f2", copy=False)
    if values.dtype != np.float32:
        raise ValueError(f"a tensor has type {values.dtype}: only float16 and float32 have a digest")
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype("<f2")
        widened = halves.astype("<f4")
    is_same = np.array_equal(widened.view("<u4"), np.ascontiguousarray(values, dtype="<f4").view("<u4"))
    return halves if is_same else None
