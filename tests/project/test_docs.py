"""The docs' examples as they stand: the backend of docs/backends.md, and the notebook of docs/data.md."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from asrgate.harness import record

pytestmark = pytest.mark.slow


def test_backend_of_the_docs_works_as_a_package(tmp_path: Path, model: Path) -> None:
    text = (ROOT / "docs" / "backends.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (entry_point,) = re.findall(r"^plain-whisper = \"(.*)\"$", text, re.M)
    package = tmp_path / "site"
    info = package / "plain_whisper-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "plain_whisper.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-whisper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[asrgate.backends]\nplain-whisper = {entry_point}\n")
    clip = ROOT / "audio_samples" / "short.flac"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "asrgate",
            "run",
            "--backends",
            "plain-whisper",
            "--model",
            str(model),
        ]
        + ["--audio", str(clip), "--rounds", "1", "--warmup", "0", "--results", str(tmp_path / "results")]
        + ["--threads", "1", "--quiet"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(package), os.environ["PYTHONPATH"]])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["backend"]: row for row in record.read(tmp_path / "results" / "latest")["results"]}
    reference, plain = rows["whisper-cpu"]["samples"][0], rows["plain-whisper"]["samples"][0]
    assert plain["text"] == reference["text"]
    assert plain["tokens"] == reference["tokens"]


def test_the_notebook_of_the_docs_prints_what_the_docs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "data.md").read_text()
    cells = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", text, re.S)
    assert len(cells) == text.count("```python") == 3
    names: dict[str, object] = {}
    for source, expected in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(source, names)
        assert printed.getvalue() == expected
