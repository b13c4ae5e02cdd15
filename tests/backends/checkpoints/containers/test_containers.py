"""Other programs' containers, out and back: every value to the bit, every dimension."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_containers import (
    SHAPES,
    assert_same,
    back,
    change_ct2,
    change_hf,
    export,
    made,
    read_ct2,
    small,
    write_ct2,
)
from paths import TINY_EN
from safetensors.torch import load_file, save_file

from asrgate.backends.checkpoints import containers
from asrgate.backends.checkpoints.catalog import CheckpointError, resolve
from asrgate.backends.checkpoints.containers import __main__ as child
from asrgate.backends.checkpoints.containers import kind_of
from asrgate.backends.checkpoints.conversions import ggml_model
from asrgate.backends.checkpoints.file import read_dimensions, read_tensors
from asrgate.backends.checkpoints.identity import file_tensors_sha256

TINY_EN_TENSORS = "0f75a631e10a0385fd93cc1919b7879d2f002df0b55e1ae4d41a9e77da6c7f56"
KINDS = containers.EXPORTS
__all__ = ["made"]  # a fixture: pytest finds it by its name here

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "float32"])
def test_a_container_and_back_is_equal_to_the_bit(
    shape: str, kind: str, made: Callable[..., Any], tmp_path: Path
) -> None:
    path, container = made(shape, kind)
    assert kind_of(container) == kind
    assert_same(path, back(container, tmp_path))


@pytest.mark.parametrize("kind", ["ctranslate2", "huggingface"])
def test_float32_that_float16_cannot_hold_stays_float32(
    kind: str, made: Callable[..., Any], tmp_path: Path
) -> None:
    path, container = made("float32", kind)
    assert dict(read_tensors(path))["decoder.ln.bias"].dtype == np.float32
    assert_same(path, back(container, tmp_path))


def test_ggml_has_no_float32_to_write(made: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.weight has values that float16 cannot hold"):
        export("ggml", made("float32", "huggingface")[0], tmp_path)


def test_a_float32_ggml_file_is_read(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("float32", "huggingface")[0]
    f32 = ggml_model.TensorType(0, ggml_model._float32)
    monkeypatch.setattr(ggml_model, "F16", f32)
    with (tmp_path / "f32.bin").open("wb") as file:
        ggml_model.write(file, resolve(str(path)), ggml_model.FileType(0, f32))
    assert_same(path, back(tmp_path / "f32.bin", tmp_path))


def test_vectors_that_are_float32_only_survive_ggml(made: Callable[..., Any], tmp_path: Path) -> None:
    content = torch.load(made("english", "ggml")[0], weights_only=True)
    content["model_state_dict"]["decoder.ln.bias"] = torch.full((8,), 1 / 3)
    torch.save(content, tmp_path / "m.pt")
    came = back(export("ggml", tmp_path / "m.pt", tmp_path), tmp_path)
    assert file_tensors_sha256(came) == file_tensors_sha256(tmp_path / "m.pt")
    assert {values.dtype for _, values in read_tensors(came)} == {np.dtype("float32")}


def test_a_float32_copy_of_float16_weights_becomes_float16_again(
    made: Callable[..., Any], tmp_path: Path
) -> None:
    path = made("english", "ggml")[0]
    content = torch.load(path, weights_only=True)
    wide = {name: values.float() for name, values in content["model_state_dict"].items()}
    torch.save({"dims": content["dims"], "model_state_dict": wide}, tmp_path / "wide.pt")
    assert kind_of(tmp_path / "wide.pt") == "openai"
    assert_same(path, back(tmp_path / "wide.pt", tmp_path))


@pytest.mark.parametrize("heads", [b"ABzY8\xff", "ABzY8", torch.ones(1, 2, dtype=torch.bool)])
@pytest.mark.parametrize("is_tensor_of_the_model", [False, True])
def test_a_file_with_alignment_heads_is_read(
    heads: Any, is_tensor_of_the_model: bool, made: Callable[..., Any], tmp_path: Path
) -> None:
    path = made("english", "ggml")[0]
    content = torch.load(path, weights_only=True)
    (content["model_state_dict"] if is_tensor_of_the_model else content)["alignment_heads"] = heads
    torch.save(content, tmp_path / "m.pt")
    assert_same(path, back(tmp_path / "m.pt", tmp_path))


@pytest.mark.parametrize("kind", ["ctranslate2", "huggingface"])
def test_bfloat16_is_widened_to_the_same_values(kind: str, tmp_path: Path) -> None:
    path = small(tmp_path / "m.pt", dtype=torch.bfloat16)
    container = export(kind, path, tmp_path)
    if kind == "huggingface":
        change_hf(container, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    else:
        variables, aliases = read_ct2(container / "model.bin")
        narrow = [
            v._replace(dtype=5, data=np.frombuffer(v.data, "<u2")[1::2].tobytes()) if v.dtype == 0 else v
            for v in variables
        ]
        assert narrow != variables
        write_ct2(container / "model.bin", narrow, aliases)
    came = back(container, tmp_path)
    assert file_tensors_sha256(came) == file_tensors_sha256(path)


# --- Hugging Face ---------------------------------------------------------------------------------------


def shard(folder: Path, target: Path) -> None:
    """Write the folder's model again as two shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    target.mkdir(parents=True)
    shutil.copy(folder / "config.json", target)
    names, places = sorted(tensors), {}
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in chosen}, target / name)
        places.update(dict.fromkeys(chosen, name))
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_are_one_model(made: Callable[..., Any], tmp_path: Path) -> None:
    path, container = made("turbo", "huggingface")
    shard(container, tmp_path / "s")
    assert_same(path, back(tmp_path / "s", tmp_path))
    assert_same(path, back(tmp_path / "s" / "model-00001-of-00002.safetensors", tmp_path))


