"""`asrgate history`: series of comparable runs only, unranked points marked."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of
from rich.console import Console

from asrgate.harness import record
from asrgate.harness.cli import main
from asrgate.harness.cli.history import print_series, sparkline, to_csv
from asrgate.harness.record import Run
from asrgate.harness.report import history
from asrgate.harness.report.history import Point
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]


def stored(
    day: int, pace: float = 0.1, change: Callable[[Run], object] | None = None, folder: Path | None = None
) -> Run:
    """Return a judged run of that day in which both variants are right, stored in its own folder."""
    references = ["one two three", "four five six seven"]
    run = make_run(
        VARIANTS,
        references,
        texts=dict.fromkeys(VARIANTS, references),
        seconds_per_audio_second={OTHER: pace},
    )
    run["run_id"], run["started_at"] = f"day-{day:02}", f"2026-01-{day:02}T00:00:00+00:00"
    if change is not None:
        change(run)
    score.score(run, "none", replicates=20)
    gate.judge(run)
    if folder is not None:
        (folder / run["run_id"]).mkdir(parents=True)
        record.write(run, folder / run["run_id"] / "run.json")
    return run


def only(found: list[history.Series], variant: str = OTHER) -> history.Series:
    (one,) = [series for series in found if series.variant == variant]
    return one


def test_comparable_runs_are_one_series_in_order_of_time() -> None:
    runs = [stored(day, pace) for day, pace in ((1, 0.2), (2, 0.1), (3, 0.05))]
    one = only(history.series(runs))
    assert [point.run_id for point in one.points] == ["day-01", "day-02", "day-03"]
    values = [point.value for point in one.points]
    assert values == [result_of(run, OTHER)["rtfx"]["rtfx"] for run in runs]
    assert values == sorted(values)
    assert all(point.reason is None for point in one.points)


def other_checkpoint(run: Run) -> None:
    run["checkpoint"]["tensors_sha256"] = "0" * 64


def other_host(run: Run) -> None:
    run["host"]["cpu"] = "Other 1"


def other_audio(run: Run) -> None:
    run["clips"][0]["sha256"] = "0" * 64


def other_beam(run: Run) -> None:
    run["settings"]["decoding"]["beam_size"] = 5


def other_gate(run: Run) -> None:
    run["settings"]["wer_tolerance"] = 0.5


@pytest.mark.parametrize("change", [other_checkpoint, other_host, other_audio, other_beam, other_gate])
def test_other_conditions_are_another_series(change: Callable[[Run], object]) -> None:
    runs = [stored(1), stored(2, change=change), stored(3), stored(4, change=change)]
    found = [series for series in history.series(runs) if series.variant == OTHER]
    assert [[point.run_id for point in series.points] for series in found] == [
        ["day-01", "day-03"],
        ["day-02", "day-04"],
    ]
    assert [series.group for series in found] == [1, 2]
    beside = history.comparable_with(runs[3], runs)
    assert [point.run_id for point in only(beside).points] == ["day-02", "day-04"]


def other_normalizer(run: Run) -> None:
    score.score(run, "whisper-basic", replicates=20)


def test_other_normaliser_is_another_series() -> None:
    runs = [stored(1), stored(2)]
    other_normalizer(runs[1])
    assert len({series.group for series in history.series(runs, "wer")}) == 2


def applied_another_beam(run: Run) -> None:
    result_of(run, OTHER)["applied_settings"]["beam_size"] = 5


def test_unranked_points_stay_in_their_series_and_are_marked() -> None:
    runs = [stored(1, 0.2), stored(2, 0.001, applied_another_beam), stored(3, 0.1)]
    one = only(history.series(runs))
    assert [point.reason is None for point in one.points] == [True, False, True]
    assert "beam_size 5" in (one.points[1].reason or "")
    assert sparkline(one.points) == "▁×█"  # the unranked one does not set the scale
    lines = list(csv.DictReader(io.StringIO(to_csv([one]))))
    assert [line["ranked"] for line in lines] == ["true", "false", "true"]


def test_change_is_told_between_ranked_points_only() -> None:
    runs = [stored(1, 0.2, applied_another_beam), stored(2, 0.1), stored(3, 0.05), stored(4, 0.01)]
    applied_another_beam(runs[3])
    gate.judge(runs[3])
    text = printed(runs)
    line = next(line for line in text.splitlines() if line.startswith(OTHER))
    values = [result_of(run, OTHER)["rtfx"]["rtfx"] for run in runs]
    assert f"{values[2] / values[1] - 1:+.1%}" in line
    assert f"{values[3]:.0f}" not in line.replace(f"{values[3]:.1f} ×", "")
    assert "day-04 is not ranked: it ran with beam_size 5" in text


def printed(runs: list[Run], encoding: str = "utf-8", metric: str = "rtfx") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_series(history.series(runs, metric), Console(file=file, width=200))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_conditions_and_wer_stand_beside_speed() -> None:
    text = printed([stored(1), stored(2)])
    for fact in ("tiny.en", "2 clips (en)", "greedy", "Imaginary 9000", "WER %", "0.00"):
        assert fact in text


def test_a_terminal_without_blocks_gets_digits() -> None:
    text = printed([stored(1, 0.2), stored(2, 0.1, applied_another_beam), stored(3, 0.1)], "ascii")
    assert "1x8" in text


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"), ([5, 5], "▅▅"), ([9], "▅"), ([], "")]
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline([Point("r", "t", value, 0.0, None) for value in values]) == expected


def test_sparkline_shows_the_newest() -> None:
    points = [Point("r", "t", float(value), 0.0, None) for value in range(100)]
    assert len(sparkline(points)) == 40
    assert sparkline(points)[0] == "▁"


@pytest.mark.parametrize("metric", history.METRICS)
def test_every_metric_comes_from_the_record(metric: str) -> None:
    run = stored(1)
    result = result_of(run, OTHER)
    expected = {
        "rtfx": result["rtfx"]["rtfx"],
        "wer": 0.0,
        "cer": 0.0,
        "latency": result["latency"]["median_seconds"],
        "p90": result["latency"]["p90_seconds"],
        "tokens": result["rtfx"]["tokens_per_second"],
        "load": 0.75,
        "rss": 600.0,
    }[metric]
    assert only(history.series([run], metric)).points[0].value == expected
    assert OTHER in printed([run], metric=metric)


def test_command_reads_folders_and_files_and_leaves_out_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (2, 1):
        stored(day, folder=tmp_path / "results")
    stored(3, folder=tmp_path / "elsewhere")
    (tmp_path / "results" / "broken").mkdir()
    (tmp_path / "results" / "broken" / "run.json").write_text("{")
    (tmp_path / "results" / "latest").symlink_to("day-02")
    paths = [str(tmp_path / "results"), str(tmp_path / "elsewhere" / "day-03" / "run.json")]
    assert main(["history", *paths, "--backend", "faster-whisper", "--format", "csv"]) == 0
    out, said = capsys.readouterr()
    lines = list(csv.DictReader(io.StringIO(out)))
    assert [line["run_id"] for line in lines] == ["day-01", "day-02", "day-03"]
    assert {line["variant"] for line in lines} == {OTHER}
    assert "left out" in said and "broken" in said
    assert main(["history", *paths]) == 0
    assert "day" not in capsys.readouterr().err.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["results", "--backend", "fastr-whisper"], "Did you mean 'faster-whisper'?"),
        (["empty"], "no runs are stored in empty; store one with `asrgate run`"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored(1, folder=tmp_path / "results")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["history", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_reference_alone_is_followed_too() -> None:
    assert only(history.series([stored(1)], backend=REFERENCE), REFERENCE).points
