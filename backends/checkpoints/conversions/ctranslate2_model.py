"""A checkpoint as a CTranslate2 model: converted once, kept in the cache under the checkpoint's hash.

The conversion runs in a process of its own, so that a worker that measures CTranslate2 never holds torch:

    python -m asrgate.backends.checkpoints.conversions.ctranslate2_model tiny.en.pt <its SHA-256> new-folder
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from asrgate.backends import child_process, temporary
from asrgate.backends.base import MULTILINGUAL_VOCAB, BackendError, BackendUnavailable, Checkpoint
from asrgate.backends.checkpoints import apart
from asrgate.backends.checkpoints.cache import cache_dir, locked
from asrgate.backends.checkpoints.catalog import CheckpointError, identified, openai_table
from asrgate.backends.checkpoints.file import read_dimensions, read_tensors
from asrgate.backends.checkpoints.sha256 import file_sha256

CONVERTER_VERSION = 2
# History: 1 = first version; 2 = OpenAI's models are known by their tensors.


def converted_folder(checkpoint: Checkpoint) -> Path:
    """Where the conversion of the checkpoint is or will be.

    Raises:
        BackendUnavailable: ctranslate2 is not installed.
    """
    try:
        converter = f"{CONVERTER_VERSION}-ctranslate2-{version('ctranslate2')}"
    except PackageNotFoundError as error:
        raise BackendUnavailable("ctranslate2 is not installed", "pip install faster-whisper") from error
    return cache_dir() / "ctranslate2" / f"{checkpoint.sha256}-{converter}"


def convert(checkpoint: Checkpoint) -> Path:
    """Return the folder of the checkpoint's CTranslate2 model, building it if it is not in the cache.

    Tensors keep the checkpoint's own type where all of them are float16, else they are float32: both hold
    its values exactly, so float32 computes with the checkpoint's numbers. Quantisation happens at load.

    Raises:
        BackendError: the conversion failed.
        CheckpointError: the file changed since it was resolved.
    """
    folder = converted_folder(checkpoint)
    if folder.is_dir():
        return folder
    with locked(folder):
        if folder.is_dir():
            return folder  # another process was first
        with temporary.beside(folder) as work:
            made = work / "made"
            size_bytes = checkpoint.path.stat().st_size
            try:
                apart.answer(__name__, checkpoint.path, checkpoint.sha256, made, size_bytes=size_bytes)
            except CheckpointError as error:
                raise BackendError(
                    f"{checkpoint.path} cannot be converted for CTranslate2: {error}"
                ) from error
            made.rename(folder)
    return folder


def build(path: Path, folder: Path) -> None:
    """Write the CTranslate2 model of the checkpoint at `path` into `folder`. Imports torch and ctranslate2.

    The folder holds what faster-whisper reads: model.bin, config.json, vocabulary.json, tokenizer.json
    and preprocessor_config.json.
    """
    from ctranslate2.specs import WhisperSpec

    from asrgate.backends.checkpoints.conversions.tokenizer_json import tokenizer_json

    dimensions, tensors = read_dimensions(path), dict(read_tensors(path))
    if any(values.dtype != np.float16 for values in tensors.values()):
        tensors = {name: values.astype(np.float32, copy=False) for name, values in tensors.items()}
    spec = WhisperSpec(
        dimensions["n_audio_layer"],
        dimensions["n_audio_head"],
        dimensions["n_text_layer"],
        dimensions["n_text_head"],
    )
    _fill(spec, tensors)
    tokenizer = tokenizer_json(dimensions["n_vocab"])
    spec.register_vocabulary([tokenizer.id_to_token(token) for token in range(dimensions["n_vocab"])])
    known = identified(path)
    _configure(spec.config, dimensions, None if known is None else known.name)
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    features = {"feature_size": dimensions["n_mels"], "sampling_rate": 16_000, "hop_length": 160}
    features |= {"chunk_length": 30, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(features) + "\n")


def alignment_heads(dimensions: dict[str, int], name: str | None) -> list[list[int]]:
    """Return [layer, head] of the cross-attention heads that follow time: OpenAI's list for its own models.

    For others all heads of the last half of the layers, as whisper.model.Whisper does.
    """
    layers, heads = dimensions["n_text_layer"], dimensions["n_text_head"]
    chosen = np.zeros((layers, heads), dtype=bool)
    chosen[layers // 2 :] = True
    openai = openai_table("_ALIGNMENT_HEADS")
    if name in openai:
        packed = gzip.decompress(base64.b85decode(openai[name]))
        chosen = np.frombuffer(packed, dtype=bool).reshape(layers, heads)
    return [[int(layer), int(head)] for layer, head in np.argwhere(chosen)]


def _configure(config: Any, dimensions: dict[str, int], name: str | None) -> None:
    from whisper.tokenizer import LANGUAGES, get_tokenizer

    from asrgate.backends.checkpoints.conversions.tokenizer_json import special_tokens

    names = special_tokens(dimensions["n_vocab"])
    tokenizer = get_tokenizer(dimensions["n_vocab"] >= MULTILINGUAL_VOCAB)
    never = ("transcribe", "translate", "startoftranscript", "startofprev", "startoflm", "nospeech")
    # what whisper.decoding.DecodingTask suppresses for suppress_tokens="-1", and for suppress_blank
    config.suppress_ids = sorted({*tokenizer.non_speech_tokens, *(names[f"<|{name}|>"] for name in never)})
    config.suppress_ids_begin = [*tokenizer.encode(" "), tokenizer.eot]
    config.lang_ids = [names[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in names]
    config.alignment_heads = alignment_heads(dimensions, name)


def _fill(spec: Any, tensors: dict[str, np.ndarray]) -> None:
    for side in ("encoder", "decoder"):
        target = getattr(spec, side)
        target.position_encodings.encodings = tensors[f"{side}.positional_embedding"]
        for index, layer in enumerate(target.layer):
            block = f"{side}.blocks.{index}"
            _attention(layer.self_attention, tensors, f"{block}.attn", ("query", "key", "value"), ("out",))
            if side == "decoder":
                _attention(
                    layer.attention, tensors, f"{block}.cross_attn", ("query",), ("key", "value"), ("out",)
                )
            _norm(layer.ffn.layer_norm, tensors, f"{block}.mlp_ln")
            _weights(layer.ffn.linear_0, tensors, f"{block}.mlp.0")
            _weights(layer.ffn.linear_1, tensors, f"{block}.mlp.2")
    _weights(spec.encoder.conv1, tensors, "encoder.conv1")
    _weights(spec.encoder.conv2, tensors, "encoder.conv2")
    _norm(spec.encoder.layer_norm, tensors, "encoder.ln_post")
    spec.decoder.embeddings.weight = tensors["decoder.token_embedding.weight"]
    spec.decoder.projection.weight = tensors["decoder.token_embedding.weight"]
    _norm(spec.decoder.layer_norm, tensors, "decoder.ln")


def _attention(spec: Any, tensors: dict[str, np.ndarray], name: str, *fused: tuple[str, ...]) -> None:
    _norm(spec.layer_norm, tensors, f"{name}_ln")
    for linear, parts in zip(spec.linear, fused, strict=True):
        weights = [tensors[f"{name}.{part}.weight"] for part in parts]
        # Whisper's keys have no bias; in a fused layer theirs is zero
        biases = [
            tensors.get(f"{name}.{part}.bias", np.zeros(len(w), w.dtype))
            for part, w in zip(parts, weights, strict=True)
        ]
        linear.weight, linear.bias = np.concatenate(weights), np.concatenate(biases)


def _weights(spec: Any, tensors: dict[str, np.ndarray], name: str) -> None:
    spec.weight, spec.bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _norm(spec: Any, tensors: dict[str, np.ndarray], name: str) -> None:
    spec.gamma, spec.beta = tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def main(arguments: list[str]) -> int:
    """Convert in this process, and tell `apart.answer` how it went."""
    import torch  # noqa: F401  # maps more than any limit before there is one

    path, sha256, folder = Path(arguments[0]), arguments[1], Path(arguments[2])

    def work() -> None:
        child_process.limit_memory(apart.CONVERSION_BYTES + 12 * path.stat().st_size)
        if file_sha256(path) != sha256:
            raise CheckpointError(f"{path} changed after it was checked; start the run again")
        folder.mkdir()
        build(path, folder)

    return apart.serve(work, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
