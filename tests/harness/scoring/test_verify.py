"""A stored run is shown, compared and kept only if its figures follow from its samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import make_run, result_of
from paths import ROOT

from asrgate.harness import cli, record
from asrgate.harness.record import RecordError
from asrgate.harness.scoring import gate, score, verify

REFERENCE, OTHER = "whisper-cpu@cpu/float32", "faster-whisper@cpu/int8"
PUBLISHED = sorted((ROOT / "results" / "published").glob("*/run.json"))
TEXTS = ["red apple white table", "stone river north summer cloud"]


@pytest.fixture
def run() -> Any:
    made = make_run([REFERENCE, OTHER], TEXTS, texts={REFERENCE: TEXTS, OTHER: TEXTS}, rounds=3)
    score.score(made, "none", replicates=10)
    gate.judge(made)
    return made


def wer(run: Any) -> None:
    result_of(run, OTHER)["wer"]["wer"] = 0.01


def speed(run: Any) -> None:
    result_of(run, OTHER)["rtfx"].update(rtfx=5000.0, rtf=1 / 5000)


def latency(run: Any) -> None:
    result_of(run, OTHER)["latency"].update(min_seconds=1e-5, median_seconds=1e-5)


def verdict(run: Any) -> None:
    for sample in result_of(run, OTHER)["samples"]:
        sample["late_work_seconds"] = 10.0
    result_of(run, OTHER)["integrity"]["late_work_seconds"] = 10.0


def rank(run: Any) -> None:
    for result in run["results"]:
        result["gate"]["rank"] = 3 - result["gate"]["rank"]


DOCTORED: dict[Callable[[Any], None], str] = {
    wer: "has a WER of 0.01, but 0 follows",
    speed: "has an RTFx of 5000, but",
    latency: "has a shortest latency of 1e-05, but",
    verdict: r"is rank \d, but must be unranked .it worked for 10\.00 s after its calls",
    rank: r"is rank \d, but must be rank \d",
}


def test_a_run_as_it_was_measured_agrees(run: Any, tmp_path: Path) -> None:
    record.write(run, tmp_path / "run.json")
    assert verify.read(tmp_path) == record.read(tmp_path)
    without = record.without_texts(run)
    assert list(verify.differences(without)) == []


@pytest.mark.parametrize("change", DOCTORED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("command", [["report"], ["table"], ["baseline", "save"], ["history"]])
def test_a_doctored_run_is_one_clear_error(
    run: Any, change: Callable[[Any], None], command: list[str], tmp_path: Path, capsys: Any
) -> None:
    doctored = copy.deepcopy(run)
    change(doctored)
    record.write(doctored, tmp_path / "run.json")
    with pytest.raises(RecordError, match=DOCTORED[change]):
        verify.read(tmp_path)
    assert cli.main([*command, str(tmp_path)]) == 2
    assert "does not agree with its own samples" in capsys.readouterr().err


def test_of_a_run_that_was_killed_nothing_was_derived_yet(run: Any, tmp_path: Path) -> None:
    run.update(finished_at=None, complete=False)
    for result in run["results"]:
        result.update(wer=None, rtfx=None, latency=None)
        result["gate"] = {"ranked": False, "rank": None, "reasons": ["not judged yet"]}
    record.write(run, tmp_path / "run.json")
    assert cli.main(["report", str(tmp_path)]) == 0
    result_of(run, OTHER)["gate"] = {"ranked": True, "rank": 1, "reasons": []}
    record.write(run, tmp_path / "run.json")
    assert cli.main(["report", str(tmp_path)]) == 2


def test_scoring_it_again_makes_it_agree(run: Any, tmp_path: Path) -> None:
    wer(run)
    run["scoring"]["normalizer"]["name"] = "none"
    record.write(run, tmp_path / "run.json")
    assert cli.main(["rescore", str(tmp_path)]) == 0
    assert result_of(verify.read(tmp_path), OTHER)["wer"]["wer"] == 0.0


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.parent.name)
def test_published_runs_agree(path: Path) -> None:
    assert list(verify.differences(record.read(path))) == []
