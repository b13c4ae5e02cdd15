"""The encoder's products and attention in bfloat16, summed in float32, on the CPU: as encoder_ops, but half.

Fast where the processor multiplies bfloat16 (AVX512-BF16); right, but slower than float32, elsewhere.
A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorType, TensorValue, ops

PANEL = 32  # columns of a packed panel; kernels/matrix_bf16.mojo has the same


def pairs(weight: Any) -> np.ndarray:
    """A matrix (n, k), rows as torch.nn.Linear has them, as `product` reads it.

    A convolution's kernel (n, channels, width) becomes the matrix (n, width channels) first. Rows are
    filled up with zeros to a multiple of 32.

    Returns:
        uint16 (n / 32, k / 2, 32, 2), the bits of bfloat16, rounded to nearest even: numpy has no bfloat16.

    Raises:
        ValueError: if k is odd.
    """
    array = np.asarray(weight, np.float32)
    if array.ndim == 3:
        array = array.transpose(0, 2, 1).reshape(len(array), -1)
    n, k = array.shape
    if k % 2:
        raise ValueError(f"a matrix of bfloat16 pairs needs an even number of columns, not {k}")
    padded = np.zeros((-(-n // PANEL) * PANEL, k), np.float32)
    padded[:n] = array
    bits = padded.view(np.uint32)
    halves = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(halves.reshape(-1, PANEL, k // 2, 2).transpose(0, 2, 1, 3))


def product(
    x: TensorValue,
    weight: TensorValue,
    *,
    rows: Dim | int | None = None,
    step: int | None = None,
    bias: TensorValue | None = None,
    added: TensorValue | None = None,
    gelu: bool = False,
    out_dtype: DType = DType.float32,
) -> TensorValue:
    """act(x weightT + bias) + added; x is rounded to bfloat16, sums and what follows are float32.

    With `rows` and `step`, row i of the left factor is the k numbers from i * step on of x read as one
    line: overlapping rows, which make a convolution a product.

    Args:
        x: float32 or bfloat16 (m, k), or anything of rank 2 with `rows` and `step`.
        weight: bfloat16 (n / 32, k / 2, 32, 2), see `pairs`.
        bias: float32 (n,), before the activation.
        added: float32 (m, n), after it: the residual.
        gelu: the exact, erf-based GELU.
        out_dtype: float32 or bfloat16.

    Returns:
        (m, n) of `out_dtype`.
    """
    cpu = DeviceRef.CPU()
    vector = ops.constant(np.zeros(1, np.float32), DType.float32, cpu)
    matrix = ops.constant(np.zeros((1, 1), np.float32), DType.float32, cpu)
    shape = (x.shape[0] if rows is None else rows, int(weight.shape[0]) * PANEL)
    return ops.custom(
        "asr_product_bf16",
        cpu,
        [x, weight, vector if bias is None else bias, matrix if added is None else added],
        [TensorType(out_dtype, shape, cpu)],
        {
            "biased": bias is not None,
            "residual": added is not None,
            "gelu": gelu,
            "step": 2 * int(weight.shape[1]) if step is None else step,
        },
    )[0].tensor


def attention(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v over all positions: (positions, n_state), float32 or bfloat16.

    Heads of a multiple of 32. Products are of bfloat16; scores, exponentials and sums are float32.
    """
    cpu = DeviceRef.CPU()
    return ops.custom(
        "asr_attention_bf16",
        cpu,
        [query, key, value],
        [TensorType(query.dtype, query.shape, cpu)],
        {"size": int(query.shape[1]) // n_head},
    )[0].tensor
