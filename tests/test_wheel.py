"""A wheel by itself: in an empty folder, with no checkout around, it lists, unpacks and measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel would put into site-packages."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    site = built / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def asrgate(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asrgate", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_holds_the_clips_the_catalogue_and_the_model(installed: Path, tmp_path: Path) -> None:
    listed = asrgate(installed, tmp_path, "weights", "list")
    assert listed.returncode == 0, listed.stderr
    assert "nano.en" in listed.stdout
    described = asrgate(installed, tmp_path, "corpus", "list", "--json")
    assert described.returncode == 0, described.stderr
    manifest = (ROOT / "audio_samples" / "manifest.jsonl").read_text().splitlines()
    assert f'"clips": {len(manifest)}' in json.dumps(json.loads(described.stdout))


def test_it_measures_in_an_empty_folder_and_keeps_the_run_there(installed: Path, tmp_path: Path) -> None:
    done = asrgate(
        *(installed, tmp_path, "run", "--model", "nano.en", "--backends", "whisper-cpu"),
        *("--rounds", "1", "--sample", "2", "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "results" / "latest" / "run.json").read_text())
    assert run["results"][0]["status"] == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
