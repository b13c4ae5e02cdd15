"""Private folders of killed processes are swept, with what they left running, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paths import ROOT

from asrgate.backends import temporary
from asrgate.backends.checkpoints import cache

HOLD = """
import subprocess, sys, tempfile
tempfile.tempdir = sys.argv[1]
from asrgate.backends import temporary
folder = temporary.of_process()
inside = folder / "worker"
inside.mkdir()
environment = {"TMPDIR": str(inside), "PATH": "/usr/bin:/bin"}
left = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
print(folder, left.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(parent: Path) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """A process with a folder in `parent`, that folder, and the process that it has started."""
    asked = [sys.executable, "-c", HOLD, str(parent)]
    with subprocess.Popen(
        asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        folder, _, left = process.stdout.readline().strip().rpartition(" ")
        try:
            yield process, Path(folder), int(left)
        finally:
            process.kill()
            if runs(int(left)):
                os.kill(int(left), signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_folders_of_dead_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / temporary.OWNER).write_text("")
    (precious / "kept").write_text("mine")
    link = tmp_path / f"{temporary.PREFIX}link"
    link.symlink_to(precious)
    without_owner = tmp_path / f"{temporary.PREFIX}without"
    without_owner.mkdir()
    linked_owner = tmp_path / f"{temporary.PREFIX}linked"
    linked_owner.mkdir()
    (linked_owner / temporary.OWNER).symlink_to(precious / "kept")
    (tmp_path / f"{temporary.PREFIX}file").write_text("")
    before = set(tmp_path.iterdir())
    with holder(tmp_path) as (process, held, left):
        (held / "inside").mkdir()
        (held / "inside" / "out").symlink_to(precious)
        assert held.stat().st_mode & 0o777 == 0o700
        temporary.sweep(tmp_path)
        assert set(tmp_path.iterdir()) == before | {held}, "its process is alive"
        assert runs(left)
        process.kill()
        process.wait()
        assert runs(left), "what it started goes on"
        temporary.sweep(tmp_path)
        deadline = time.monotonic() + 200
        while runs(left):
            assert time.monotonic() < deadline, "what a dead process left running was not ended"
            time.sleep(0.01)
    assert set(tmp_path.iterdir()) == before
    assert (precious / "kept").read_text() == "mine"


def test_a_start_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / f"{temporary.PREFIX}dead"
    dead.mkdir()
    (dead / temporary.OWNER).write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = temporary.of_process.__wrapped__()
    assert not dead.exists()
    temporary.sweep(tmp_path)
    assert made.is_dir()


def test_a_folder_beside_a_target_is_private_and_goes_with_its_process(tmp_path: Path) -> None:
    target = tmp_path / "model[1]"
    dead, other = tmp_path / ".model[1].dead", tmp_path / ".model1.dead"
    for folder in (dead, other):
        folder.mkdir()
        (folder / temporary.OWNER).write_text("")
    with temporary.beside(target) as made, temporary.beside(target) as another:
        assert made != another
        assert made.parent == tmp_path
        assert made.stat().st_mode & 0o777 == 0o700
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == [other]


def test_files_that_a_killed_process_left_in_the_cache_go_after_a_day(tmp_path: Path) -> None:
    target = tmp_path / "tiny.en.pt"
    left = [cache.temporary_beside(target) for _ in range(2)]
    others = [tmp_path / ".tiny.en.pt.lock", tmp_path / ".base.pt.abcdefgh"]
    link = tmp_path / ".tiny.en.pt.linklink"
    link.symlink_to(others[1])
    for path in others:
        path.write_text("")
    for path in (left[0], *others):
        os.utime(path, (0, time.time() - cache.DEAD_SECONDS - 60))
    made = cache.temporary_beside(target)
    assert set(tmp_path.iterdir()) == {left[1], made, link, *others}