def test_the_hubs_cache_of_links_is_read(made: Callable[..., Any], tmp_path: Path) -> None:
    path, container = made("english", "huggingface")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    shard(container, snapshot)
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    assert_same(path, back(snapshot, tmp_path))


def test_a_tied_projection_and_zero_key_biases_are_dropped(made: Callable[..., Any], tmp_path: Path) -> None:
    path, container = made("english", "huggingface")
    shutil.copytree(container, tmp_path / "hf")
    change_hf(
        tmp_path / "hf",
        lambda tensors: tensors.update(
            {
                "proj_out.weight": tensors["model.decoder.embed_tokens.weight"].clone(),
                "model.encoder.layers.0.self_attn.k_proj.bias": torch.zeros(8),
            }
        ),
    )
    assert_same(path, back(tmp_path / "hf", tmp_path))


@pytest.mark.parametrize("shape", ["english", "turbo"])
def test_transformers_loads_an_export_and_writes_what_comes_back(
    shape: str, made: Callable[..., Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    path, container = made(shape, "huggingface")
    model, report = transformers.WhisperForConditionalGeneration.from_pretrained(
        container, output_loading_info=True, dtype="auto"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    model.save_pretrained(tmp_path / "theirs")
    assert_same(path, back(tmp_path / "theirs", tmp_path))
    for name in ("tokenizer.json", "preprocessor_config.json"):
        shutil.copy(container / name, tmp_path / "theirs")
    converters = pytest.importorskip("ctranslate2").converters
    try:  # how the published faster-whisper models were made
        converters.TransformersConverter(str(tmp_path / "theirs")).convert(str(tmp_path / "ct2"))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        pytest.skip(f"ctranslate2's converter does not run with this transformers: {error}")
    assert_same(path, back(tmp_path / "ct2", tmp_path))


# --- CTranslate2 ----------------------------------------------------------------------------------------


def test_without_num_heads_a_head_is_64_wide(tmp_path: Path) -> None:
    wide = {"n_audio_state": 128, "n_text_state": 128, "n_audio_head": 2, "n_text_head": 2}
    path = small(tmp_path / "m.pt", **wide)
    container = export("ctranslate2", path, tmp_path)
    for side in ("encoder", "decoder"):
        change_ct2(container, f"{side}/num_heads", lambda _: [])
    assert_same(path, back(container, tmp_path))


def test_an_alias_stands_for_its_variable(made: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(made("english", "ctranslate2")[1], tmp_path / "ct2")
    model = tmp_path / "ct2" / "model.bin"
    variables, aliases = read_ct2(model)
    one, other = "decoder/layer_norm/beta", "decoder/layer_0/ffn/layer_norm/beta"
    write_ct2(model, [v for v in variables if v.name != one], [*aliases, (one, other)])
    tensors = dict(read_tensors(back(model, tmp_path)))
    assert np.array_equal(tensors["decoder.ln.bias"], tensors["decoder.blocks.0.mlp_ln.bias"])


def test_an_export_that_does_not_come_back_is_an_error(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = child.huggingface.write

    def careless(folder: Path, dimensions: Any, tensors: Any) -> None:
        write(folder, dimensions, tensors)
        change_hf(folder, lambda tensors: tensors["model.decoder.layer_norm.bias"].mul_(2))

    monkeypatch.setattr(child.huggingface, "write", careless)
    with pytest.raises(CheckpointError, match="is not preserved exactly by huggingface"):
        export("huggingface", made("english", "ggml")[0], tmp_path)


@pytest.mark.parametrize("kind", [*KINDS, "openai"])
def test_tiny_en_comes_back(kind: str, tmp_path: Path) -> None:
    if not TINY_EN.exists():
        pytest.skip(f"needs OpenAI's tiny.en at ../shared/weights/{TINY_EN.name}")
    if kind == "openai":
        tensors = {name: torch.from_numpy(values).float() for name, values in read_tensors(TINY_EN)}
        content = {"dims": read_dimensions(TINY_EN), "model_state_dict": tensors}
        torch.save(content, source := tmp_path / "wide.pt")
    else:
        source = export(kind, TINY_EN, tmp_path)
    came = back(source, tmp_path)
    assert file_tensors_sha256(came) == TINY_EN_TENSORS
    assert_same(TINY_EN, came)
