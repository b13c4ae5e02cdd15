"""Rows of several models against each other: fronts, beaten rows, the answer and its limits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from make_run import REFERENCE, make_run, result_of
from rich.console import Console

from asrgate.harness import record, report
from asrgate.harness.cli import run_options
from asrgate.harness.report import answers
from asrgate.harness.report.readme import readme_tables
from asrgate.harness.report.rows import rows
from asrgate.harness.scoring import across, gate, score, verify

OTHER = "faster-whisper@cpu/int8"
MODELS = ("small.en", "large.en", "clumsy.en")
CLIPS = [f"{word} one two three four five six seven eight nine ten" for word in "abcdefghijkl"]


def heard(wrong: int) -> list[str]:
    """Return the answers to CLIPS with so many words wrong in each."""
    return [" ".join(["x"] * wrong + clip.split()[wrong:]) for clip in CLIPS]


def settled(wrong: dict[str, int], pace: dict[str, float], **changes: Any) -> record.Run:
    """Return a judged run in which each model makes so many errors a clip, and takes so long for a second."""
    names = [f"{variant}:{model}" for model in wrong for variant in (REFERENCE, OTHER)]
    run = make_run(
        (REFERENCE, OTHER),
        CLIPS,
        rounds=4,
        models=tuple(wrong),
        texts={name: heard(wrong[name.rpartition(":")[2]]) for name in names},
        seconds_per_audio_second={
            name: pace[name.rpartition(":")[2]] / (1 + name.startswith(OTHER)) for name in names
        },
        **changes,
    )
    for place, result in enumerate(run["results"]):
        result["resources"]["peak_rss_bytes"] = (100 + 100 * place) * 2**20
    score.score(run, "none")
    gate.judge(run)
    across.settle(run)
    return run


@pytest.fixture(scope="module")
def three() -> record.Run:
    """A quick one, an accurate one, and one that is worse than the accurate one in both."""
    return settled(
        {"small.en": 3, "large.en": 1, "clumsy.en": 4}, {"small.en": 0.1, "large.en": 0.4, "clumsy.en": 0.8}
    )


def console(run: record.Run, width: int = 80) -> str:
    file = io.StringIO()
    report.print_table(run, Console(file=file, width=width))
    return file.getvalue()


def test_a_row_beaten_on_both_axes_is_marked_with_what_beats_it(three: record.Run) -> None:
    beaten = {entry["variant"]: entry for entry in three["across"]["beaten"]}
    # by the fastest that is better in both, though the accurate model's rows are so too
    assert beaten[f"{OTHER}:clumsy.en"]["by"] == f"{OTHER}:small.en"
    found = beaten[f"{OTHER}:clumsy.en"]
    assert found["wer_difference"] == pytest.approx(1 / 11) and found["interval"][0] > 0
    assert found["speed_ratio"] == pytest.approx(8, rel=0.05) and found["speed_interval"][0] > 1
    assert set(beaten) == {f"{variant}:clumsy.en" for variant in (REFERENCE, OTHER)}
    by = {row["variant"]: row["beaten_by"] for row in rows(three)}
    assert by[f"{OTHER}:clumsy.en"] == f"{OTHER}:small.en" and by[f"{REFERENCE}:large.en"] is None
    for told in (console(three), report.render(three, "md"), report.render(three, "html")):
        assert "Beaten in both" in told


def test_the_fronts_have_the_rows_that_none_beats(three: record.Run) -> None:
    front = three["across"]["front"]
    assert [place["variant"] for place in front] == [f"{OTHER}:small.en", f"{OTHER}:large.en"]
    assert front[0]["wer_difference"] is None
    assert front[1]["wer_difference"] == pytest.approx(-2 / 11) and front[1]["interval"][1] < 0
    memory = [place["variant"] for place in three["across"]["memory_front"]]
    assert memory == [f"{REFERENCE}:small.en", f"{REFERENCE}:large.en"]


def test_pareto_front() -> None:
    points = [(3.0, 5.0), (2.0, 6.0), (1.0, 8.0), (3.0, 6.0), (4.0, 4.0)]
    assert across.pareto_front(points) == [2, 1, 0, 4]
    assert across.pareto_front([]) == []
    assert across.pareto_front([(1.0, 2.0), (1.0, 2.0)]) == [0, 1]


def test_an_unranked_row_is_on_no_front_beats_none_and_is_no_answer(three: record.Run) -> None:
    run = json.loads(record.dumps(three))
    best, quick = (result_of(run, f"{OTHER}:{model}") for model in ("large.en", "small.en"))
    for row in (best, quick):
        row["applied_settings"]["beam_size"] = 5
    gate.judge(run)
    across.settle(run)
    named = json.dumps(run["across"])
    assert best["variant"] not in named and quick["variant"] not in named
    assert run["across"]["answers"][0]["variant"] == f"{REFERENCE}:large.en"


def test_two_that_cannot_be_told_apart_are_said_to_be_so() -> None:
    texts = {"one.en": 1, "two.en": 1}
    run = settled(texts, {"one.en": 0.1, "two.en": 0.4})
    # the same number of errors in all but one clip, where the slower has one less
    for sample in result_of(run, f"{REFERENCE}:two.en")["samples"]:
        if sample["clip"] == "clip-000":
            sample["text"] = CLIPS[0]
    score.score(run, "none")
    gate.judge(run)
    across.settle(run)
    best, fastest, _ = run["across"]["answers"]
    assert best["variant"] == f"{REFERENCE}:two.en"
    assert set(best["alike"]) == {row["variant"] for row in run["results"]} - {best["variant"]}
    assert fastest["variant"] == f"{OTHER}:one.en" and fastest["interval"][0] <= 0 <= fastest["interval"][1]
    assert run["across"]["beaten"] == []
    told = " ".join(console(run).split())
    assert "cannot be told apart in errors from" in told and "not told apart from the most accurate" in told


def test_of_many_rows_that_cannot_be_told_apart_the_fastest_are_named() -> None:
    models = [f"model{number}.en" for number in range(6)]
    seconds = {model: 0.5 - 0.05 * number for number, model in enumerate(models)}
    run = settled(dict.fromkeys(models, 1), seconds)
    best = run["across"]["answers"][0]
    assert len(best["alike"]) > 4
    told = dict(answers.lines(run))["most accurate"]
    fastest = [f"{OTHER}:{model}" for model in reversed(models) if f"{OTHER}:{model}" in best["alike"]]
    assert told.endswith(f"errors from {', '.join(fastest[:3])} and {len(best['alike']) - 3} more")


def test_a_row_is_not_beaten_where_the_rounds_cannot_tell_the_speeds_apart() -> None:
    run = settled({"good.en": 1, "bad.en": 4}, {"good.en": 0.2, "bad.en": 0.2025})
    good, bad = (result_of(run, f"{OTHER}:{model}") for model in ("good.en", "bad.en"))
    assert good["rtfx"]["rtfx"] > bad["rtfx"]["rtfx"]
    assert bad["variant"] not in [entry["variant"] for entry in run["across"]["beaten"]]


def test_equal_speeds_are_not_told_apart() -> None:
    run = settled({"one.en": 1, "two.en": 1}, {"one.en": 0.2, "two.en": 0.2})
    _, fastest, _ = run["across"]["answers"]
    assert {fastest["variant"], *fastest["alike"]} == {f"{OTHER}:one.en", f"{OTHER}:two.en"}


def test_the_answers_are_the_best_within_their_points(three: record.Run) -> None:
    questions = {answer["question"]: answer["variant"] for answer in three["across"]["answers"]}
    assert questions == {  # the quick model is 18 points worse, so it is none of them
        "most accurate": f"{OTHER}:large.en",
        "fastest": f"{OTHER}:large.en",
        "smallest": f"{REFERENCE}:large.en",
    }
    (first, answer), *_ = answers.lines(three)
    assert first == "most accurate" and answer.startswith(f"{OTHER}:large.en, WER 9.09 % (")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_rtf": 0.15}, f"{OTHER}:small.en"),
        ({"max_memory_bytes": 350 * 2**20}, f"{REFERENCE}:large.en"),
        ({"max_memory_bytes": 150 * 2**20}, f"{REFERENCE}:small.en"),
        ({"max_rtf": 0.001}, None),
    ],
)
def test_limits_narrow_the_answer(limits: dict[str, Any], expected: str | None) -> None:
    run = settled({"small.en": 3, "large.en": 1}, {"small.en": 0.1, "large.en": 0.4}, settings=limits)
    record.validate(run)
    found = run["across"]["answers"]
    assert (found[0]["variant"] if found else None) == expected
    told = " ".join(console(run).split())
    assert ("no ranked row with RTF at most 0.001" if expected is None else "only rows with") in told


def test_a_run_of_one_model_has_an_answer_only_if_it_is_limited() -> None:
    plain, limited = (make_run(rounds=3, settings=settings) for settings in ({}, {"max_rtf": 1.0}))
    for run in (plain, limited):
        score.score(run, "none")
        gate.judge(run)
        across.settle(run)
    assert "across" not in plain and "most accurate" not in console(plain)
    assert "most accurate" in console(limited) and "Front" not in console(limited)


def test_every_line_fits_a_terminal_of_80_columns(three: record.Run) -> None:
    told = console(three)
    assert max(map(len, told.splitlines())) <= 80
    assert told.rstrip().splitlines()[-1].strip()
    assert all(
        question in told for question in ("most accurate", "fastest within 1 point", "smallest within")
    )


def test_the_page_shows_models_by_colour_and_engines_by_shape(three: record.Run) -> None:
    page = report.render(three, "html")
    picture = page.split('aria-label="WER against RTFx', 1)[1].split("</svg>", 1)[0]
    for name in (*MODELS, "whisper-cpu", "faster-whisper"):
        assert name in picture
    assert all(f"var(--series-{number})" in picture for number in range(3))


def test_a_doctored_front_or_answer_is_refused(three: record.Run, tmp_path: Path) -> None:
    record.write(three, tmp_path / "run.json")
    assert verify.read(tmp_path / "run.json")["across"] == three["across"]
    for place, told in (("front", "is on the front"), ("answers", "is named by the answers")):
        run = json.loads(record.dumps(three))
        run["across"][place][0]["variant"] = f"{REFERENCE}:clumsy.en"
        record.write(run, tmp_path / "run.json")
        with pytest.raises(record.RecordError, match=told):
            verify.read(tmp_path / "run.json")
    run["across"]["beaten"][0]["by"] = "nobody"
    record.write(run, tmp_path / "run.json")
    with pytest.raises(record.RecordError, match="across names 'nobody'"):
        record.read(tmp_path / "run.json")


def test_sizes_are_read_with_their_units() -> None:
    assert [run_options.memory(text) for text in ("1GB", "512 MiB", "1.5gib", "100")] == [
        10**9,
        512 * 2**20,
        3 * 2**29,
        100,
    ]
    for text in ("", "much", "1TB", "-1GB"):
        with pytest.raises(Exception, match="must be"):
            run_options.memory(text)


def test_a_table_of_runs_has_the_front_over_all_of_one_machine() -> None:
    runs = [
        settled({name: wrong}, {name: pace})
        for name, wrong, pace in (("small.en", 3, 0.1), ("large.en", 1, 0.4), ("clumsy.en", 4, 0.8))
    ]
    for number, run in enumerate(runs):
        run["run_id"] = f"run-{number}"
    told = readme_tables(runs)
    assert "Of 3 models on Imaginary 9000" in told
    front = told[told.index("Front of errors and speed") :]
    lines = [line for line in front.splitlines() if "run-" in line]
    assert [line.split("|")[2].strip() for line in lines] == ["small.en", "large.en"]
    assert "-18.18" in lines[1]
    runs[1]["clips"][0]["sha256"] = "0" * 64  # other clips: no front of both
    assert "Of 2 models" in readme_tables(runs)
    assert "Front of" not in readme_tables(runs[:1])
