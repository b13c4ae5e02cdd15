"""What a checkpoint file holds is read without running it; what is broken, foreign or hostile is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from fake_checkpoint import DIMENSIONS, fake_content, write_fake_checkpoint

from asrgate.backends.base import Checkpoint
from asrgate.backends.checkpoints.catalog import CheckpointError, load_state_dict, resolve
from asrgate.backends.checkpoints.file import read_dimensions, read_tensors
from asrgate.backends.checkpoints.sha256 import file_sha256


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_tensors_read_without_torch_are_torchs(tmp_path: Path, dtype: torch.dtype) -> None:
    content = fake_content(dtype=dtype)
    flipped = content["model_state_dict"]["encoder.conv1.weight"].flip(2).transpose(0, 1).contiguous()
    content["model_state_dict"]["encoder.conv1.weight"] = flipped.transpose(
        0, 1
    )  # strided, as torch may save it
    torch.save(content, tmp_path / "m.pt")
    ours, torchs = dict(read_tensors(tmp_path / "m.pt")), load_state_dict(resolve(str(tmp_path / "m.pt")))
    assert list(ours) == list(torchs)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, torchs[name].float().numpy())


def test_the_state_dict_fits_whisper_strictly(model: Path) -> None:
    whole = whisper.model.Whisper(whisper.model.ModelDimensions(**read_dimensions(model)))
    whole.load_state_dict(load_state_dict(resolve(str(model))), strict=True)


class Hostile:
    """Runs a call when unpickled."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", ["dims", "model_state_dict"])
@pytest.mark.parametrize("function", [os.system, eval])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, place: str, function: Any) -> None:
    marker, path = tmp_path / "ran", tmp_path / "hostile.pt"
    command = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w').close()"
    content = fake_content()
    content[place]["extra"] = Hostile(function, command)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="would run code"):
        resolve(str(path))
    with pytest.raises(CheckpointError, match="torch cannot load"):
        load_state_dict(Checkpoint("hostile", path, sha256(path), DIMENSIONS))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["dims"].pop("n_mels"), r"missing: \['n_mels'\]"),
        (lambda c: c["dims"].update(n_experts=8), r"unknown: \['n_experts'\]"),
        (lambda c: c["dims"].update(n_text_layer=True), "n_text_layer is True, not a plausible"),
        (lambda c: c["dims"].update(n_text_layer=2.0), "n_text_layer is 2.0, not a plausible"),
        (lambda c: c["dims"].update(n_text_layer=-2), "n_text_layer is -2, not a plausible"),
        (lambda c: c["dims"].update(n_vocab=51_000), "n_vocab is 51000; Whisper has 51864 or 51865 or 51866"),
        (lambda c: c["dims"].update(n_audio_ctx=750), "n_audio_ctx is 750; Whisper has 1500"),
        (lambda c: c["dims"].update(n_text_head=5), "n_text_state is not a multiple of n_text_head"),
        (lambda c: c["dims"].update(n_text_layer=3), "missing 24: "),
        (lambda c: c["model_state_dict"].pop("decoder.ln.bias"), r"missing 1: \['decoder.ln.bias'\]"),
        (lambda c: c["model_state_dict"].update(more=torch.zeros(1)), r"unknown 1: \['more'\]"),
        (
            lambda c: c["model_state_dict"].update({"decoder.ln.bias": torch.zeros(31)}),
            r"shape \(31,\), but its dims",
        ),
        (
            lambda c: c["model_state_dict"].update({"decoder.ln.bias": 0.5}),
            "contains something that is not a tensor",
        ),
        (lambda c: c.pop("dims"), "is not a checkpoint in OpenAI's format"),
    ],
)
def test_a_checkpoint_that_is_not_whispers_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    content = fake_content()
    change(content)
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=message):
        resolve(str(tmp_path / "m.pt"))


def repacked(model: Path, target: Path, **changed: bytes) -> Path:
    """Write the checkpoint again with other contents of the members whose last names are given."""
    with zipfile.ZipFile(model) as whole, zipfile.ZipFile(target, "w") as other:
        for member in whole.namelist():
            name = member.rsplit("/", 1)[1].replace(".", "_")
            other.writestr(member, changed.pop(name, None) or whole.read(member))
        assert not changed
    return target


def nested(depth: int) -> bytes:
    """Return opcodes of a tuple of two references to such a tuple, and so on: hashing takes 2 ** depth."""
    return b"(t" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))


