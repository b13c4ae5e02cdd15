"""Names become verified checkpoints; what is broken, foreign or hostile is refused."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import whisper
from fake_checkpoint import DIMENSIONS, write_fake_checkpoint
from paths import ROOT

from asrgate.backends.base import AsrgateError
from asrgate.backends.checkpoints import catalog
from asrgate.backends.checkpoints.catalog import CheckpointError, resolve
from asrgate.backends.checkpoints.download import why_unreachable
from asrgate.backends.checkpoints.identity import file_tensors_sha256

FAR_FROM_FOREVER = 30.0  # seconds: a busy machine takes some, what hangs here takes far longer


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that ASRGATE_WEIGHTS names, and an empty user cache."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("ASRGATE_WEIGHTS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return folder


@pytest.fixture
def openai(weights: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table of OpenAI's models whose tiny.en is the fake checkpoint; no server answers at its address."""
    url = f"http://127.0.0.1:9/{sha256(model)}/tiny.en.pt"
    monkeypatch.setattr(catalog, "openai_table", lambda variable: {"tiny.en": url})
    # no digest of OpenAI's tensors is known: the file's hash decides
    whole = catalog._catalog_file
    monkeypatch.setattr(catalog, "_catalog_file", lambda: {**whole(), "openai": {}})
    return url


@cache
def compressed(content: bytes) -> bytes:
    return lzma.compress(content, preset=0)


def ship(folder: Path, monkeypatch: pytest.MonkeyPatch, packed: Path, **changes: str) -> Path:
    """Make `folder` what the project ships: nano.en, holding `packed`; `changes` replaces its fields."""
    folder.mkdir(exist_ok=True)
    archive = folder / "nano.en.pt.xz"
    archive.write_bytes(compressed(packed.read_bytes()))
    fields = {
        "file": archive.name,
        "file_sha256": sha256(archive),
        "sha256": sha256(packed),
        "tensors_sha256": file_tensors_sha256(packed),
        "licence": "Apache-2.0",
        "source": "trained here",
        "note": "understands synthetic English only",
        **changes,
    }
    table = "".join(f'{name} = "{value}"\n' for name, value in fields.items())
    sizes = ", ".join(f"{name} = {value}" for name, value in DIMENSIONS.items())
    table += f"dimensions = {{ {sizes} }}\n"
    (folder / "catalog.toml").write_text(f'schema_version = 2\n[models."nano.en"]\n{table}')
    monkeypatch.setattr(catalog, "SHIPPED_FOLDER", folder)
    return archive


# --- where a name leads ---------------------------------------------------------------------------------


def test_a_path_resolves_to_its_own_hash_and_dimensions(model: Path) -> None:
    found = resolve(str(model))
    assert (found.name, found.path, found.sha256) == ("fake.en", model, sha256(model))
    assert dict(found.dimensions) == DIMENSIONS
    assert not found.is_multilingual


def test_resolving_imports_no_engine(model: Path) -> None:
    code = (
        "import sys; from asrgate.backends.checkpoints import catalog; catalog.catalogue();"
        f"catalog.resolve({str(model)!r});"
        "print(sorted({'torch', 'whisper', 'ctranslate2', 'faster_whisper', 'max'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_catalogue_is_openais_own_table() -> None:
    ours = {name: entry.url for name, entry in catalog.catalogue().items() if entry.url}
    assert ours == whisper._MODELS
    assert all(entry.sha256 in ours[name] for name, entry in catalog.catalogue().items() if name in ours)


def test_another_package_called_whisper_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "whisper.py").write_text("class Database: pass\n")
    code = "from asrgate.backends.checkpoints import catalog; catalog.resolve('tiny.en')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "CheckpointError" in done.stderr and "another package called whisper" in done.stderr


def test_a_name_outside_the_catalogue_is_a_file_in_asrgate_weights(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    write_fake_checkpoint(second / "mine.pt")
    monkeypatch.setenv("ASRGATE_WEIGHTS", f"{weights}{os.pathsep}{second}")
    assert resolve("mine").path == second / "mine.pt"


@pytest.mark.parametrize(
    "place", ["weights/tiny.en.pt", "user/whisper/tiny.en.pt", "cache/weights/tiny.en.pt"]
)
@pytest.mark.usefixtures("openai")
def test_a_catalogue_name_is_found_in_every_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.read_bytes())
    assert (resolve("tiny.en").path, resolve("tiny.en").name) == (path, "tiny.en")


@pytest.mark.usefixtures("openai")
def test_another_file_under_a_catalogue_name_is_refused(weights: Path) -> None:
    write_fake_checkpoint(weights / "tiny.en.pt", seed=1)
    with pytest.raises(CheckpointError, match=r"is not tiny\.en: its SHA-256 is"):
        resolve("tiny.en")
    by_path = resolve(str(weights / "tiny.en.pt"))
    assert by_path.note == "has the name of OpenAI's tiny.en, but is a different model"


def test_an_unknown_name_is_answered_with_the_nearest_and_the_choices(weights: Path) -> None:
    write_fake_checkpoint(weights / "mine.pt")
    with pytest.raises(CheckpointError, match=r"Did you mean 'tiny\.en'\?.*large-v3-turbo.*mine"):
        resolve("tiny-en")


