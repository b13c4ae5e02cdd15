"""Reads and writes Whisper as transformers stores it, safetensors and config.json, without transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asrgate.backends.checkpoints.containers.contents import (
    Contents,
    Stored,
    check_tokens,
    checked_dimensions,
    checked_shape,
    key_bias,
    missing,
    quantised,
    read_json,
    unknown,
)
from asrgate.backends.checkpoints.conversions.transformers_weights import parameter_name
from asrgate.backends.checkpoints.file import CheckpointError, expected_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own
INDEX_LIMIT_BYTES = 2 << 20  # large-v3's is 0.1 MB; the process that starts the import reads it
EMBEDDING, PROJECTION = "model.decoder.embed_tokens.weight", "proj_out.weight"
FLOATS = ("F32", "F16", "BF16")  # safetensors' names
CONFIG = {  # our dimension -> its name in config.json
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
FIXED = {"activation_function": "gelu", "scale_embedding": False}  # also transformers' defaults
ARCHITECTURE = "WhisperForConditionalGeneration"


def is_safetensors(start: bytes) -> bool:
    """Whether a file with this beginning is in safetensors' format."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= HEADER_LIMIT_BYTES


def is_folder(folder: Path) -> bool:
    """Whether the folder has transformers' layout, readable here or not."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX, ADAPTER, *PICKLES))


@dataclass(frozen=True)
class Parts:
    """The files of one model."""

    config: Path
    weights: tuple[Path, ...]
    index: Path | None  # says which shard has which tensor
    tokens: tuple[Path, ...]  # lists of special tokens, all of them optional


def is_own_name(name: str) -> bool:
    """Whether this is transformers' usual file name for weights."""
    return name in (WEIGHTS, INDEX, *PICKLES) or SHARD.fullmatch(name) is not None


def files(source: Path) -> list[Path]:
    """Return the files that an import reads.

    Raises:
        CheckpointError: some are missing, are outside the folder, or are of an unsupported kind.
    """
    parts = _parts(source)
    return [parts.config, *parts.tokens, *filter(None, [parts.index]), *parts.weights]


def read(source: Path) -> Contents:
    """Return the contents of the folder.

    Raises:
        CheckpointError: it is incomplete, inconsistent, quantised, or not Whisper's.
    """
    parts = _parts(source)
    folder = str(parts.config.parent)
    tensors = _open(parts)
    embedding = tensors.get(EMBEDDING)
    if embedding is None:
        raise missing(folder, EMBEDDING)
    rows = embedding.shape[0] if embedding.shape else 0
    dimensions = _dimensions(parts.config, rows)
    chosen = {}
    for name, shape in expected_tensors(dimensions).items():
        theirs = parameter_name(name)
        if theirs not in tensors:
            raise missing(folder, theirs)
        chosen[name] = checked_shape(folder, tensors.pop(theirs), shape)
    _check_rest(folder, tensors, embedding)
    for path in parts.tokens:
        check_tokens(str(path), _token_ids(path), rows, EMBEDDING)
    return Contents(dimensions, chosen)


