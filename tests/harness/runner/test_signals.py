"""Signals that end a run leave it able to report."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asrgate.harness.runner import signals

PACKAGE = """
import os, signal
import interrupted.part
os.kill(os.getpid(), signal.{name})
import time
from collections.abc import Iterator
for _ in range(10):
    time.sleep(0.01)
found = interrupted.part.found
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that sends this process a signal while it is imported."""
    folder = tmp_path / "interrupted"
    folder.mkdir()
    (folder / "part.py").write_text("found = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder / "__init__.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "interrupted"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_import_comes_to_its_end_before_the_interrupt(package: Path, name: str) -> None:
    package.write_text(PACKAGE.format(name=name))
    with pytest.raises(KeyboardInterrupt), signals.as_interrupts():
        import interrupted

        assert interrupted.found
        time.sleep(60)
    assert "interrupted" in sys.modules
    import interrupted

    assert interrupted.part.found


def test_an_import_without_end_is_interrupted(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "IMPORT_SECONDS", 0.1)
    package.write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), signals.as_interrupts():
        import interrupted  # noqa: F401
    assert time.monotonic() - began < 30


def test_elsewhere_an_interrupt_comes_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), signals.as_interrupts():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal was put off")
