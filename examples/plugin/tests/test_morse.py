"""The backend keeps asrgate's contract, and the format shows a run's rows."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
from asrgate_example.morse import read, send

from asrgate.harness import record
from asrgate.harness.cli import main
from asrgate.harness.testing import BackendContract

TEXTS = {"first": "the quick brown fox", "second": "jumps over the lazy dog", "third": "sos"}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips with their texts beside them."""
    folder = tmp_path_factory.mktemp("morse")
    for name, text in TEXTS.items():
        soundfile.write(folder / f"{name}.wav", send(text), 16_000)
        (folder / f"{name}.txt").write_text(text)
    return folder


class TestMorse(BackendContract):
    """All of asrgate's tests of the seam."""

    variant = "morse@cpu/float32"
    clip: ClassVar[Path]

    @pytest.fixture(autouse=True)
    def sent(self, clips: Path) -> None:
        """The bundled clips are speech, in which this backend hears nothing."""
        type(self).clip = clips / "first.wav"


@pytest.mark.parametrize("text", TEXTS.values())
def test_what_is_sent_is_read(text: str) -> None:
    assert read(send(text)) == text


def test_noise_is_no_letter() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(16_000)
    assert read(noise.astype(np.float32)) == ""


def test_run_and_report(clips: Path, tmp_path: Path) -> None:
    command = ["run", "--backends", "morse", "--reference", "morse", "--model", "nano.en", "--rounds", "1"]
    table = tmp_path / "table.tsv"
    status = main(
        [*command, "--quiet", "--audio", str(clips), "--results", str(tmp_path), "--output", str(table)]
    )
    assert status == 0
    (row,) = record.read(tmp_path / "latest")["results"]
    assert row["wer"]["wer"] == 0
    heading, line = table.read_text().splitlines()
    assert heading.split("\t")[:2] == ["rank", "variant"]
    assert "morse@cpu/float32" in line.split("\t")
