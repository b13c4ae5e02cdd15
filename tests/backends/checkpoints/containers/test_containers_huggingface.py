"""Hugging Face folders that cannot come back exactly, are broken or lie: one clear error each."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_checkpoint import MULTILINGUAL_V3
from fake_containers import change_hf, copy, export, originals, read, refused, small
from safetensors.torch import load_file, save_file

from asrgate.backends.checkpoints.catalog import CheckpointError
from asrgate.backends.checkpoints.containers import import_file

__all__ = ["copy", "originals"]  # fixtures: pytest finds them by their names here

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow


EMBEDDING = "model.decoder.embed_tokens.weight"
HF_CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "int8": (
        lambda t: t.update({EMBEDDING: t[EMBEDDING].to(torch.int8)}),
        rf"{EMBEDDING} is I8; quantised weights cannot be converted",
    ),
    "float8": (
        lambda t: t.update({EMBEDDING: t[EMBEDDING].to(torch.float8_e4m3fn)}),
        rf"{EMBEDDING} is F8_E4M3; quantised weights cannot be converted",
    ),
    "float64": (lambda t: t.update({EMBEDDING: t[EMBEDDING].double()}), rf"{EMBEDDING} is F64"),
    "missing": (
        lambda t: t.pop("model.encoder.conv1.bias"),
        r"tensor model\.encoder\.conv1\.bias is missing",
    ),
    "no embedding": (lambda t: t.pop(EMBEDDING), rf"tensor {EMBEDDING} is missing"),
    "misshapen": (
        lambda t: t.update({"model.encoder.conv1.bias": torch.zeros(9, dtype=torch.float16)}),
        r"model\.encoder\.conv1\.bias has shape \(9,\).* require \(8,\)",
    ),
    "unknown": (
        lambda t: t.update({"model.decoder.adapter.weight": torch.zeros(2)}),
        r"Whisper has no tensor model\.decoder\.adapter\.weight",
    ),
    "projection": (
        lambda t: t.update({"proj_out.weight": t[EMBEDDING] + 1}),
        rf"proj_out\.weight differs from {EMBEDDING}",
    ),
    "key bias": (
        lambda t: t.update({"model.decoder.layers.0.encoder_attn.k_proj.bias": torch.ones(8)}),
        r"model\.decoder\.layers\.0\.encoder_attn\.k_proj\.bias gives the keys a non-zero bias",
    ),
    "added token": (
        lambda t: t.update({EMBEDDING: torch.cat([t[EMBEDDING], t[EMBEDDING][:9]])}),
        rf"{EMBEDDING} has 51,873 rows",
    ),
}


@pytest.mark.parametrize("case", HF_CHANGES)
def test_safetensors_that_cannot_come_back(case: str, copy: Callable[[str], Path]) -> None:
    change, message = HF_CHANGES[case]
    folder = copy("hf")
    change_hf(folder, change)
    with refused(message):
        read(folder)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2'"),
    "another head": ({"architectures": ["WhisperForAudioClassification"]}, "architectures is"),
    "activation": ({"activation_function": "relu"}, "activation_function is 'relu'; in Whisper it is 'gelu'"),
    "scaled": ({"scale_embedding": True}, "scale_embedding is True"),
    "narrow": ({"decoder_ffn_dim": 16}, "decoder_ffn_dim is 16; in Whisper it is four times d_model"),
    "text": ({"encoder_layers": "4"}, "encoder_layers is '4'; it must be a whole number"),
    "truth": ({"encoder_layers": True}, "encoder_layers is True; it must be a whole number"),
    "absent": ({"d_model": None}, "d_model is None; it must be a whole number"),
    "negative": ({"decoder_layers": -1}, "n_text_layer is -1; it must be a whole number from 1 to 256"),
    "endless": ({"decoder_layers": 10**9}, "n_text_layer is 1000000000; it must be"),
    "wide": (
        {"d_model": 10**12, "encoder_ffn_dim": 4 * 10**12, "decoder_ffn_dim": 4 * 10**12},
        "n_audio_state",
    ),
    "heads": ({"encoder_attention_heads": 3}, "n_audio_state is not a multiple of n_audio_head"),
    "mels": ({"num_mel_bins": 81}, "n_mels is 81; Whisper has 80 or 128"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_is_not_whispers(case: str, copy: Callable[[str], Path]) -> None:
    change, message = CONFIGS[case]
    path = copy("hf") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with refused(message):
        read(path.parent)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\udcff", '{"model_type": NaN}'])
def test_config_that_is_no_json(text: str, copy: Callable[[str], Path]) -> None:
    path = copy("hf") / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with refused("config.json(: model_type is| is not JSON)"):
        read(path.parent)
    path.unlink()
    with refused("config.json is missing; it says how many heads"):
        read(path.parent)


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer.json"])
def test_an_added_token_that_makes_the_rows_of_another_vocabulary(name: str, tmp_path: Path) -> None:
    # 51,866 rows are large-v3's, or the multilingual 51,865 and one more
    folder = export("huggingface", small(tmp_path / "m.pt", n_vocab=MULTILINGUAL_V3), tmp_path)
    if name == "tokenizer.json":
        content = json.loads((folder / name).read_text())
        content["added_tokens"][-1]["content"] = "[PAD]"
    else:
        content = {"<|startoftranscript|>": 50_258, "[PAD]": 51_865}
    (folder / name).write_text(json.dumps(content))
    with refused(rf"{name}: '\[PAD\]' is token 51865.* was added, so {EMBEDDING}"):
        read(folder)


@pytest.mark.parametrize("length", [0, 2, 1 << 20, 99_999_999, 1 << 40, (1 << 64) - 1])
def test_safetensors_header_that_lies(length: int, copy: Callable[[str], Path]) -> None:
    path = copy("hf") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with refused("model.safetensors is damaged or not a safetensors file"):
        read(path.parent)


def test_safetensors_tensor_that_lies(copy: Callable[[str], Path]) -> None:
    path = copy("hf") / "model.safetensors"
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    for change in (
        {"shape": [1 << 40, 8]},
        {"shape": [1 << 40, 8], "data_offsets": [0, 1 << 44]},
        {"data_offsets": [0, 1 << 62]},
        {"dtype": "F1000"},
    ):
        lie = json.dumps({**header, EMBEDDING: {**header[EMBEDDING], **change}}).encode()
        path.write_bytes(struct.pack("<Q", len(lie)) + lie + data[end:])
        with refused("model.safetensors is damaged or not a safetensors file"):
            read(path.parent)
    path.write_bytes(data[:-1])
    with refused("model.safetensors is damaged or not a safetensors file"):
        read(path.parent)


def test_a_pickle_is_not_read_at_all(copy: Callable[[str], Path], originals: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(folder / "ran"),)

    folder = copy("hf")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, folder / "pytorch_model.bin")
    for source in (folder, folder / "pytorch_model.bin"):
        with refused(r"a pickle, which can run code\. .* safe_serialization=True"):
            read(source)
        with pytest.raises(CheckpointError, match="a pickle, which can run code"):
            import_file(source, folder / "out.pt")
    shutil.copy(originals / "hf" / "model.safetensors", folder)
    with refused("a pickle, which can run code"):
        read(folder / "pytorch_model.bin")  # it may hold other weights than the file beside it
    assert not (folder / "ran").exists()


def test_an_adapter_is_to_be_merged_first(copy: Callable[[str], Path]) -> None:
    folder = copy("hf")
    (folder / "adapter_config.json").write_text("{}")
    with refused("has an adapter.*merge it into its base model first"):
        read(folder)
    (folder / "model.safetensors").unlink()
    with refused("has an adapter"):
        read(folder)


@pytest.mark.parametrize(
    ("home", "message"),
    [
        ("../other/model.safetensors", "a shard must be a .safetensors file next to it"),
        ("/etc/passwd", "a shard must be"),
        ("..", "a shard must be"),
        ("pytorch_model-1.bin", "a shard must be"),
        ("gone.safetensors", "gone.safetensors, which .* names, is missing"),
        ("link.safetensors", "link.safetensors, which .* is a link out of the folder"),
        ("empty.safetensors", "empty.safetensors is damaged"),
        ("second.safetensors", f"second.safetensors: {EMBEDDING} is also in first.safetensors"),
        ("other.safetensors", f"{EMBEDDING} should be in other.safetensors, but is not"),
    ],
)
def test_an_index_that_lies(home: str, message: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("hf")
    tensors = load_file(folder / "model.safetensors")
    outside = tmp_path / "other"
    outside.mkdir()
    shutil.copy(folder / "model.safetensors", outside)
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    (folder / "link.safetensors").symlink_to(outside / "model.safetensors")
    (folder / "empty.safetensors").touch()
    save_file({EMBEDDING: tensors[EMBEDDING]}, folder / "second.safetensors")
    save_file({"proj_out.weight": tensors[EMBEDDING]}, folder / "other.safetensors")
    places = {**dict.fromkeys(tensors, "first.safetensors"), EMBEDDING: home}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with refused(message):
        read(folder)
    index.write_text(json.dumps({"weight_map": []}))
    with refused("has no weight_map"):
        read(folder)
