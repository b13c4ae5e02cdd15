"""The encoder's products in float32, computed in the processor's tiles of bfloat16 (AMX).

A float32 number is the sum of three bfloat16 numbers, and one of float16 is the sum of two. So float32
factors times a float16 checkpoint's weights are five products of bfloat16, summed in float32: as exact as
float32's own, and faster. In attention both factors have three parts; six of their products count.
A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import Dim, TensorValue

from asrgate.backends.max_graph import bfloat16_ops
from asrgate.backends.max_graph.encoder_ops import attention_of, product_of, whole_panels

DEPTH = 32  # numbers of a row in one tile


def whole_depth(k: int) -> int:
    """Return the numbers of a row of k filled up with zeros to whole tiles."""
    return -(-k // DEPTH) * DEPTH


def planes(weight: Any) -> np.ndarray:
    """Return a weight as `product` reads it; see encoder_ops.whole_panels.

    Args:
        weight: of numbers that float16 holds; what is beyond two bfloat16 numbers is lost of others.

    Returns:
        uint16 (2, n / 32, k / 2, 32, 2), the bits of bfloat16: the higher parts, then the lower ones. k is
        filled up to a multiple of 32.
    """
    whole = whole_panels(weight)
    whole = np.pad(whole, ((0, 0), (0, whole_depth(whole.shape[1]) - whole.shape[1])))
    high = (whole.view(np.uint32) + 0x8000) & 0xFFFF0000
    rest = whole - high.view(np.float32)
    return np.stack([bfloat16_ops.pairs(high.view(np.float32)), bfloat16_ops.pairs(rest)])


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
    """As encoder_ops.product.

    Args:
        x: float32 (m, k), or any shape of rank 2 with `rows` and `step`.
        weight: bfloat16 (2, n / 32, k / 2, 32, 2), see `planes`.
        rows, step, bias, added, gelu, out_dtype: as for encoder_ops.product.

    Returns:
        float32 (m, n).
    """
    step = int(x.shape[1]) if step is None else step
    return product_of("asr_product_split", [x, weight], rows, out_dtype, bias, added, gelu, step=step)


def attention(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """As encoder_ops.attention, with heads of a multiple of 32."""
    return attention_of("asr_attention_in_parts", query, key, value, n_head, parts=3)
