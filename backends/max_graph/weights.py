"""A checkpoint's tensors in the types and layouts that the compiled graphs take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asrgate.backends.max_graph import bfloat16_ops, custom_ops, encoder_ops, int8_ops, split_ops

SPLIT_RANK = 5  # of a weight in split_ops.planes
Kinds = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name -> type and shape of each tensor that the graphs take."""


def prepared(state_dict: Mapping[str, Any], kinds: Kinds, *, has_kernels: bool) -> dict[str, Any]:
    """Return a checkpoint's tensors in the types and layouts of `kinds`.

    Args:
        state_dict: as openai-whisper names them, torch tensors on the CPU.
        kinds: what the graphs take.
        has_kernels: see place.Place.

    Raises:
        ValueError: a tensor is missing, misshapen or superfluous; the message names it.
    """
    import torch

    tensors = dict(state_dict)
    for name in kinds:
        parts = _parts(name, state_dict)
        missing = [part for part in parts if part not in tensors and ".key.bias" not in part]
        if missing:
            raise ValueError(f"there is no {_listed(missing)}")
        if parts:
            rows = [tensors.pop(part, None) for part in parts]
            try:
                tensors[name] = torch.cat([torch.zeros_like(rows[-1]) if x is None else x for x in rows])
            except RuntimeError as error:
                raise ValueError(f"{', '.join(parts)} do not fit together: {error}") from error
    superfluous = sorted(tensors.keys() - kinds.keys())
    if superfluous:
        raise ValueError(f"the graphs have no {_listed(superfluous)}")
    laid_out = {
        name: laid
        for whole_name, tensor in tensors.items()
        for name, laid in _laid_out(whole_name, tensor, kinds[whole_name], has_kernels).items()
    }
    missing = sorted(kinds.keys() - laid_out.keys())
    if missing:
        raise ValueError(f"there is no {_listed(missing)}")
    for name, (_, shape) in kinds.items():
        if tuple(laid_out[name].shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(laid_out[name].shape)}, not {shape}")
    return laid_out


def _parts(name: str, state_dict: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors whose rows one tensor of the graphs takes together, if it does.

    openai-whisper's keys have no bias; the one named here stands for zeros.
    """
    attention, fused, kind = name.rpartition(".qkv.")
    if fused and kind != "scale":  # which `_laid_out` adds
        return [f"{attention}.{part}.{kind}" for part in ("query", "key", "value")]
    whole, fused, kind = name.rpartition("decoder.cross.")
    if not fused:
        return []
    layers = sum(x.startswith("decoder.blocks.") and x.endswith(".cross_attn.value.bias") for x in state_dict)
    return [
        f"{whole}decoder.blocks.{layer}.cross_attn.{part}.{kind}"
        for layer in range(layers)
        for part in ("key", "value")
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _laid_out(name: str, tensor: Any, kind: tuple[str, tuple[int, ...]], has_kernels: bool) -> dict[str, Any]:
    """Return one tensor laid out; an int8 matrix comes with a second tensor, one factor per row."""
    import torch

    dtype, shape = kind
    if tensor.ndim == 3 and not has_kernels:
        taps = tensor.transpose(1, 2).flatten(1)  # side by side
        tensor = torch.nn.functional.pad(taps, (0, shape[1] - taps.shape[1]))
    elif len(shape) > tensor.ndim or tensor.ndim == 3:
        values = tensor.float().numpy()
        if dtype == "bfloat16":
            laid_out = split_ops.planes if len(shape) == SPLIT_RANK else bfloat16_ops.pairs
            pairs = torch.from_numpy(laid_out(values).view(np.int16))
            return {name: pairs.view(torch.bfloat16)}
        if dtype == "int8":
            return _with_scale(name, *int8_ops.quads(values))
        return {name: torch.from_numpy(encoder_ops.panels(values))}
    if dtype == "int8":
        return _with_scale(name, *custom_ops.quantize_rows(tensor.float().numpy()))
    return {name: tensor.to(getattr(torch, dtype)).contiguous()}


def _with_scale(name: str, values: np.ndarray, scale: np.ndarray) -> dict[str, Any]:
    import torch

    scale_name = name.removesuffix("weight") + "scale"
    return {name: torch.from_numpy(values), scale_name: torch.from_numpy(scale)}
