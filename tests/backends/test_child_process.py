"""Files in the folder one stands in are never imported in place of packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from asrgate.backends import child_process

SHADOWED = ("numpy", "whisper", "torch", "psutil", "pip", "tiktoken")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder whose modules leave a mark when they are imported."""
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text("open('ran', 'a').write(__name__); raise SystemExit(9)\n")
    return tmp_path


def test_a_module_runs_with_its_arguments_and_without_the_current_folder(trapped: Path) -> None:
    done = subprocess.run(
        child_process.command("pip", "--version"), cwd=trapped, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("pip "), done.stderr
    assert not (trapped / "ran").exists()


def test_an_empty_entry_of_the_path_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", os.pathsep, f"{os.pathsep}/some/where{os.pathsep}"):
        monkeypatch.setenv("PYTHONPATH", given)
        paths = child_process.environment()["PYTHONPATH"].split(os.pathsep)
        assert paths[0] == str(ROOT)
        assert "" not in paths


@pytest.mark.slow
def test_a_run_imports_nothing_from_the_folder_it_is_started_in(trapped: Path) -> None:
    start = child_process.WITHOUT_CURRENT_FOLDER
    start += "from asrgate.harness.cli import main; sys.exit(main(sys.argv[1:]))"
    clip = ROOT / "audio_samples" / "short.flac"
    done = subprocess.run(
        [sys.executable, "-c", start, "run", "--model", "nano.en", "--audio", str(clip), "--rounds", "1"]
        + ["--backends", "whisper-cpu,faster-whisper@cpu/float32", "--quiet", "--max-wer", "5"],
        cwd=trapped,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ASRGATE_CACHE": str(trapped / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (trapped / "ran").exists()
