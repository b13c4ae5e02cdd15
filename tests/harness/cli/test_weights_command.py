"""`asrgate weights` as a user types it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from download_server import CONTENT, Server, server
from fake_checkpoint import write_fake_checkpoint

from asrgate.backends.base import AsrgateError
from asrgate.backends.checkpoints import catalog
from asrgate.backends.checkpoints.catalog import CheckpointError
from asrgate.backends.checkpoints.download import DownloadError
from asrgate.backends.checkpoints.file import load_state_dict

__all__ = ["server"]  # a fixture: pytest finds it by its name here


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ASRGATE_WEIGHTS with mine.pt in it, and a catalogue whose tiny.en is the `model` fixture."""
    folder = tmp_path / "weights"
    folder.mkdir()
    write_fake_checkpoint(folder / "mine.pt", seed=1)
    monkeypatch.setenv("ASRGATE_WEIGHTS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASRGATE_OFFLINE")  # its address is of this machine
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    table = {"tiny.en": f"http://127.0.0.1:9/{sha256}/tiny.en.pt"}
    monkeypatch.setattr(catalog, "openai_table", lambda variable: table)
    monkeypatch.setattr(catalog, "SHIPPED_FOLDER", tmp_path)
    return folder


def test_list_tells_what_is_where(
    folder: Path, asrgate_weights: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert asrgate_weights("list") == 0
    heading, tiny, mine = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "SIZE", "SHA-256", "WHERE"]
    assert tiny.startswith("tiny.en ") and tiny.endswith("not here; asrgate weights fetch tiny.en")
    assert mine.startswith("mine ") and "MB" in mine and mine.endswith(str(folder / "mine.pt"))
    assert asrgate_weights("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["tiny.en"]["path"] is None and rows["tiny.en"]["url"].endswith("/tiny.en.pt")
    assert rows["mine"]["sha256"] == hashlib.sha256((folder / "mine.pt").read_bytes()).hexdigest()


@pytest.mark.usefixtures("folder")
def test_fetch_downloads_repairs_and_prints_the_path(
    model: Path,
    server: Server,
    asrgate_weights: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.content = model.read_bytes()
    sha256 = hashlib.sha256(server.content).hexdigest()
    table = {"tiny.en": f"http://127.0.0.1:{server.server_port}/{sha256}/tiny.en.pt"}
    monkeypatch.setattr(catalog, "openai_table", lambda variable: table)
    assert asrgate_weights("fetch", "tiny.en") == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == catalog.cache_dir() / "weights" / "tiny.en.pt"
    assert asrgate_weights("fetch", "tiny.en") == 0
    assert len(server.asked) == 1, "it was there"
    path.write_bytes(CONTENT)
    assert asrgate_weights("fetch", "tiny.en") == 0
    assert path.read_bytes() == server.content


def test_fetch_without_a_connection_and_of_no_model(
    folder: Path, asrgate_weights: Callable[..., int]
) -> None:
    with pytest.raises(DownloadError, match="cannot reach"):
        asrgate_weights("fetch", "tiny.en")
    with pytest.raises(CheckpointError, match=r"Did you mean 'tiny\.en'"):
        asrgate_weights("fetch", "tiny.eng")


def test_verify_tells_good_from_bad_by_its_exit_status(
    folder: Path, model: Path, asrgate_weights: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny.en.pt").write_bytes(model.read_bytes())
    assert asrgate_weights("verify") == 0
    tiny, mine = capsys.readouterr().out.splitlines()
    assert "matches the catalogue" in tiny and "not in the catalogue" in mine
    content = bytearray(model.read_bytes())
    content[-5000] ^= 1
    (folder / "tiny.en.pt").write_bytes(content)
    assert asrgate_weights("verify", "tiny.en") == 1
    assert "WRONG, the catalogue says" in capsys.readouterr().out
    assert asrgate_weights("verify", "mine") == 0
    with pytest.raises(CheckpointError, match="no model is called 'yours'"):
        asrgate_weights("verify", "yours")


def test_verify_takes_a_path(
    folder: Path,
    model: Path,
    asrgate_weights: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "elsewhere" / "any.pt"
    path.parent.mkdir()
    path.write_bytes(model.read_bytes())
    assert asrgate_weights("verify", str(path)) == 0
    name, digest, *told = capsys.readouterr().out.split()
    assert (name, digest) == (str(path), hashlib.sha256(model.read_bytes()).hexdigest())
    assert told[-1] == str(path)
    path.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"any\.pt"):
        asrgate_weights("verify", str(path))
    with pytest.raises(CheckpointError, match=r"gone\.pt is not a file"):
        asrgate_weights("verify", "gone.pt")


def test_verify_reads_the_bytes_and_not_the_remembered_hash(
    folder: Path, model: Path, asrgate_weights: Callable[..., int]
) -> None:
    path = folder / "tiny.en.pt"
    path.write_bytes(model.read_bytes())
    os.utime(path, ns=(1, 1))
    assert catalog.resolve("tiny.en").path == path
    content = bytearray(model.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert asrgate_weights("verify", "tiny.en") == 1


def test_where_prints_the_path_alone(
    folder: Path, asrgate_weights: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert asrgate_weights("where", "mine") == 0
    assert capsys.readouterr().out == f"{folder / 'mine.pt'}\n"
    with pytest.raises(CheckpointError, match="is not on this machine"):
        asrgate_weights("where", "tiny.en")


def test_export_writes_every_tensor_by_name(
    folder: Path, tmp_path: Path, asrgate_weights: Callable[..., int]
) -> None:
    target = tmp_path / "out.npz"
    assert asrgate_weights("export", "mine", "--format", "npz", "--output", str(target)) == 0
    tensors = load_state_dict(catalog.resolve("mine"))
    with np.load(target, allow_pickle=False) as exported:
        assert list(exported) == list(tensors)
        for name in exported:
            assert torch.equal(torch.from_numpy(exported[name]), tensors[name])


def test_export_into_no_folder_is_refused(
    folder: Path, tmp_path: Path, asrgate_weights: Callable[..., int]
) -> None:
    with pytest.raises(AsrgateError, match="does not exist"):
        asrgate_weights("export", "mine", "--format", "npz", "--output", str(tmp_path / "gone" / "out.npz"))


def test_convert_prints_the_folder_of_the_cached_conversion(
    folder: Path, asrgate_weights: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert asrgate_weights("convert", "mine", "--to", "ctranslate2") == 0
    converted = Path(capsys.readouterr().out.strip())
    assert {"model.bin", "config.json", "tokenizer.json"} <= {path.name for path in converted.iterdir()}
