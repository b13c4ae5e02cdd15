"""The encoder's products and attention in bfloat16, summed in float32, on the CPU.

They are fast if the processor multiplies bfloat16 (AMX, or else AVX512-BF16). Otherwise they are correct, but
slower than those of encoder_ops in float32.
A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import Dim, TensorValue

from asrgate.backends.max_graph.encoder_ops import PANEL, attention_of, product_of, whole_panels


def pairs(weight: Any) -> np.ndarray:
    """Return a weight as `product` reads it; see encoder_ops.whole_panels.

    Returns:
        uint16 (n / 32, k / 2, 32, 2), the bits of bfloat16, rounded to nearest even: numpy has no bfloat16.

    Raises:
        ValueError: k is odd.
    """
    padded = whole_panels(weight)
    k = padded.shape[1]
    if k % 2:
        raise ValueError(f"a matrix of bfloat16 pairs needs an even number of columns, not {k}")
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
    """As encoder_ops.product, with x rounded to bfloat16; sums and everything after them are float32.

    The GELU is right to 4e-6 of its argument.

    Args:
        x: float32 or bfloat16 (m, k), or any shape of rank 2 with `rows` and `step`.
        weight: bfloat16 (n / 32, k / 2, 32, 2), see `pairs`.
        rows, step, bias, added, gelu: as for encoder_ops.product.
        out_dtype: float32 or bfloat16.

    Returns:
        (m, n) of `out_dtype`.
    """
    step = 2 * int(weight.shape[1]) if step is None else step
    return product_of("asr_product_bf16", [x, weight], rows, out_dtype, bias, added, gelu, step=step)


def attention(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """As encoder_ops.attention, of float32 or bfloat16, with heads of a multiple of 32.

    Products are of bfloat16; scores, exponentials and sums are float32.
    """
    return attention_of("asr_attention_in_parts", query, key, value, n_head, parts=1)