def write(folder: Path, dimensions: Mapping[str, int], tensors: Mapping[str, np.ndarray]) -> None:
    """Write model.safetensors, config.json, preprocessor_config.json and tokenizer.json. Imports whisper.

    Args:
        folder: an existing empty folder.
        dimensions: the ten dimensions.
        tensors: all of one type, under OpenAI's names.
    """
    from safetensors.numpy import save_file

    from asrgate.backends.checkpoints.conversions.tokenizer_json import special_tokens, tokenizer_json

    special = special_tokens(dimensions["n_vocab"])
    end, start = special["<|endoftext|>"], special["<|startoftranscript|>"]
    config: dict[str, Any] = {theirs: dimensions[ours] for ours, theirs in CONFIG.items()}
    config |= {f"{side}_ffn_dim": 4 * dimensions["n_text_state"] for side in ("encoder", "decoder")}
    config |= {"model_type": "whisper", "architectures": [ARCHITECTURE], **FIXED, "is_encoder_decoder": True}
    config |= {f"{name}_token_id": end for name in ("bos", "eos", "pad")} | {"decoder_start_token_id": start}
    config |= {"dropout": 0.0, "tie_word_embeddings": True}
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype)
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": dimensions["n_mels"]}
    features |= {"sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
    for name, content in (("config.json", config), ("preprocessor_config.json", features)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    tokenizer_json(dimensions["n_vocab"]).save(str(folder / "tokenizer.json"))
    named = {parameter_name(name): np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes the file readable only to its owner


def _parts(source: Path) -> Parts:
    folder = source if source.is_dir() else source.parent
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder} has an adapter ({ADAPTER}), which is only part of a model; merge it into its base "
            "model first (peft's merge_and_unload), save that, and import the result"
        )
    index, weights = None, [folder / WEIGHTS]
    if source.is_file() and not is_own_name(source.name):
        weights = [source]
    elif source.name in PICKLES or not weights[0].is_file():
        if not (folder / INDEX).is_file() or source.name in PICKLES:
            raise CheckpointError(
                f"{folder}: pytorch_model.bin is not read: it is a pickle, which can run code. Use the "
                f"model's {WEIGHTS}; or, if you trust the pickle, load it with transformers and call "
                "save_pretrained(FOLDER, safe_serialization=True)"
            )
        index, weights = folder / INDEX, _shards(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{config} is missing; it says how many heads the model has. Copy it there")
    lists = [folder / name for name in ("added_tokens.json", "tokenizer.json")]
    return Parts(config, tuple(weights), index, tuple(path for path in lists if path.is_file()))


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    content = read_json(index, INDEX_LIMIT_BYTES)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} has no weight_map that says which file has which tensor")
    shards = []
    for name in sorted(set(names.values())):
        if not name.endswith(".safetensors") or re.search(r"[/\\\0]", name):
            raise CheckpointError(
                f"{index} names {name[:80]!r}; a shard must be a .safetensors file next to it"
            )
        path = folder / name
        try:
            lies_in = path.resolve(strict=True).parent
        except OSError as error:
            raise CheckpointError(f"{path}, which {INDEX} names, is missing; download it too") from error
        # the hub's cache links a snapshot's files into the same model's blobs
        own = {folder.resolve()}
        if folder.resolve().parent.name == "snapshots":
            own.add(folder.resolve().parents[1] / "blobs")
        if lies_in not in own:
            raise CheckpointError(
                f"{path}, which {INDEX} names, is a link out of the folder; copy the file into the folder"
            )
        shards.append(path)
    return shards


def _open(parts: Parts) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Stored] = {}
    homes: dict[str, str] = {}
    for path in parts.weights:
        try:
            handle = safe_open(str(path), framework="pt")
            names = list(handle.keys())
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
        for name in names:
            if name in tensors:
                raise CheckpointError(f"{path}: {name} is also in {homes[name]}; keep only one of them")
            described = handle.get_slice(name)
            kind = described.get_dtype()
            if kind not in FLOATS:
                raise quantised(str(path), name, str(kind))
            tensors[name] = Stored(name, tuple(described.get_shape()), _loader(handle, name))
            homes[name] = path.name
    if parts.index is not None:
        for name, home in read_json(parts.index)["weight_map"].items():
            if homes.get(name) != home:
                raise CheckpointError(f"{parts.index}: {name} should be in {home}, but is not")
    return tensors


def _loader(handle: Any, name: str) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        import torch

        tensor = handle.get_tensor(name)
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return load


def _dimensions(path: Path, rows: int) -> dict[str, int]:
    config = read_json(path)
    if not isinstance(config, dict) or config.get("model_type") != "whisper":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{path}: model_type is {kind!r}, not 'whisper'")
    architectures = config.get("architectures") or [ARCHITECTURE]
    if architectures != [ARCHITECTURE]:
        raise CheckpointError(f"{path}: architectures is {architectures!r}; only {ARCHITECTURE} writes text")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} is {config[key]!r}; in Whisper it is {value!r}")
    found = {ours: config.get(theirs) for ours, theirs in CONFIG.items()}
    for ours, theirs in CONFIG.items():
        if type(found[ours]) is not int:
            raise CheckpointError(f"{path}: {theirs} is {found[ours]!r}; it must be a whole number")
    for side in ("encoder", "decoder"):
        if config.get(f"{side}_ffn_dim") != 4 * config["d_model"]:
            raise CheckpointError(
                f"{path}: {side}_ffn_dim is {config.get(f'{side}_ffn_dim')!r}; "
                "in Whisper it is four times d_model"
            )
    return checked_dimensions(str(path), {**found, "n_vocab": rows}, EMBEDDING)


def _check_rest(where: str, rest: dict[str, Stored], embedding: Stored) -> None:
    projection = rest.pop(PROJECTION, None)
    if projection is not None and not (
        projection.shape == embedding.shape and np.array_equal(projection.load(), embedding.load())
    ):
        raise CheckpointError(f"{where}: {PROJECTION} differs from {EMBEDDING}; in Whisper they are the same")
    for name in [name for name in rest if name.endswith("attn.k_proj.bias")]:
        if rest.pop(name).load().any():
            raise key_bias(where, name)
    if rest:
        raise unknown(where, rest)


def _token_ids(path: Path) -> dict[str, int]:
    content = read_json(path)
    if path.name == "tokenizer.json":
        added = content.get("added_tokens", []) if isinstance(content, dict) else None
        if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
            raise CheckpointError(f"{path} has no list of added_tokens")
        content = {str(token.get("content")): token.get("id") for token in added}
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise CheckpointError(f"{path} is not a list of tokens and their ids")
    return content
