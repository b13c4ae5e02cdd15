"""The import of max.nn, part of which MAX compiles in place the first time; MAX itself is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = "from asrgate.backends.max_graph.session import import_max_nn; import_max_nn()"
# like MAX 26.7's: what is missing is written in place, what is there is loaded as it is
COMPILES = """
import time
from pathlib import Path

part = Path(__file__).parents[1] / "__mojocache__" / "part.so"
if not part.exists():
    part.parent.mkdir(exist_ok=True)
    with part.open("w") as file:
        file.write("half")
        file.flush()
        time.sleep(0.5)
        file.write(" and half")
if part.read_text() != "half and half":
    raise ImportError(f"{part}: file too short", path=str(part))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package max whose max.nn compiles its part."""
    nn = tmp_path / "max" / "nn"
    nn.mkdir(parents=True)
    (nn / "__init__.py").write_text(COMPILES)
    return tmp_path


def start(package: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", IMPORT], env=env, stderr=subprocess.PIPE, text=True)


def test_no_process_reads_what_another_one_compiles(package: Path) -> None:
    processes = [start(package) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 4


def test_what_a_stopped_process_left_is_compiled_again(package: Path) -> None:
    part = package / "max" / "__mojocache__" / "part.so"
    part.parent.mkdir()
    part.write_text("half")
    process = start(package)
    assert (process.communicate()[1], process.returncode) == ("", 0)
    assert part.read_text() == "half and half"


def test_another_failure_is_told(package: Path) -> None:
    (package / "max" / "nn" / "__init__.py").write_text("import what_is_missing")
    process = start(package)
    assert "No module named 'what_is_missing'" in process.communicate()[1]
    assert process.returncode == 1
