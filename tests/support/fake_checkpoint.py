"""A checkpoint in OpenAI's format, small and random (seeded): real to every engine, quick to run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from asrgate.backends.checkpoints.file import expected_tensors

ENGLISH, MULTILINGUAL, MULTILINGUAL_V3 = 51_864, 51_865, 51_866

DIMENSIONS = {
    "n_mels": 80,
    "n_audio_ctx": 1500,
    "n_audio_state": 32,
    "n_audio_head": 2,
    "n_audio_layer": 2,
    "n_vocab": ENGLISH,
    "n_text_ctx": 448,
    "n_text_state": 32,
    "n_text_head": 2,
    "n_text_layer": 2,
}


def fake_content(
    seed: int = 0, dtype: torch.dtype = torch.float16, loops: bool = False, **dimensions: int
) -> dict[str, Any]:
    """Return what such a file holds.

    Args:
        seed: of the random weights.
        dtype: of all tensors.
        loops: repeat a few tokens for ever, where it otherwise wanders over the vocabulary and ends.
        dimensions: replaces some of DIMENSIONS.
    """
    dims = {**DIMENSIONS, **dimensions}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_tensors(dims).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith(("ln.weight", "ln_post.weight")):
            values = 1 + 0.1 * values
        elif len(shape) == 1:
            values = 0.1 * values
        elif "embedding" not in name:
            values = values / math.sqrt(math.prod(shape[1:]))
        tensors[name] = values.to(dtype)
    if not loops:
        # the position outweighs the last token, and every 40th position asks for the end of the text
        positions = tensors["decoder.positional_embedding"].mul_(4)
        end = 50_256 if dims["n_vocab"] == ENGLISH else 50_257
        tensors["decoder.token_embedding.weight"][end] = positions[40::40].mean(0)
    return {"dims": dims, "model_state_dict": tensors}


def write_fake_checkpoint(path: Path, **content: Any) -> Path:
    """Write `fake_content(**content)` to `path` and return the path."""
    torch.save(fake_content(**content), path)
    return path
