"""Products of the encoder in int8, summed in int32, on the CPU.

Each row of the weights has one scale, found when they are loaded. The kernel finds one for each row of the
other factor. They are fast if the processor multiplies int8: see processor.multiplies_bytes.
A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import TensorValue

from asrgate.backends.max_graph import custom_ops
from asrgate.backends.max_graph.encoder_ops import PANEL, product_of, whole_panels

DEPTH = 64  # numbers of a row in one tile


def whole_depth(k: int) -> int:
    """Return the numbers of a row of k filled up with zeros to whole tiles."""
    return -(-k // DEPTH) * DEPTH


def quads(weight: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight as `product` reads it; see encoder_ops.whole_panels and custom_ops.quantize_rows.

    Returns:
        int8 (n / 32, k / 4, 32, 4), with k filled up to a multiple of 64; and float32 (n,), each row's scale.
    """
    whole, scale = custom_ops.quantize_rows(whole_panels(weight))
    k = whole_depth(whole.shape[1])
    whole = np.pad(whole, ((0, 0), (0, k - whole.shape[1])))
    return np.ascontiguousarray(whole.reshape(-1, PANEL, k // 4, 4).transpose(0, 2, 1, 3)), scale


def product(
    x: TensorValue,
    weight: TensorValue,
    scale: TensorValue,
    *,
    bias: TensorValue | None = None,
    added: TensorValue | None = None,
    gelu: bool = False,
    out_dtype: DType = DType.float32,
    tiles: bool = True,
) -> TensorValue:
    """act(x weightT + bias) + added, with each row of x rounded to int8 in steps of its largest number / 127.

    All after the sums is float32. The GELU is right to 4e-6 of its argument.

    Args:
        x: float32 or bfloat16 (m, k).
        weight, scale: int8 (n / 32, k / 4, 32, 4) and float32 (n,), see `quads`.
        bias, added, gelu: as for encoder_ops.product.
        out_dtype: float32 or bfloat16.
        tiles: whether to use the processor's tiles if it has them; if not, its vectors.

    Returns:
        (m, n) of `out_dtype`.
    """
    factors = [x, weight, scale]
    return product_of("asr_product_int8", factors, None, out_dtype, bias, added, gelu, tiles=tiles)
