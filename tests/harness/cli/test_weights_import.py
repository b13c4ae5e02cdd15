"""Imports and exports as a user meets them: the process of their own, the cache, `asrgate weights`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_containers import assert_same, back, made
from paths import ROOT, TINY_EN

from asrgate.backends.checkpoints import catalog, containers
from asrgate.backends.checkpoints.catalog import CheckpointError
from asrgate.backends.checkpoints.containers import default_name, imported, kind_of
from asrgate.backends.checkpoints.identity import file_tensors_sha256

__all__ = ["made"]  # a fixture: pytest finds it by its name here


def test_a_file_stands_for_its_folder(made: Callable[..., Any], tmp_path: Path) -> None:
    path, hf = made("english", "huggingface")
    ct2 = made("english", "ctranslate2")[1]
    assert kind_of(hf / "model.safetensors") == "huggingface"
    assert kind_of(ct2 / "model.bin") == "ctranslate2"
    assert (default_name(hf / "model.safetensors"), default_name(ct2 / "model.bin")) == ("hf", "ct2")
    assert default_name(made("english", "ggml")[1]) == "ggml-fake"
    assert_same(path, back(hf / "model.safetensors", tmp_path))
    assert_same(path, back(ct2 / "model.bin", tmp_path))
    assert [kind_of(tmp_path), kind_of(Path(__file__)), kind_of(tmp_path / "gone")] == [None] * 3


def test_an_import_is_made_once_without_torch_in_the_caller(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "another-name.bin"
    shutil.copy(made("english", "ggml")[1], source)
    code = (
        "import sys; from pathlib import Path; from asrgate.backends.checkpoints.containers import imported;"
        f"print(imported(Path({str(source)!r})));"
        "print([name for name in ('torch', 'ctranslate2', 'max') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    path, held = done.stdout.splitlines()
    assert held == "[]"
    assert_same(made("english", "ggml")[0], Path(path))
    assert [file.name for file in Path(path).parent.glob("*.pt")] == [Path(path).name]
    again = back(source, tmp_path)
    assert again.read_bytes() == Path(path).read_bytes(), "the same source gives the same file"
    monkeypatch.setattr(containers, "import_file", None)
    assert imported(source) == imported(made("english", "ggml")[1]) == Path(path)
    with pytest.raises(TypeError):
        imported(made("turbo", "ggml")[1])


def test_an_import_that_fails_is_one_line_and_leaves_nothing(
    made: Callable[..., Any], tmp_path: Path
) -> None:
    source = tmp_path / "short.bin"
    source.write_bytes(made("english", "ggml")[1].read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"^\S*short\.bin is damaged: .* are left$"):
        containers.import_file(source, tmp_path / "out" / "m.pt")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(CheckpointError, match="pass a CTranslate2 folder"):
        imported(Path(__file__))
    with pytest.raises(CheckpointError, match="does not exist"):
        imported(tmp_path / "gone")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("exit 1", r"ended without an answer \(exit code 1\)$"),
        ("kill -9 $$", "was killed; is there enough memory"),
    ],
)
def test_a_process_that_dies_leaves_nothing(
    ending: str,
    message: str,
    made: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, container = made("english", "ggml")
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho noise >&2\necho reason >&2\n{ending}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(CheckpointError, match=message):
        imported(container)
    with pytest.raises(CheckpointError, match=message):
        containers.export(catalog.resolve(str(path)), "huggingface", tmp_path / "hf")
    assert not list((catalog.cache_dir() / "weights" / "converted").glob("*.pt"))
    assert [file.name for file in tmp_path.iterdir()] == ["python"]


@pytest.fixture
def weights(
    asrgate_weights: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run `asrgate weights …` where no other models are, and return its exit status."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("ASRGATE_WEIGHTS", raising=False)

    return asrgate_weights


@pytest.mark.slow
def test_import_as_a_user_types_it(
    made: Callable[..., Any],
    weights: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, container = made("turbo", "huggingface")
    for _ in range(2):
        assert weights("import", str(container), "--name", "mine") == 0
        out, err = capsys.readouterr()
        assert out == f"{catalog.imported_folder() / 'mine.pt'}\n"
        assert err == (
            "mine: from huggingface, 128 mels, 51,866 tokens, 3+1 layers of 8, tensors "
            f"{file_tensors_sha256(path)}\n"
        )
    assert_same(path, Path(out.strip()))
    assert [file.name for file in catalog.imported_folder().iterdir()] == ["mine.pt"]
    assert weights("list") == 0
    assert f"{catalog.imported_folder() / 'mine.pt'}\n" in capsys.readouterr().out
    other = made("english", "ggml")[1]
    with pytest.raises(CheckpointError, match=r"mine\.pt holds another model; pass another name"):
        weights("import", str(other), "--name", "mine")
    with pytest.raises(CheckpointError, match=r"does not hold tiny\.en, which is a model of the catalogue"):
        weights("import", str(other), "--name", "tiny.en")
    for name in ("a/b", ".hidden", "..", "a\\b"):
        with pytest.raises(CheckpointError, match="is not a plain file name"):
            weights("import", str(other), "--name", name)


@pytest.mark.slow
def test_export_as_a_user_types_it(
    made: Callable[..., Any],
    weights: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = made("english", "ggml")[0]
    target = tmp_path / "new"
    target.mkdir()
    arguments = ["export", str(path), "--format", "huggingface", "--output", str(target)]
    assert weights(*arguments) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert_same(path, back(target, tmp_path))
    with pytest.raises(CheckpointError, match="already exists and is not an empty folder"):
        weights(*arguments)
    with pytest.raises(CheckpointError, match="is a folder; a whisper"):
        weights("export", str(path), "--format", "ggml", "--output", str(target))
    with pytest.raises(CheckpointError, match="does not exist"):
        weights("export", str(path), "--format", "ggml", "--output", str(tmp_path / "gone" / "x.bin"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["back.pt", "new"]


@pytest.mark.slow
def test_an_imported_tiny_en_is_openais(
    weights: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not TINY_EN.exists():
        pytest.skip(f"needs OpenAI's tiny.en at ../shared/weights/{TINY_EN.name}")
    assert weights("export", str(TINY_EN), "--format", "ggml", "--output", str(tmp_path / "g.bin")) == 0
    assert weights("import", str(tmp_path / "g.bin"), "--name", "tiny.en") == 0
    out, err = capsys.readouterr()
    assert err.endswith(", the tensors of OpenAI's tiny.en\n")
    assert weights("verify", "tiny.en") == 0
    path = Path(out.splitlines()[-1])
    assert capsys.readouterr().out.endswith(f"another file with the catalogue's tensors  {path}\n")
    content, written = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[len(content) // 2] ^= 1
    path.unlink()  # it is a link to the cached one
    path.write_bytes(content)
    os.utime(path, ns=(written, written))  # so that what is remembered of the file still counts
    assert weights("verify", "tiny.en") == 1
    assert "WRONG" in capsys.readouterr().out
