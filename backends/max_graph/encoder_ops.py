"""Calls of our Mojo kernels for many rows at once: the encoder's products and attention, on the CPU.

A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorType, TensorValue, ops

PANEL = 32  # columns of a packed panel; kernels/matrix.mojo has the same


def panels(weight: Any) -> np.ndarray:
    """A float32 matrix (n, k), rows as torch.nn.Linear has them, as (n / 32, k, 32): how `product` reads it.

    A convolution's kernel (n, channels, width) becomes the matrix (n, width channels) first. Rows are
    filled up with zeros to a multiple of 32.
    """
    array = np.asarray(weight, np.float32)
    if array.ndim == 3:
        array = array.transpose(0, 2, 1).reshape(len(array), -1)
    n, k = array.shape
    padded = np.zeros((-(-n // PANEL) * PANEL, k), np.float32)
    padded[:n] = array
    return np.ascontiguousarray(padded.reshape(-1, PANEL, k).transpose(0, 2, 1))


def product(
    x: TensorValue,
    weight: TensorValue,
    *,
    rows: Dim | int | None = None,
    step: int | None = None,
    bias: TensorValue | None = None,
    added: TensorValue | None = None,
    gelu: bool = False,
) -> TensorValue:
    """act(x weightT + bias) + added, in float32.

    With `rows` and `step`, row i of the left factor is the k numbers from i * step on of x read as one
    line: overlapping rows, which make a convolution (or a windowed DFT) a product.

    Args:
        x: float32 (m, k), or anything of rank 2 with `rows` and `step`.
        weight: float32 (n / 32, k, 32), see `panels`.
        bias: float32 (n,), before the activation.
        added: float32 (m, n), after it: the residual.
        gelu: the exact, erf-based GELU.

    Returns:
        float32 (m, n).
    """
    cpu = DeviceRef.CPU()
    width = int(weight.shape[0]) * PANEL
    vector = ops.constant(np.zeros(1, np.float32), DType.float32, cpu)
    matrix = ops.constant(np.zeros((1, 1), np.float32), DType.float32, cpu)
    return ops.custom(
        "asr_product",
        cpu,
        [x, weight, vector if bias is None else bias, matrix if added is None else added],
        [TensorType(DType.float32, (x.shape[0] if rows is None else rows, width), cpu)],
        {
            "biased": bias is not None,
            "residual": added is not None,
            "gelu": gelu,
            "step": int(weight.shape[1]) if step is None else step,
        },
    )[0].tensor


def attention(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v over all positions: float32 (positions, n_state) each."""
    cpu = DeviceRef.CPU()
    size = int(query.shape[1]) // n_head
    return ops.custom(
        "asr_attention",
        cpu,
        [query, key, value],
        [TensorType(DType.float32, query.shape, cpu)],
        {"size": size},
    )[0].tensor
