"""whisper.cpp and .pt files that cannot come back exactly, are broken or lie: one clear error each."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_containers import copy, ggml_tensor, originals, read, refused, small

from asrgate.backends.checkpoints.catalog import CheckpointError, resolve
from asrgate.backends.checkpoints.containers import import_file, kind_of
from asrgate.backends.checkpoints.conversions import ggml_model

__all__ = ["copy", "originals"]  # fixtures: pytest finds them by their names here

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow


HYPER = {name: 4 + 4 * place for place, name in enumerate(ggml_model.HYPERPARAMETERS)}
MELS = 4 + 4 * 11
TOKENS = MELS + 8 + 4 * 80 * 201
GGML_NUMBERS: dict[str, tuple[Any, int, str]] = {
    "rows": (HYPER["n_vocab"], 51_900, r"decoder\.token_embedding\.weight has 51,900 rows"),
    "layers": (HYPER["n_text_layer"], 2**31 - 1, "n_text_layer is 2147483647; it must be"),
    "more layers": (HYPER["n_text_layer"], 3, r"tensor decoder\.blocks\.1\.attn\.query\.weight is missing"),
    "fewer layers": (HYPER["n_audio_layer"], 0, "n_audio_layer is 0; it must be"),
    "negative": (HYPER["n_audio_state"], -8, "n_audio_state is -8; it must be"),
    "width": (HYPER["n_audio_state"], 16, "its decoder is not Whisper's: it is 8 wide, the encoder 16"),
    "context": (HYPER["n_text_ctx"], 449, r"decoder\.positional_embedding has shape \(448, 8\)"),
    "mels": (MELS, 128, "its mel filters are 128 by 201, not 80 by 201"),
    "frequencies": (MELS + 4, 2**31 - 1, "its mel filters are 80 by 2147483647"),
    "tokens": (TOKENS, 2**31 - 1, "it lists 2,147,483,647 tokens"),
    "token": (TOKENS + 4, 2**31 - 1, r"a token's text needs 2,147,483,647 bytes"),
    "negative token": (TOKENS + 4, -1, r"a token's text needs -1 bytes"),
    "rank": (("encoder.conv1.weight", 0), 5, "no tensor begins at byte"),
    "name": (("encoder.conv1.weight", 4), 2**31 - 1, "no tensor begins at byte"),
    "quantised": (("encoder.conv2.weight", 8), 8, r"encoder\.conv2\.weight is q8_0; quantised"),
    "q5": (("decoder.blocks.0.attn.key.weight", 8), 7, r"decoder\.blocks\.0\.attn\.key\.weight is q5_1"),
    "type": (("encoder.conv2.weight", 8), 77, r"encoder\.conv2\.weight is of ggml's type 77"),
    "size": (("decoder.ln.bias", 12), 2**31 - 1, r"decoder\.ln\.bias needs 8,589,934,588 bytes"),
    "negative size": (("decoder.ln.bias", 12), -8, r"decoder\.ln\.bias has shape \(-8,\)"),
}


@pytest.mark.parametrize("case", GGML_NUMBERS)
def test_ggml_that_lies_or_cannot_come_back(case: str, copy: Callable[[str], Path]) -> None:
    place, value, message = GGML_NUMBERS[case]
    path = copy("ggml-fake.bin")
    data = bytearray(path.read_bytes())
    if not isinstance(place, int):
        place = ggml_tensor(data, place[0]) + place[1]
    struct.pack_into("<i", data, place, value)
    path.write_bytes(data)
    with refused(message):
        read(path)


def test_ggml_of_other_tensors(copy: Callable[[str], Path]) -> None:
    path = copy("ggml-fake.bin")
    data = path.read_bytes()
    for old, new, message in (
        (b"decoder.ln.bias", b"decoder.ln.bits", r"tensor decoder\.ln\.bias is missing"),
        (b"decoder.ln.bias", b"decoder.ln.bi\x1bs", "has no name"),
    ):
        path.write_bytes(data.replace(old, new))
        with refused(message):
            read(path)
    entry = data[ggml_tensor(data, "encoder.ln_post.bias") :][: 4 * 4 + len("encoder.ln_post.bias") + 8 * 4]
    path.write_bytes(data + entry)
    with refused(r"encoder\.ln_post\.bias occurs twice"):
        read(path)
    path.write_bytes(data + entry.replace(b"ln_post", b"ln_past"))
    with refused(r"Whisper has no tensor encoder\.ln_past\.bias"):
        read(path)


@pytest.mark.parametrize("length", [4, 47, 60, 70_000, 600_000, 1_000_000, -1])
def test_ggml_cut_short(length: int, copy: Callable[[str], Path]) -> None:
    path = copy("ggml-fake.bin")
    path.write_bytes(path.read_bytes()[:length])
    with refused("is cut short|is damaged|is missing"):
        read(path)


def test_a_quantised_whisper_cpp_file_names_the_tensor(tmp_path: Path) -> None:
    wide = {"n_audio_state": 32, "n_text_state": 32}
    checkpoint = resolve(str(small(tmp_path / "m.pt", **wide)))
    with (tmp_path / "q8.bin").open("wb") as file:
        ggml_model.write(file, checkpoint, ggml_model.FILE_TYPES["q8_0"])
    with refused(r"decoder\.token_embedding\.weight is q8_0; quantised weights cannot be converted"):
        read(tmp_path / "q8.bin")


# --- OpenAI's own -----------------------------------------------------------------------------------------


def test_a_pt_file_that_would_run_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"dims": Bomb(), "model_state_dict": {}}, tmp_path / "m.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name, message in (
        ("m.pt", "which would run code"),
        ("old.pt", "not a checkpoint in torch.save's format"),
    ):
        assert kind_of(tmp_path / name) == "openai"
        with refused(message):
            read(tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            import_file(tmp_path / name, tmp_path / "out.pt")
    assert not (tmp_path / "ran").exists()


def test_a_pt_file_of_strides_that_are_nothing(tmp_path: Path) -> None:
    content = torch.load(small(tmp_path / "m.pt", n_audio_state=1024, n_text_state=1024), weights_only=True)
    flat = {name: torch.zeros(1).half().expand(t.shape) for name, t in content["model_state_dict"].items()}
    torch.save({**content, "model_state_dict": flat}, tmp_path / "flat.pt")
    with refused("its dims require|is cut short"):
        read(tmp_path / "flat.pt")


def test_a_pt_file_that_unpacks_to_much(originals: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.pt"
    with (
        zipfile.ZipFile(originals / "m.pt") as stored,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as f,
    ):
        for name in stored.namelist():
            content = stored.read(name)
            f.writestr(name, bytes(len(content)) if "/data/" in name else content)
    with refused("is compressed, which torch.save never does"):
        read(target)
