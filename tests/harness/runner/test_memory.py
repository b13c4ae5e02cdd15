"""Memory and disk that a run takes do not grow with the audio: it is decoded clip by clip and let go."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from paths import ROOT

from asrgate.harness import corpus, record
from asrgate.harness.corpus import audio
from asrgate.harness.corpus.sample_cache import Decoded

CLIP_SECONDS = 8
FEW, MANY = 20, 140
EXTRA_BYTES = (MANY - FEW) * CLIP_SECONDS * 16_000 * 4  # of samples, in the larger set


def write_clips(folder: Path, count: int, seconds: float = CLIP_SECONDS) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(count)
    for number in range(count):
        noise = rng.integers(-300, 300, int(seconds * 16_000)).astype(np.int16)
        soundfile.write(folder / f"clip{number:04}.wav", noise, 16_000)
    return folder


def peaks_bytes(clips: Path, model: Path, results: Path) -> tuple[int, int]:
    """Run on the clips; return the peak RSS of the parent while it measures, and of the worker."""
    asked = ["run", "--audio", str(clips), "--model", str(model), "--results", str(results), "--quiet"]
    asked += ["--backends", "deaf", "--reference", "deaf", "--rounds", "1", "--warmup", "0", "--threads", "1"]
    peak = 0
    with subprocess.Popen(
        [sys.executable, "-m", "asrgate", *asked],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    ) as process:
        while process.poll() is None:
            time.sleep(0.02)
            if list(results.glob("*/journal.jsonl")):  # the reports made afterwards take more than the run
                with contextlib.suppress(psutil.NoSuchProcess):
                    peak = max(peak, psutil.Process(process.pid).memory_info().rss)
    assert process.returncode == 0
    (row,) = record.read(results / "latest")["results"]
    assert len(row["samples"]) == len(list(clips.iterdir()))
    return peak, row["resources"]["peak_rss_bytes"]


@pytest.mark.slow
def test_memory_of_parent_and_worker_stays_flat(model: Path, tmp_path: Path) -> None:
    few, many = (
        peaks_bytes(write_clips(tmp_path / f"{count}", count), model, tmp_path / f"results{count}")
        for count in (FEW, MANY)
    )
    for name, small, large in zip(("parent", "worker"), few, many, strict=True):
        assert 0 < large < small + EXTRA_BYTES / 2, name  # the bootstrap's share grows a little, too


@pytest.fixture
def clips(tmp_path: Path) -> list[corpus.Clip]:
    return corpus.load_clips([write_clips(tmp_path / "clips", 12, seconds=1)])


def test_decoded_clips_take_bounded_room(clips: list[corpus.Clip]) -> None:
    one = 16_000 * 4
    decoded = Decoded(clips, kept_bytes=4 * one, passing_bytes=3 * one)
    assert decoded.kept == 4
    for _ in range(2):
        for clip in clips:
            assert audio.sha256(decoded[clip.name]) == clip.sha256
            assert decoded.passing_bytes <= 3 * one
    batch = [decoded[clip.name] for clip in clips]
    assert [audio.sha256(samples) for samples in batch] == [clip.sha256 for clip in clips]
    assert list(decoded) == [clip.name for clip in clips]


def test_decoded_clips_are_in_no_file_that_has_a_name(
    clips: list[corpus.Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that finds them can answer before it is asked."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    decoded = Decoded(clips)
    assert decoded.kept == len(clips)
    assert list((tmp_path / "own").iterdir()) == []


def test_a_clip_that_changes_during_the_run_is_noticed(clips: list[corpus.Clip]) -> None:
    decoded = Decoded(clips, kept_bytes=0)
    soundfile.write(clips[5].path, np.zeros(16_000), 16_000)
    with pytest.raises(audio.AudioError, match="changed during the run"):
        decoded[clips[5].name]