LONG_TEXT = b"X" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
COPY = b"h\0h\x01X\6\0\0\0latin1\x86R"
HOSTILE_PICKLES = {
    "memo index": (b"\x80\x02}r" + struct.pack("<I", (1 << 27) - 1) + b".", "KeyError: 'dims'"),
    "nested keys": (b"\x80\x02}" + nested(40) + b"Ns.", "a dict whose keys are not texts"),
    "nested keys in pairs": (b"\x80\x02}(" + nested(40) + b"Nu.", "a dict whose keys are not texts"),
    "nested dims": (
        b"\x80\x02}(X\x04\0\0\0dims}X\x06\0\0\0n_mels" + nested(40) + b"sX\x10\0\0\0model_state_dict}u.",
        "its dims must be exactly Whisper's ten",
    ),
    "set": (b"\x80\x04\x8f(" + nested(40) + b"\x90.", "the opcode b'.x8f', which no checkpoint needs"),
    "copies": (
        b"\x80\x02c_codecs\nencode\nq\0"
        + LONG_TEXT
        + b"q\x01"
        + b"h\0h\x01X\6\0\0\0latin1\x86R" * 2000
        + b".",
        "TypeError",
    ),
    "promised bytes": (b"\x80\x04B" + struct.pack("<I", (1 << 32) - 1) + b".", "is not a checkpoint"),
    "promised text": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".", "is not a checkpoint"),
    "class that is changed": (b"\x80\x02ccollections\nOrderedDict\n}X\1\0\0\0xNsb.", "is not a checkpoint"),
    "all of it": (b"\x80\x02" + b"}" * (5 << 20) + b".", r"claims 5,?242,?883 bytes, of at most"),
}


@pytest.mark.parametrize("kind", HOSTILE_PICKLES)
def test_a_hostile_pickle_takes_neither_memory_nor_time(model: Path, tmp_path: Path, kind: str) -> None:
    content, message = HOSTILE_PICKLES[kind]
    path = repacked(model, tmp_path / "m.pt", data_pkl=content)
    before_seconds = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            read_dimensions(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert peak_bytes < 30e6
    assert time.process_time() - before_seconds < 10


def test_a_byte_order_that_fills_memory_is_refused(model: Path, tmp_path: Path) -> None:
    path = repacked(model, tmp_path / "m.pt", byteorder=b"little" * 1_000_000)
    with pytest.raises(CheckpointError, match=r"byteorder' claims 6000000 bytes, of at most 16"):
        read_dimensions(path)
    with zipfile.ZipFile(model) as whole, zipfile.ZipFile(path, "w") as other:
        for member in whole.infolist():
            is_bomb = member.filename.endswith("/byteorder")
            kind = zipfile.ZIP_DEFLATED if is_bomb else zipfile.ZIP_STORED
            other.writestr(member.filename, b"little" if is_bomb else whole.read(member), kind)
    with pytest.raises(CheckpointError, match=r"byteorder' is compressed, which torch.save never does"):
        read_dimensions(path)


def test_tensors_that_share_their_numbers_cannot_be_more_than_the_file(tmp_path: Path) -> None:
    content = fake_content()
    tensors = content["model_state_dict"]
    largest = max(tensors.values(), key=torch.numel).flatten()
    shared = {name: largest[: values.numel()].view(values.shape) for name, values in tensors.items()}
    torch.save({**content, "model_state_dict": shared}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"its tensors need [\d,]+ bytes of numbers, but the file has"):
        read_dimensions(tmp_path / "m.pt")


def test_a_zip_directory_that_lies_about_sizes_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(model) as whole, zipfile.ZipFile(path, "w") as other:
        for member in whole.infolist():
            other.writestr(member.filename, whole.read(member)[: None if ".pkl" in member.filename else 64])
        for entry in other.infolist():
            if "/data/" in entry.filename:
                entry.file_size = entry.compress_size = 1 << 40  # written into the directory on closing
    with pytest.raises(CheckpointError, match=r"is cut short \(|its tensors need|is truncated or damaged"):
        read_dimensions(path)


def test_a_zip_directory_that_fills_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    size = 300 << 20
    with path.open("wb") as file:
        file.write(b"PK\1\2")
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, 0, 0))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="its directory is far larger than that of a checkpoint"):
            read_dimensions(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        resolve(str(tmp_path / "m.pt"))


def test_a_tensor_cut_short_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.pt"
    with zipfile.ZipFile(model) as whole, zipfile.ZipFile(path, "w") as short:
        for member in whole.namelist():
            content = whole.read(member)
            short.writestr(member, content[:-2] if member.endswith("/data/5") else content)
    with pytest.raises(CheckpointError, match="is cut short"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no checkpoint at all", "is not a checkpoint in torch.save's format"),
        (pickle.dumps({"dims": {}}), "is not a checkpoint in torch.save's format"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        resolve(str(tmp_path / "m.pt"))


def test_a_truncated_file_a_folder_and_a_missing_file_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        resolve(str(tmp_path / "half.pt"))
    with pytest.raises(CheckpointError, match=r"is a folder; pass a .pt file; it contains half.pt"):
        resolve(str(tmp_path))
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(str(tmp_path / "gone.pt"))


def test_a_file_that_changed_after_it_was_checked_is_not_loaded(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(model.read_bytes())
    found = resolve(str(path))
    write_fake_checkpoint(path, seed=1)
    with pytest.raises(CheckpointError, match="changed after it was checked"):
        load_state_dict(found)


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    first = file_sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == first, "same size and time: not hashed again"
    os.utime(path, ns=(2, 2))
    assert file_sha256(path) == sha256(path)


def test_a_damaged_note_or_an_unwritable_cache_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"one")
    monkeypatch.setenv("ASRGATE_CACHE", str(cache))
    file_sha256(path)
    (note,) = (cache / "sha256").iterdir()
    note.write_text('{"file"')
    assert file_sha256(path) == sha256(path)
    (tmp_path / "blocked").write_text("a file where the folder should be")
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path / "blocked"))
    assert file_sha256(path) == sha256(path)
