"""`--rounds auto`: as many rounds as are needed, why it stopped, and what is seen meanwhile."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of
from rich.console import Console

from asrgate.harness import record, report
from asrgate.harness.cli import main
from asrgate.harness.record import Run
from asrgate.harness.report import context
from asrgate.harness.runner import progress, so_far
from asrgate.harness.runner.stopping import Stopping

OTHER = VARIANTS[1]
PATIENT = Stopping(budget_seconds=1e9)


def scattered(rounds: int, scatter: float) -> Run:
    """A run whose second variant takes this much more or less than on average, by turns."""
    run = make_run(rounds=rounds)
    for sample in [sample for result in run["results"] for sample in result["samples"]]:
        sample["wall_seconds"] = 1.0
    for sample in result_of(run, OTHER)["samples"]:
        sample["wall_seconds"] += scatter if sample["round"] % 2 else -scatter
    return run


@pytest.mark.parametrize(
    ("rounds", "scatter", "found"),
    [
        (2, 0.0, None),  # too few to know
        (3, 0.005, {"reason": "precise", "wide": []}),
        (3, 0.05, None),
        (14, 0.08, None),
        (14, 0.04, {"reason": "precise", "wide": []}),  # more rounds make up for scatter
        (15, 0.08, {"reason": "most", "wide": [OTHER]}),
    ],
)
def test_stops_when_every_ratio_is_known_well_enough(rounds: int, scatter: float, found: Any) -> None:
    assert PATIENT.reason(scattered(rounds, scatter), 0.0) == found


def test_stops_before_a_round_that_would_exceed_the_budget() -> None:
    rule, run = Stopping(budget_seconds=100), scattered(4, 0.1)
    assert rule.reason(run, 80.0) is None  # the fifth would end at 100 s
    assert rule.reason(run, 80.1) == {"reason": "budget", "wide": [OTHER]}
    assert rule.reason(run, 40.0, 50.0) is None  # loading and checks are of the run as well
    assert rule.reason(run, 40.0, 50.1) == {"reason": "budget", "wide": [OTHER]}
    assert rule.reason(scattered(2, 0.1), 1000.0) is None, "the least rounds are measured whatever they take"


def test_a_variant_that_failed_is_not_waited_for() -> None:
    run = scattered(3, 0.1)
    result_of(run, OTHER)["status"] = "error"
    assert PATIENT.reason(run, 0.0) == {"reason": "precise", "wide": []}


def test_without_a_reference_nothing_is_precise() -> None:
    run = scattered(3, 0.0)
    run["settings"]["reference"] = "gone@cpu/float32"
    assert PATIENT.reason(run, 0.0) is None


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_by_need_says_why_it_stopped_and_shows_figures_after_each_round(
    spoken: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest"]
    arguments += ["--backends", "twin", "--threads", "1", "--results", str(tmp_path), "--log-format", "json"]
    assert main([*arguments, "--rounds", "auto", "--budget", "0.001"]) == 0
    err = capfd.readouterr().err
    run = record.read(tmp_path / "latest")
    assert run["settings"]["rounds_rule"] == Stopping(budget_seconds=0.001).rule()
    assert run["stopped"]["reason"] in ("budget", "precise")  # fake engines can be precise, too
    assert run["settings"]["rounds"] == len(run["rounds"]) == 3
    assert all(len(result["samples"]) == 3 * 5 for result in run["results"])
    told = events(err)
    shown = [event for event in told if event["event"] == "figures"]
    assert [event["round"] for event in shown] == [0, 1], "after each round but the last, which has its table"
    for event in shown:
        assert [row["variant"] for row in event["figures"]] == [r["variant"] for r in run["results"]]
        assert "nothing judged or ranked yet" in event["message"]
    final = {result["variant"]: result["wer"]["wer"] for result in run["results"]}
    assert {row["variant"]: row["wer_percent"] / 100 for row in shown[0]["figures"]} == final
    assert told[-1]["calls"] == told[-1]["done"], "rounds that were not needed are not waited for"


@pytest.mark.slow
def test_further_rounds_have_a_splice_each(
    asrgate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stopping, "reason", lambda self, *_: None)  # never content
    assert asrgate("--backends", "twin", "--rounds", "auto") == 0
    run = record.read(tmp_path / "results" / "latest")
    assert len(run["rounds"]) == run["settings"]["rounds"] == Stopping.most
    for result in run["results"]:
        kinds = [probe["kind"] for probe in result["integrity"]["probes"]]
        assert kinds.count("spliced") == 5 + Stopping.most - Stopping.least


def test_fixed_rounds_have_no_rule_and_no_budget(
    asrgate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asrgate("--backends", "twin", "--rounds", "2") == 0
    run = record.read(tmp_path / "results" / "latest")
    assert run["settings"]["rounds"] == 2
    assert "rounds_rule" not in run["settings"]
    assert "stopped" not in run
    assert asrgate("--rounds", "2", "--budget", "60") == 2
    assert "leave it out" in capsys.readouterr().err
    assert asrgate("--rounds", "auto", "--scenario", "offline") == 2
    assert "single-stream" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        asrgate("--rounds", "some")
    assert "or auto" in capsys.readouterr().err


def rows_of(rounds: int) -> list[dict[str, Any]]:
    return so_far.Figures(scattered(rounds, 0.01), "none").rows()


def test_lines_show_a_block_a_round_and_a_bar_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    lines = progress.Lines()
    for rounds in (1, 2, 3):
        lines.figures(rounds, functools.partial(rows_of, rounds))
    said = sys.stderr.getvalue()
    assert said.count(REFERENCE) == said.count(OTHER) == 3
    assert said.count("nothing judged or ranked yet") == 3
    assert max(map(len, said.splitlines())) <= 100

    bar = progress.Bar()
    bar._console.file = io.StringIO()
    for rounds in (1, 2):
        bar.figures(rounds, functools.partial(rows_of, rounds))
    screen = Console(file=io.StringIO(), width=80)
    screen.print(*bar._bar.get_renderables())
    bar.close()
    shown = screen.file.getvalue()
    assert "after 2 rounds" in shown
    assert "after 1 round" not in shown
    assert shown.count(OTHER) == 1
    assert max(map(len, shown.splitlines())) <= 80
    narrow = Console(file=io.StringIO(), width=66)
    narrow.print(progress._table(rows_of(2), narrow))
    assert narrow.file.getvalue().count("95 % CI") == 1, "the interval of the WER goes first"


def test_early_figures_leave_the_record_as_it_is() -> None:
    run = scattered(2, 0.0)
    before = json.dumps(run)
    (reference, other) = so_far.Figures(run, "none").rows()
    assert json.dumps(run) == before
    assert (reference["speedup"], other["rtfx"]) == (1.0, pytest.approx(reference["rtfx"] * other["speedup"]))
    assert other["wer_low_percent"] <= other["wer_percent"] <= other["wer_high_percent"]


def test_reports_say_how_many_rounds_and_why_not_more() -> None:
    run = scattered(3, 0.1)
    assert context.rounds(run) == "3 rounds"
    run["settings"]["rounds_rule"] = Stopping().rule()
    run["stopped"] = {"reason": "budget", "wide": [OTHER]}
    assert context.rounds(run) == f"3 rounds (120 s were used; speed-ups not known within 3 %: {OTHER})"
    run["stopped"] = {"reason": "precise", "wide": []}
    assert context.rounds(run) == "3 rounds (enough to know every speed-up within 3 %)"
    record.validate(run)
    assert "enough to know every speed-up" in report.render(run, "md")