@pytest.mark.usefixtures("openai")
def test_an_absent_model_says_how_to_fetch_it() -> None:
    with pytest.raises(CheckpointError, match=r"asrgate weights fetch tiny\.en"):
        resolve("tiny.en")


def test_a_folder_in_asrgate_weights_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASRGATE_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"ASRGATE_WEIGHTS names .*gone, which is not a folder"):
        resolve("mine")


# --- what the project ships -----------------------------------------------------------------------------


def test_the_projects_own_catalogue_is_sound() -> None:
    for entry in catalog.catalogue().values():
        if entry.archive is not None:
            assert sha256(entry.archive) == entry.archive_sha256
            assert entry.licence and entry.source and entry.note


@pytest.mark.usefixtures("openai")
def test_a_shipped_model_is_unpacked_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = ship(tmp_path / "shipped", monkeypatch, model)
    found = resolve("nano.en")
    assert (found.name, found.sha256) == ("nano.en", sha256(model))
    assert found.note == "understands synthetic English only"
    archive.unlink()
    assert resolve("nano.en") == found
    assert [path.name for path in found.path.parent.iterdir() if not path.name.endswith(".lock")] == [
        "nano.en.pt"
    ]


@pytest.mark.usefixtures("openai")
def test_a_shipped_model_replaces_the_one_an_older_version_unpacked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tmp_path / "shipped", monkeypatch, write_fake_checkpoint(tmp_path / "old.pt", seed=1))
    old = resolve("nano.en")
    ship(tmp_path / "shipped", monkeypatch, model)
    assert resolve("nano.en").sha256 == sha256(model) != old.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_sha256": "0" * 64}, "is not the file that its catalog.toml describes"),
        ({"sha256": "0" * 64}, "are not the catalogue's nano.en"),
        ({"sha256": "0"}, "must be 64 lower-case hexadecimal digits"),
        ({"extra": "x"}, "must have exactly"),
    ],
)
@pytest.mark.usefixtures("openai")
def test_a_shipped_file_that_does_not_fit_its_catalogue_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, message: str
) -> None:
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path / "cache"))
    ship(tmp_path / "shipped", monkeypatch, model, **changes)
    with pytest.raises(CheckpointError, match=message):
        resolve("nano.en")
    assert not list((tmp_path / "cache").glob("weights/*nano*.pt*[!k]")), "nothing half done stays"


@pytest.mark.usefixtures("openai")
def test_an_archive_cut_short_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = ship(tmp_path / "shipped", monkeypatch, model)
    archive.write_bytes(archive.read_bytes()[:-1000])
    entry = replace(catalog.catalogue()["nano.en"], archive_sha256=sha256(archive))
    with pytest.raises(CheckpointError, match="cannot unpack"):
        catalog.unpack(entry)
    assert not [path for path in catalog.cached_path(entry).parent.iterdir() if path.suffix != ".lock"]


@pytest.mark.usefixtures("openai")
def test_two_processes_unpack_at_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(tmp_path / "shipped", monkeypatch, model)
    code = (
        "from pathlib import Path; from asrgate.backends.checkpoints import catalog;"
        f"catalog.SHIPPED_FOLDER = Path({str(tmp_path / 'shipped')!r});"
        "print(catalog.resolve('nano.en').sha256)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in started] == [sha256(model)] * 3


# --- the default model ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("openai")
def test_the_default_is_tiny_en_where_it_is(weights: Path, model: Path) -> None:
    (weights / "tiny.en.pt").write_bytes(model.read_bytes())
    found, line = catalog.default_model()
    assert (found.name, line) == ("tiny.en", f"model tiny.en: found at {weights / 'tiny.en.pt'}")


@pytest.mark.usefixtures("openai")
def test_without_a_connection_the_default_is_what_is_shipped(
    weights: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "SHIPPED_FOLDER", tmp_path / "nothing")
    write_fake_checkpoint(weights / "b.pt")
    write_fake_checkpoint(weights / "a.pt", seed=1)
    found, line = catalog.default_model()
    assert found.name == "a"
    assert re.fullmatch("model a, the first in ASRGATE_WEIGHTS: tiny.en is not on this machine and .*", line)
    ship(tmp_path / "shipped", monkeypatch, model)
    found, line = catalog.default_model()
    assert found.name == "nano.en"
    assert line.startswith(
        "model nano.en (understands synthetic English only): tiny.en is not on this machine"
    )


@pytest.mark.usefixtures("openai")
def test_with_no_model_at_all_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "SHIPPED_FOLDER", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"weights fetch tiny.en.*--model.*ASRGATE_WEIGHTS"):
        catalog.default_model()


def test_a_server_that_accepts_and_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        assert why_unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/tiny.en.pt", 0.4)
        assert time.monotonic() - start < FAR_FROM_FOREVER


def test_name_resolution_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        release.wait(2 * FAR_FROM_FOREVER)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    assert why_unreachable("http://models.example/tiny.en.pt", 0.4)
    assert time.monotonic() - start < FAR_FROM_FOREVER
    release.set()


def test_errors_of_this_kind_reach_the_user_without_a_traceback() -> None:
    assert issubclass(CheckpointError, AsrgateError)
