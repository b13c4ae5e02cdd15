"""Linear layers, packed once at load; for few rows at a time, reading the weights is the main work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Linear = Callable[[Any], Any]  # (..., n_in) -> (..., n_out)


def linear(weight: Any, bias: Any, gelu: bool = False, rows: int = 1) -> Linear:
    """Return a linear layer in the weight's precision, optionally followed by a GELU.

    On the CPU the weight is packed once. If float16 can hold all values of a float32 weight, as in OpenAI's
    checkpoints, it is kept in float16 and widened in registers: the products are the same, for half the
    memory.

    Args:
        weight: (n_out, n_in), on its device.
        bias: (n_out,) or None.
        gelu: whether to append the exact GELU.
        rows: the usual number of rows, for which the packing is tuned.
    """
    import torch
    from torch.nn import functional

    if weight.device.type == "cpu" and rows == 1 and _holds_halves(weight):
        halves = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        product = torch.ops.quantized.linear_dynamic_fp16
        if gelu:
            return lambda x: functional.gelu(product(x, halves))
        return lambda x: product(x, halves)
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        pointwise, attribute = torch.ops.mkldnn._linear_pointwise, "gelu" if gelu else "none"
        return lambda x: pointwise(x, packed, bias, attribute, [], "none")
    if gelu:
        return lambda x: functional.gelu(functional.linear(x, weight, bias))
    return lambda x: functional.linear(x, weight, bias)


def _holds_halves(weight: Any) -> bool:
    """Return whether FBGEMM's product of float32 and float16 keeps a float32 weight exact."""
    import torch

    if weight.dtype != torch.float32 or "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    return bool((weight.half().float() == weight).all())
