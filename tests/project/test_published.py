"""The tables in README and docs say what the published records say."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from asrgate.harness import record
from asrgate.harness.report import readme_tables

PUBLISHED = ROOT / "results" / "published"
MAIN_RUN = "tiny.en-english-cpu"


def between_markers(path: Path) -> str:
    (text,) = re.findall(r"<!-- asrgate:results -->\n(.*)\n<!-- /asrgate:results -->", path.read_text(), re.S)
    return text


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_generated_tables_are_those_of_their_runs(page: str) -> None:
    shown = between_markers(ROOT / page)
    runs = {run["run_id"]: run for run in map(record.read, PUBLISHED.glob("*/run.json"))}
    named = [runs[run_id] for run_id in re.findall(r"run (\d{8}T\d{6}Z-[0-9a-f]{4})\.$", shown, re.M)]
    assert named
    assert shown == readme_tables(named).strip()


def test_every_published_run_is_shown() -> None:
    shown = between_markers(ROOT / "docs" / "results.md")
    for path in PUBLISHED.glob("*/run.json"):
        assert f"run {record.read(path)['run_id']}." in shown, f"{path} is shown nowhere"


def cells(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the table whose first heading line begins so."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def milliseconds(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return f"{1000 * statistics.median(known):{form}} ms" if known else "not told"


def test_stages_of_performance_are_those_of_the_main_run() -> None:
    run = record.read(PUBLISHED / MAIN_RUN)
    short = {clip["name"] for clip in run["clips"] if clip["audio_seconds"] <= 30}
    rows: dict[str, Any] = {result["variant"]: result for result in run["results"]}
    rtfx = {variant: result["rtfx"]["rtfx"] for variant, result in rows.items()}
    expected = []
    for variant in sorted(rows, key=rtfx.__getitem__, reverse=True):
        samples = [sample for sample in rows[variant]["samples"] if sample["clip"] in short]
        stages = [sample["stage_seconds"] for sample in samples]
        decode = [
            stage["decode"] / sample["token_count"] if "decode" in stage else None
            for stage, sample in zip(stages, samples, strict=True)
        ]
        expected.append(
            [
                variant,
                milliseconds([stage.get("encode") for stage in stages], ".0f"),
                milliseconds(decode, ".2f"),
                f"{rtfx[variant] / rtfx['whisper-cpu@cpu/float32']:.2f}",
                f"{rtfx[variant] / rtfx['faster-whisper@cpu/float32']:.2f}",
                f"{100 * rows[variant]['wer']['wer']:.2f}",
                "yes" if rows[variant]["gate"]["ranked"] else "no",
            ]
        )
    assert cells("performance.md", "| variant | encode | decode, per token") == expected


def test_batches_of_performance_are_those_of_the_offline_run() -> None:
    run = record.read(PUBLISHED / "tiny.en-offline-cpu")
    rtfx = {
        (result["precision"], result["batch_size"]): result["rtfx"]["rtfx"]
        for result in run["results"]
        if result["backend"] == "torch-fast"
    }
    expected = []
    for precision in ("float32", "bfloat16", "bfloat16+trim"):
        speeds = [rtfx[precision, size] for size in (1, 4, 8, 16)]
        best = max(speeds[1:]) / speeds[0]
        expected.append([precision, *(f"{speed:.1f}" for speed in speeds), f"{best:.2f}"])
    assert cells("performance.md", "| precision | one at a time") == expected


@pytest.mark.parametrize("name", [MAIN_RUN, "base-nine-languages-cpu"])
def test_float32_engines_wrote_what_the_reference_wrote(name: str) -> None:
    """The same text, in as many tokens, on every clip of every round: docs/exactness.md says so."""
    run = record.read(PUBLISHED / name)
    answers = {
        result["variant"]: {
            (sample["clip"], sample["round"]): (sample["text_sha256"], sample["token_count"])
            for sample in result["samples"]
        }
        for result in run["results"]
        if result["precision"] == "float32"
    }
    assert set(answers) >= {f"{engine}@cpu/float32" for engine in ("max", "max-hybrid", "torch-fast")}
    reference = answers[run["settings"]["reference"]]
    for variant, found in answers.items():
        assert found == reference, variant
