"""`asrgate new-backend`: what it writes is found, fails its own test until it is filled in, then passes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from asrgate.harness.cli import main


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project, as far as a backend and its test need it."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("backends", "harness"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "asrgate", folder / "asrgate", symlinks=True)
    for name in ("weights", "audio_samples"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    return folder


def python(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [path or folder, folder, ROOT]))},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def run_tests(folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "tests", path=path)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_in_a_checkout_it_is_listed_and_its_test_fails_until_it_is_filled_in(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(checkout)
    assert main(["new-backend", "my-engine2", "--directory", str(checkout)]) == 0
    printed = capsys.readouterr().out
    after = contents(checkout)
    new = {"backends/my_engine2.py", "tests/test_my_engine2.py"}
    assert set(after) - set(before) == new
    assert {name for name in before if before[name] != after[name]} == {"backends/__init__.py"}
    added = set(after["backends/__init__.py"].splitlines()) - set(before["backends/__init__.py"].splitlines())
    assert added == {b'    "my-engine2": "asrgate.backends.my_engine2:MyEngine2Backend",'}
    assert all(name in printed for name in new) and "next:" in printed

    listed = json.loads(python(checkout, "-m", "asrgate", "list", "--json").stdout)
    (row,) = (row for row in listed if row["variant"].startswith("my-engine2"))
    assert row["available"] is False
    assert row["reason"] == "my-engine2 is not written yet"
    assert row["remedy"] == "fill in backends/my_engine2.py"

    failing = run_tests(checkout)
    assert failing.returncode == 1
    assert "my-engine2 is not written yet" in failing.stdout
    assert "skipped" not in failing.stdout

    engine = (ROOT / "examples" / "plugin" / "src" / "asrgate_example" / "morse.py").read_text()
    (checkout / "backends" / "my_engine2.py").write_text(engine.replace("Morse:", "MyEngine2Backend:"))
    passing = run_tests(checkout)
    assert passing.returncode == 0, passing.stdout


def test_what_it_writes_is_clean(checkout: Path) -> None:
    assert main(["new-backend", "a-name-of-25-characters-x", "--directory", str(checkout)]) == 0
    written = ["backends/a_name_of_25_characters_x.py", "tests/test_a_name_of_25_characters_x.py"]
    for command in (["check"], ["format", "--check"]):
        done = python(checkout, "-m", "ruff", *command, "--no-cache", "backends/__init__.py", *written)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_elsewhere_it_is_a_package_that_asrgate_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-backend", "my-engine"]) == 0
    package = tmp_path / "asrgate-my-engine"
    assert set(contents(package)) == {
        "README.md",
        "pyproject.toml",
        "src/asrgate_my_engine/__init__.py",
        "src/asrgate_my_engine/backend.py",
        "tests/test_asrgate_my_engine.py",
    }
    site = tmp_path / "site"
    built = python(
        *(tmp_path, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--disable-pip-version-check", "--target", str(site), str(package)),
    )
    assert built.returncode == 0, built.stderr
    listed = json.loads(python(tmp_path, "-m", "asrgate", "list", "--json", path=site).stdout)
    (row,) = (row for row in listed if row["variant"] == "my-engine@cpu/float32")
    assert row["reason"] == "my-engine is not written yet"
    failing = run_tests(package, path=site)
    assert failing.returncode == 1
    assert "my-engine is not written yet" in failing.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MyEngine", "'MyEngine' is not a valid backend name"),
        ("My Engine", "for example 'my-engine'"),
        ("my_engine", "for example 'my-engine'"),
        ("2fast", "for example 'fast'"),
        ("a--b", "for example 'a-b'"),
        ("a@cpu", "for example 'a-cpu'"),
        ("../evil", "for example 'evil'"),
        ("émile", "is not a valid backend name"),
        ("", "'' is not a valid backend name"),
        ("x" * 26, "has 26 characters; at most 25 are allowed"),
        ("lambda", "is a Python keyword"),
        ("whisper-cpu", "'whisper-cpu' is taken; choose a name other than whisper-cpu"),
        ("honest", "'honest' is taken"),
        ("base", "base.py already exists"),
        ("max-graph", "max_graph already exists"),
    ],
)
def test_bad_and_taken_names_are_refused_and_nothing_is_written(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (checkout / "backends" / "max_graph").mkdir(exist_ok=True)
    before = contents(checkout)
    assert main(["new-backend", "--directory", str(checkout), "--", name]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out
    assert contents(checkout) == before


def test_name_taken_in_that_checkout_only(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-backend", "twice", "--directory", str(checkout)]) == 0
    before = contents(checkout)
    (checkout / "backends" / "twice.py").unlink()
    del before["backends/twice.py"]
    assert main(["new-backend", "twice", "--directory", str(checkout)]) == 2
    assert "'twice' is taken" in capsys.readouterr().err
    assert contents(checkout) == before


def test_test_file_that_is_there_stops_it_before_anything_is_changed(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "tests" / "test_mine.py").write_text("keep me")
    before = contents(checkout)
    assert main(["new-backend", "mine", "--directory", str(checkout)]) == 2
    assert "test_mine.py already exists" in capsys.readouterr().err
    assert contents(checkout) == before


@pytest.mark.parametrize(
    "table",
    ["BUILTIN = dict()\n", "BUILTIN = {\n", "", 'BUILTIN = {"a": "b:C"}\n', 'BUILTIN = {\n "a": "b"\n}\n'],
)
def test_table_of_another_form_is_left_alone(
    checkout: Path, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    (checkout / "backends" / "__init__.py").write_text(table)
    before = contents(checkout)
    assert main(["new-backend", "mine", "--directory", str(checkout)]) == 2
    assert "table BUILTIN" in capsys.readouterr().err
    assert contents(checkout) == before


def test_folders_that_will_not_do(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-backend", "mine", "--directory", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["new-backend", "mine", "--directory", str(checkout / "harness")]) == 2
    assert f"pass --directory {checkout}" in capsys.readouterr().err
    (tmp_path / "asrgate-mine").mkdir()
    assert main(["new-backend", "mine", "--directory", str(tmp_path)]) == 2
    assert "asrgate-mine already exists" in capsys.readouterr().err
    assert not list((tmp_path / "asrgate-mine").iterdir())


def test_disk_that_fails_half_way_leaves_nothing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(checkout)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("asrgate.harness.record.write_text", full)
    assert main(["new-backend", "mine", "--directory", str(checkout)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents(checkout) == before
