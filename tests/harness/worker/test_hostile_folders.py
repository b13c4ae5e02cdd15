"""Private folders of runs that were killed are swept, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from asrgate.harness.worker import client

HOLD = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from asrgate.harness.worker import client
print(client._private_folders(), flush=True)
sys.stdin.read()
"""


def test_folders_of_dead_runs_are_swept_and_nothing_else(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / client.OWNER).write_text("")
    (precious / "kept").write_text("mine")
    link = tmp_path / f"{client.PRIVATE_FOLDERS}link"
    link.symlink_to(precious)
    without_owner = tmp_path / f"{client.PRIVATE_FOLDERS}without"
    without_owner.mkdir()
    linked_owner = tmp_path / f"{client.PRIVATE_FOLDERS}linked"
    linked_owner.mkdir()
    (linked_owner / client.OWNER).symlink_to(precious / "kept")
    (tmp_path / f"{client.PRIVATE_FOLDERS}file").write_text("")
    before = set(tmp_path.iterdir())
    root = ROOT
    asked = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout is not None
        held = Path(process.stdout.readline().strip())
        (held / "inside").mkdir()
        (held / "inside" / "out").symlink_to(precious)
        client.sweep(tmp_path)
        assert set(tmp_path.iterdir()) == before | {held}, "its run is alive"
        process.kill()
    client.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == before
    assert (precious / "kept").read_text() == "mine"


def test_a_start_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / f"{client.PRIVATE_FOLDERS}dead"
    dead.mkdir()
    (dead / client.OWNER).write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Path(client._private_folders.__wrapped__())
    assert not dead.exists()
    client.sweep(tmp_path)
    assert made.is_dir()
