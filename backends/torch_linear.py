"""Linear layers for few rows at a time, where reading the weights is all the work: packed once, at load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Linear = Callable[[Any], Any]  # (..., n_in) -> (..., n_out)


def linear(weight: Any, bias: Any, gelu: bool = False, rows: int = 1) -> Linear:
    """A linear layer in the weight's precision, gelu applied if asked for.

    On the CPU the weight is reordered once for oneDNN: at tiny's dimensions and one row that halves the time
    of torch.nn.functional.linear.

    Args:
        weight: (n_out, n_in), on its device.
        bias: (n_out,) or None.
        gelu: append the exact gelu.
        rows: how many rows there will be, usually; the packing is tuned to it.
    """
    import torch
    from torch.nn import functional

    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        pointwise, attribute = torch.ops.mkldnn._linear_pointwise, "gelu" if gelu else "none"
        return lambda x: pointwise(x, packed, bias, attribute, [], "none")
    if gelu:
        return lambda x: functional.gelu(functional.linear(x, weight, bias))
    return lambda x: functional.linear(x, weight, bias)


def int8_linear(weight: Any, bias: Any, gelu: bool = False) -> Linear:
    """A linear layer with weights of 8 bits and one scale a row; arithmetic in bfloat16, summed in float32.

    Args:
        weight: float32 (n_out, n_in), on the CPU.
        bias: float32 (n_out,) or None.
        gelu: append the exact gelu.
    """
    import torch
    from torch.nn import functional

    quantized, scale = quantize_rows(weight)
    n_out = weight.shape[0]
    bias = None if bias is None else bias.bfloat16()

    def apply(x: Any) -> Any:
        rows = torch._weight_int8pack_mm(x.bfloat16().reshape(-1, x.shape[-1]), quantized, scale)
        y = rows[:, :n_out].reshape(*x.shape[:-1], n_out)
        y = y if bias is None else y + bias
        return functional.gelu(y) if gelu else y

    return apply


def quantize_rows(weight: Any) -> tuple[Any, Any]:
    """Round each row to 255 levels: (int8 (rows, n_in), bfloat16 scale (rows,)).

    Rows of zeros are added up to a multiple of 32, as the kernel wants it. The scale is a bfloat16 number
    before the weights are rounded, so that its own rounding costs nothing.
    """
    import torch

    rows = torch.nn.functional.pad(weight.float(), (0, 0, 0, -weight.shape[0] % 32))
    largest = rows.abs().amax(1).clamp(min=np.finfo(np.float32).tiny)
    scale = (largest * (1 + 2**-8) / 127).bfloat16()
    return (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale
