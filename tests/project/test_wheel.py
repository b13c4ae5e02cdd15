"""A wheel by itself: in an empty folder, with no checkout around, it lists, unpacks and measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a wheel installed into a new environment, with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "new")], check=True, capture_output=True)
    python = folder / "new" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (folder / "new" / "lib").glob("python*/site-packages")
    dependencies = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in dependencies))
    assert not (site / "harness").exists() and not (site / "backends").exists()
    return folder / "new" / "bin" / "asrgate"


def asrgate(command: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(command), *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_the_package_that_runs(command: Path, tmp_path: Path) -> None:
    code = "import asrgate.harness.cli; print(asrgate.harness.cli.__file__)"
    python = command.with_name("python")
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(command.parents[1])


def test_it_holds_the_clips_the_catalogue_and_the_model(command: Path, tmp_path: Path) -> None:
    listed = asrgate(command, tmp_path, "weights", "list")
    assert listed.returncode == 0, listed.stderr
    assert "nano.en" in listed.stdout
    described = asrgate(command, tmp_path, "corpus", "list", "--json")
    assert described.returncode == 0, described.stderr
    manifest = (ROOT / "audio_samples" / "manifest.jsonl").read_text().splitlines()
    assert f'"clips": {len(manifest)}' in json.dumps(json.loads(described.stdout))


def test_it_measures_in_an_empty_folder_and_keeps_the_run_there(command: Path, tmp_path: Path) -> None:
    done = asrgate(
        *(command, tmp_path, "run", "--model", "nano.en", "--backends", "whisper-cpu"),
        *("--rounds", "1", "--sample", "2", "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "results" / "latest" / "run.json").read_text())
    assert run["results"][0]["status"] == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
