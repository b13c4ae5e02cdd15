"""What MAX takes to compile the graphs of a small random checkpoint, with nothing cached: `make bench`.

A larger model has the same kernels, so it takes hardly longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asrgate.backends.base import Checkpoint

pytest.importorskip("max.engine", reason="needs the package max")

LOAD = """
import sys
from asrgate.backends.base import Settings
from asrgate.backends.checkpoints import catalog
from asrgate.backends.max_whisper import MaxWhisper
MaxWhisper.load(catalog.resolve(sys.argv[1]), "cpu", sys.argv[2], Settings(threads=2))
"""


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_cold_compilation(benchmark: Any, model: Checkpoint, precision: str, tmp_path: Path) -> None:
    """Time a process that finds neither our artefacts nor those that MAX keeps itself."""
    caches = {name: str(tmp_path / name) for name in ("ASRGATE_CACHE", "MODULAR_CACHE_DIR")}

    def load() -> None:
        command = [sys.executable, "-c", LOAD, str(model.path), precision]
        subprocess.run(command, check=True, env={**os.environ, **caches})

    benchmark.group = "cold compilation"
    benchmark.pedantic(load, rounds=1)
    assert list((tmp_path / "ASRGATE_CACHE" / "max").glob("*.mef")), "nothing was compiled"
