"""What was named asrbench in version 0.1 works for one release more, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASRGATE_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("folder", [ROOT, ROOT.parent], ids=["checkout", "elsewhere"])
def test_the_old_packages_are_the_new_ones_and_not_copies_of_them(folder: Path) -> None:
    code = (
        "import asrgate, backends, backends.base, harness.report.formats\n"
        "from harness.testing import BackendContract\n"
        "from harness.cli import main\n"
        "import asrgate.backends.base as base, asrgate.harness.report.formats as formats\n"
        "import asrgate.harness.testing as testing\n"
        "assert backends.base is base and backends.base.BackendError is base.BackendError\n"
        "assert harness.report.formats is formats and BackendContract is testing.BackendContract\n"
        "assert base.__spec__.name == base.__name__ == 'asrgate.backends.base'\n"
        "assert base.AsrbenchError is base.AsrgateError\n"
    )
    done = python(code, folder)
    assert done.returncode == 0, done.stderr


def test_an_import_by_an_old_name_warns(tmp_path: Path) -> None:
    code = "import warnings; warnings.simplefilter('error'); import asrgate, backends.base"
    assert "now called asrgate.backends" in python(code, tmp_path).stderr


def test_a_package_of_ones_own_called_harness_comes_first(tmp_path: Path) -> None:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("")
    (tmp_path / "harness" / "mine.py").write_text("NAME = __name__\n")
    done = python("import asrgate.harness, harness.mine; print(harness.mine.NAME)", tmp_path)
    assert done.stdout == "harness.mine\n", done.stderr
    missing = python("import asrgate.harness, harness.cli", tmp_path)
    assert "No module named 'harness.cli'" in missing.stderr


@pytest.mark.parametrize("is_json", [False, True])
def test_an_old_variable_is_read_with_a_warning(tmp_path: Path, is_json: bool) -> None:
    code = "import sys; from asrgate.harness.cli import main; sys.exit(main(sys.argv[1:]))"
    ask = ["run", "--backends", "none-such", *(["--log-format", "json"] if is_json else [])]
    done = python(code.replace("sys.argv[1:]", repr(ask)), tmp_path, ASRBENCH_RESULTS=str(tmp_path))
    first = done.stderr.splitlines()[0]
    if is_json:
        event = json.loads(first)
        assert event["event"] == "warning"
        first = f"asrgate: {event['message']}"
    assert first.startswith("asrgate: ASRBENCH_RESULTS is now called ASRGATE_RESULTS")


def test_the_new_variable_wins(tmp_path: Path) -> None:
    code = "import asrgate, os; print(os.environ['ASRGATE_CACHE'], asrgate.old_names.warnings_of_variables())"
    done = python(code, tmp_path, ASRBENCH_CACHE="/old", ASRGATE_CACHE="/new")
    assert done.stdout == "/new []\n", done.stderr


def test_an_old_entry_point_group_is_read_with_a_warning(tmp_path: Path) -> None:
    info = tmp_path / "older-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: older\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[asrbench.backends]\nolder = older:Older\n")
    (tmp_path / "older.py").write_text(
        "from backends.base import BackendUnavailable\n\n\n"
        "class Older:\n    devices = {'cpu': ('float32',)}\n    imports = ()\n\n"
        "    @classmethod\n    def check(cls, device, precision):\n"
        "        raise BackendUnavailable('it is old', 'wait')\n"
    )
    code = "import sys; from asrgate.harness.cli import main; sys.exit(main(['list']))"
    done = python(code, tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "older@cpu/float32" in done.stdout
    assert "older: declared in the entry point group asrbench.backends, now called asrgate" in done.stderr
