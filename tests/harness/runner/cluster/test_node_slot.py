"""An actor's slot: one lock, one private folder, nothing of anybody else's touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asrgate.harness.runner.cluster import node_slot


def test_slots_are_numbered_and_a_lost_one_is_taken_again(tmp_path: Path) -> None:
    lock, folder, number = node_slot.claim(tmp_path)
    second_lock, second, second_number = node_slot.claim(tmp_path)
    assert (number, second_number) == (0, 1)
    assert folder != second
    (folder / "left").write_text("by a process that was lost")
    lock.close()
    third_lock, third, third_number = node_slot.claim(tmp_path)
    assert (third, third_number) == (folder, 0)
    assert list(third.iterdir()) == []
    second_lock.close()
    third_lock.close()


def test_folders_are_open_to_this_user_only(tmp_path: Path) -> None:
    lock, folder, _ = node_slot.claim(tmp_path)
    for private in (folder, folder.parent):
        assert private.stat().st_mode & 0o777 == 0o700
    lock.close()


def test_what_links_point_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    lock, folder, _ = node_slot.claim(tmp_path)
    (folder / "to_folder").symlink_to(outside)
    (folder / "to_file").symlink_to(outside / "kept")
    (folder / "deep").mkdir()
    (folder / "deep" / "again").symlink_to(outside)
    node_slot.empty(folder)
    assert list(folder.iterdir()) == []
    assert (outside / "kept").read_text() == "mine"
    lock.close()


def test_a_link_or_an_open_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    name = f"asrgate-{os.getuid()}"
    (tmp_path / name).symlink_to(outside)
    with pytest.raises(node_slot.SlotError, match="TMPDIR"):
        node_slot.claim(tmp_path)
    assert [path.name for path in outside.iterdir()] == ["kept"]
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name).chmod(0o777)
    with pytest.raises(node_slot.SlotError, match="only this user"):
        node_slot.claim(tmp_path)


def test_a_link_at_the_lock_is_refused(tmp_path: Path) -> None:
    lock, folder, _ = node_slot.claim(tmp_path)
    lock.close()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder.parent / "slot0.lock").unlink()
    (folder.parent / "slot0.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        node_slot.claim(tmp_path)
    assert victim.read_text() == "mine"
