"""Runs as DataFrames and Parquet: the same figures as in the CSV files and the record."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from make_run import REFERENCE, VARIANTS, add_unavailable, make_run, result_of

from asrgate import results
from asrgate.harness import record, report
from asrgate.harness.cli import main
from asrgate.harness.record import Run
from asrgate.harness.report import frames
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]


def judged(run: Run) -> Run:
    score.score(run, "none", replicates=200)
    gate.judge(run)
    return run


@pytest.fixture(scope="module")
def run() -> Run:
    references = [*(clip["reference"] for clip in make_run(references=8)["clips"]), None]
    texts = {OTHER: [*references[:-2], None, "words of a clip without a reference"]}
    made = make_run(VARIANTS, references, texts=texts)
    made["clips"][0]["tags"] = {"room": "hall"}
    add_unavailable(made, "absent@cuda/float16", "no CUDA device")
    return judged(made)


@pytest.fixture(scope="module")
def stored(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for day in (1, 2):
        again = json.loads(json.dumps(run))
        again["run_id"], again["started_at"] = f"day-{day}", f"2026-01-0{day}T00:00:00+00:00"
        (folder / f"day-{day}").mkdir()
        record.write(again, folder / f"day-{day}" / "run.json")
    return folder


@pytest.mark.parametrize(("name", "make"), [("csv", frames.of_rows), ("samples-csv", frames.of_samples)])
def test_frames_have_the_figures_of_the_csv_files(run: Run, name: str, make: object) -> None:
    frame = make([run])
    lines = list(csv.DictReader(io.StringIO(report.render(run, name))))
    assert len(frame) == len(lines) > 2
    assert set(lines[0]) == set(frame.columns) - ({"run_id"} if name == "samples-csv" else set())
    for place, line in enumerate(lines):
        for column, text in line.items():
            value = frame[column].iloc[place]
            if text == "":
                assert pandas.isna(value) or value == "", column
            elif isinstance(value, (float, np.floating)):
                assert float(text) == pytest.approx(value), column
            else:
                assert text in (str(value), f"'{value}"), column


def test_clips_have_the_errors_of_the_record(run: Run) -> None:
    frame = frames.of_clips([run]).set_index(["variant", "clip"])
    assert len(frame) == 2 * len(run["clips"])
    for variant in VARIANTS:
        result = result_of(run, variant)
        for entry in result["wer"]["per_clip"]:
            line = frame.loc[variant, entry["clip"]]
            for name in frames.ERRORS:
                assert line[name] == entry[name]
            assert line["errors"] == entry["substitutions"] + entry["deletions"] + entry["insertions"]
        walls = [sample["wall_seconds"] for sample in result["samples"] if sample["clip"] == "clip-000"]
        assert frame.loc[variant, "clip-000"]["wall_median_seconds"] == pytest.approx(np.median(walls))
    without = frame.loc[REFERENCE, "clip-008"]
    assert pandas.isna(without["errors"]) and pandas.isna(without["reference"])
    failed = frame.loc[OTHER, "clip-007"]
    assert pandas.isna(failed["text"]) and pandas.isna(failed["wall_median_seconds"])
    assert failed["deletions"] == failed["reference_words"] > 0
    assert frame.loc[OTHER, "clip-000"]["tag_room"] == "hall"


def test_load_reads_a_folder_of_runs(stored: Path) -> None:
    found = results.load(stored)
    assert list(found.runs["run_id"]) == ["day-1", "day-2"]
    assert str(found.runs["started_at"].dtype).endswith("UTC]")
    assert list(found.rows["run_id"].value_counts()) == [3, 3]
    assert len(found.samples) == 2 * 2 * 2 * 9
    assert len(found.clips) == 2 * 2 * 9
    with pytest.raises(record.RecordError, match="cannot read"):
        results.load(stored / "day-3")


def test_difference_is_paired(run: Run) -> None:
    clips = frames.of_clips([run]).groupby("variant")
    found = results.wer_difference(clips.get_group(REFERENCE), clips.get_group(OTHER), replicates=200)
    versus = result_of(run, OTHER)["wer"]["versus_reference"]
    assert found.clips == 8
    assert found.difference_points == pytest.approx(100 * versus["wer_difference"])
    assert found.difference_points == pytest.approx(found.new_percent - found.base_percent)
    assert found.low_points < found.difference_points < found.high_points
    same = results.wer_difference(clips.get_group(OTHER), clips.get_group(OTHER), replicates=200)
    assert (same.low_points, same.high_points, same.probability_worse) == (0.0, 0.0, 0.0)
    shuffled = clips.get_group(OTHER).sample(frac=1, random_state=1)
    assert results.wer_difference(clips.get_group(REFERENCE), shuffled, replicates=200) == found


def test_interval_is_that_of_the_record() -> None:
    """The same clips, seed and number of resamples give the same interval, to the last digit or so."""
    made = judged(make_run(VARIANTS, 30))
    clips = frames.of_clips([made]).groupby("variant")
    found = results.wer_difference(clips.get_group(REFERENCE), clips.get_group(OTHER), replicates=200)
    low, high = result_of(made, OTHER)["wer"]["versus_reference"]["interval"]
    assert (found.low_points, found.high_points) == (pytest.approx(100 * low), pytest.approx(100 * high))


def test_what_cannot_be_paired_is_refused(stored: Path) -> None:
    found = results.load(stored)
    one = found.clips[(found.clips["run_id"] == "day-1") & (found.clips["variant"] == OTHER)]
    with pytest.raises(results.ComparisonError, match=r"new has several answers.*day-1 .*day-2"):
        results.wer_difference(one, found.clips[found.clips["variant"] == OTHER])
    with pytest.raises(results.ComparisonError, match="no clip with a reference text in common"):
        results.wer_difference(one[:3], one[3:])
    with pytest.raises(results.ComparisonError, match="no clip with a reference text in common"):
        results.wer_difference(one[-1:], one[-1:])


# Parquet


def test_report_writes_parquet_that_reads_back(stored: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
    found = results.load(stored / "day-1")
    for name, expected in (("run.parquet", found.rows), ("my-samples.parquet", found.samples)):
        assert main(["report", str(stored / "day-1"), "--output", str(tmp_path / name)]) == 0
        pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / name), expected, check_dtype=False)


def test_columns_have_the_same_types_in_every_run(run: Run) -> None:
    sparse = make_run((REFERENCE,), [None, None])
    for result in sparse["results"]:
        result["resources"] = dict.fromkeys(result["resources"])
    sparse = judged(sparse)
    for make in (frames.of_rows, frames.of_samples, frames.of_clips, frames.of_runs):
        full, empty = make([run]), make([sparse])
        for name in set(full.columns) & set(empty.columns):
            kinds = {
                "text" if pandas.api.types.is_numeric_dtype(f[name]) is False else "number"
                for f in (full, empty)
            }
            assert len(kinds) == 1, name


def test_without_pyarrow_there_is_one_clear_error(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = frames.importlib.util.find_spec
    monkeypatch.setattr(
        frames.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    for command in ("run --output", f"report {stored / 'day-1'} --output"):
        assert main([*command.split(), str(tmp_path / "samples.parquet")]) == 2
        told = capsys.readouterr().err
        assert "python -m pip install pyarrow" in told and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_parquet_goes_to_a_file_only(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(stored / "day-1"), "--format", "samples-parquet"]) == 2
    assert "name a file with --output" in capsys.readouterr().err
