"""What every container is converted to: Whisper's dimensions, and its tensors under OpenAI's names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asrgate.backends.checkpoints.file import (
    DIMENSIONS,
    KNOWN,
    LAYERS_OR_HEADS_LIMIT,
    CheckpointError,
    check_heads,
)

LIMITS = {"layer": LAYERS_OR_HEADS_LIMIT, "head": LAYERS_OR_HEADS_LIMIT, "state": 16_384, "ctx": 65_536}
# Whisper's largest states and contexts are 1,280 and 1,500.
JSON_LIMIT_BYTES = 64 << 20  # a tokenizer.json has 4 MB


@dataclass(frozen=True)
class Stored:
    """One tensor as its container describes it; the numbers are read on demand."""

    name: str  # the container's own, for messages
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]  # returns float16 or float32 of that shape


@dataclass(frozen=True)
class Contents:
    """A whole model, with its headers checked and its numbers not yet read."""

    dimensions: dict[str, int]
    tensors: dict[str, Stored]  # OpenAI's names, in the order of `expected_tensors`

    def by_name(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names and values in the order of the names, as the digest requires."""
        for name in sorted(self.tensors):
            yield name, self.tensors[name].load()


def checked_dimensions(where: str, found: Mapping[str, Any], embedding: str) -> dict[str, int]:
    """Return the ten dimensions in order if a Whisper can have them.

    Args:
        where: the beginning of a message: the file that gives them.
        found: the ten dimensions by OpenAI's names.
        embedding: the container's name for the token embedding, which has n_vocab rows.

    Raises:
        CheckpointError: one of them is missing, not a number, implausible, or not Whisper's.
    """
    for name in DIMENSIONS:
        value, limit = found.get(name), LIMITS.get(name.rsplit("_", 1)[1], 1 << 20)
        if type(value) is not int or not 0 < value <= limit:
            raise CheckpointError(
                f"{where}: {name} is {value!r}; it must be a whole number from 1 to {limit:,}"
            )
    rows = found["n_vocab"]
    if rows not in KNOWN["n_vocab"]:
        counts = ", ".join(f"{count:,}" for count in KNOWN["n_vocab"])
        raise CheckpointError(
            f"{where}: {embedding} has {rows:,} rows, one per token; Whisper's vocabularies have {counts}. "
            "Added or removed tokens are not supported; train again with the ordinary vocabulary"
        )
    for name in ("n_mels", "n_audio_ctx"):
        if found[name] not in KNOWN[name]:
            choices = " or ".join(f"{value:,}" for value in KNOWN[name])
            raise CheckpointError(f"{where}: {name} is {found[name]:,}; Whisper has {choices}")
    check_heads(where, found)
    if found["n_audio_state"] != found["n_text_state"]:
        raise CheckpointError(
            f"{where}: its decoder is not Whisper's: it is {found['n_text_state']:,} wide, the encoder "
            f"{found['n_audio_state']:,}"
        )
    return {name: found[name] for name in DIMENSIONS}


def checked_shape(where: str, stored: Stored, shape: tuple[int, ...]) -> Stored:
    """Return the tensor if it has the shape.

    Raises:
        CheckpointError: it has a different shape.
    """
    if stored.shape != shape:
        raise CheckpointError(
            f"{where}: {stored.name} has shape {stored.shape}, but the model's dimensions require {shape}"
        )
    return stored


def missing(where: str, name: str) -> CheckpointError:
    """Return the error for a missing tensor."""
    return CheckpointError(
        f"{where}: the tensor {name} is missing; the file is incomplete or not a Whisper model"
    )


def unknown(where: str, names: Iterable[str]) -> CheckpointError:
    """Return the error for tensors that no Whisper has."""
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return CheckpointError(
        f"{where}: Whisper has no tensor {', '.join(listed[:3])}{more}; the model computes something else"
    )


def quantised(where: str, name: str, kind: str) -> CheckpointError:
    """Return the error for a tensor that is neither float16 nor float32 nor bfloat16."""
    return CheckpointError(
        f"{where}: {name} is {kind}; quantised weights cannot be converted exactly. "
        "Use a float16 or float32 copy of the model"
    )


def widened(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16 numbers, given as uint16 bits, as float32 with the same values."""
    return (bits.astype("<u4") << 16).view("<f4")


def read_json(path: Path, limit_bytes: int = JSON_LIMIT_BYTES) -> Any:
    """Return the contents of a JSON file.

    Raises:
        CheckpointError: it is too large, cannot be read, or is not JSON.
    """
    try:
        if path.stat().st_size > limit_bytes:
            raise CheckpointError(f"{path} is larger than {limit_bytes >> 20} MiB, far more than necessary")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {str(error)[:100]}") from error


def key_bias(where: str, name: str) -> CheckpointError:
    """Return the error for a non-zero bias of the keys, for which OpenAI's format has no place."""
    return CheckpointError(
        f"{where}: {name} gives the keys a non-zero bias, for which OpenAI's format has no place"
    )


def check_tokens(where: str, ids: Mapping[str, int], n_vocab: int, embedding: str) -> None:
    """Check a container's own list of special tokens against the vocabulary that its number of rows implies.

    A multilingual model with one added token has as many rows as large-v3, so the number alone is not enough.

    Args:
        where: the beginning of a message: the file that lists them.
        ids: the tokens and their ids; ordinary ones are skipped.
        n_vocab: the rows of the embedding.
        embedding: the container's name for the embedding.

    Raises:
        CheckpointError: a token is not Whisper's, or has the id of another.
    """
    from asrgate.backends.checkpoints.conversions.tokenizer_json import special_tokens

    ours = special_tokens(n_vocab)
    ours["<|nocaptions|>"] = ours["<|nospeech|>"]  # Hugging Face's earlier name
    first = min(ours.values())
    for token, number in ids.items():
        is_ordinary = type(number) is int and 0 <= number < first and not re.fullmatch(r"<\|.+\|>", token)
        if not is_ordinary and ours.get(token) != number:
            raise CheckpointError(
                f"{where}: {token[:40]!r} is token {number}, which Whisper's vocabulary of {n_vocab:,} does "
                f"not have there. It was added, so {embedding} cannot be converted to OpenAI's format"
            )
