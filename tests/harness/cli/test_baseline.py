"""`asrgate baseline`: what is kept, where, and what `asrgate compare baseline` finds again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from make_run import add_unavailable, make_run

from asrgate.harness import cli, record
from asrgate.harness.cli import baseline
from asrgate.harness.record import Run
from asrgate.harness.scoring import gate, score
from asrgate.harness.worker import environment


def measured(host_class: str = "imaginary-8c", rounds: int = 7, pace: float = 0.1, seed: int = 0) -> Run:
    variants = ("honest@cpu/float32", "twin@cpu/float32")
    references = [f"the quick brown fox number {i}" for i in range(4)]
    run = make_run(
        variants,
        references,
        rounds=rounds,
        texts=dict.fromkeys(variants, references),
        audio_seconds=[3.0] * 4,
        seconds_per_audio_second={variants[0]: 0.1, variants[1]: pace},
        seed=seed,
    )
    run["host"]["host_class"] = host_class
    score.score(run, "none", replicates=100)
    gate.judge(run)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "baselines"


def store(run: Run, path: Path) -> str:
    record.write(run, path)
    return str(path)


def test_saved_by_host_class_and_model_without_texts(folder: Path, tmp_path: Path) -> None:
    run = measured()
    assert cli.main(["baseline", "save", store(run, tmp_path / "r.json"), "--baselines", str(folder)]) == 0
    saved = record.read(folder / "imaginary-8c" / "tiny.en.json")
    assert saved["settings"]["texts"] is False
    assert "quick brown" not in (folder / "imaginary-8c" / "tiny.en.json").read_text()
    assert saved == record.without_texts(run)


def test_texts_are_kept_when_asked(folder: Path, tmp_path: Path) -> None:
    path = store(measured(), tmp_path / "r.json")
    assert cli.main(["baseline", "save", path, "--texts", "--baselines", str(folder)]) == 0
    assert record.read(folder / "imaginary-8c" / "tiny.en.json") == measured()


def test_compare_finds_the_one_that_fits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.save(folder, measured())
    baseline.save(folder, measured(host_class="other-2c", pace=9.0))
    options = ["--baselines", str(folder)]
    same, slow = measured(seed=1), measured(seed=2, pace=0.12)
    assert cli.main(["compare", "baseline", store(same, tmp_path / "same.json"), *options]) == 0
    assert cli.main(["compare", "baseline", store(slow, tmp_path / "slow.json"), *options]) == 1
    assert "REGRESSION  twin@cpu/float32" in capsys.readouterr().out


def test_without_a_fitting_one_the_others_are_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = store(measured(host_class="unseen-64c"), tmp_path / "new.json")
    assert cli.main(["compare", "baseline", new, "--baselines", str(folder)]) == 2
    assert "existing baselines: none" in capsys.readouterr().err
    baseline.save(folder, measured())
    assert cli.main(["compare", "baseline", new, "--baselines", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "no baseline for tiny.en on hosts of the kind unseen-64c" in error
    assert "existing baselines: imaginary-8c/tiny.en" in error
    assert "asrgate baseline save" in error


def test_baseline_of_another_checkpoint_is_not_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.save(folder, measured())
    new = measured()
    new["checkpoint"]["tensors_sha256"] = "ab" * 32
    path = store(new, tmp_path / "new.json")
    assert cli.main(["compare", "baseline", path, "--baselines", str(folder)]) == 2
    assert "checkpoint: tiny.en" in capsys.readouterr().err


def test_names_cannot_leave_the_folder(folder: Path) -> None:
    run = measured(host_class="../../etc")
    run["checkpoint"]["name"] = "/tmp/../.hidden model"
    path = baseline.save(folder, run)
    assert path.parent.parent == folder
    assert re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]*\.json", path.name)
    assert baseline.find(folder, run) == record.without_texts(run)


def test_runs_that_show_nothing_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted = measured() | {"complete": False, "interrupted": "stopped by the user"}
    empty = measured()
    empty["results"] = []
    add_unavailable(empty, "honest@cpu/float32", "no such device")
    unplaced = measured()
    del unplaced["host"]["host_class"]
    for run, said in (
        (interrupted, "is not complete; measure again"),
        (empty, "no backend worked"),
        (unplaced, "kind of host"),
    ):
        path = store(run, tmp_path / "run.json")
        assert cli.main(["baseline", "save", path, "--baselines", str(folder)]) == 2
        assert said in capsys.readouterr().err
    assert not folder.exists()


def test_doubts_are_told_when_saving(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(rounds=5)
    run["warnings"].append("other programs used up to 80% of the processor")
    path = store(run, tmp_path / "run.json")
    assert cli.main(["baseline", "save", path, "--baselines", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("saved ")
    assert "5 rounds; with fewer than 7" in captured.err
    assert "80% of the processor" in captured.err
    assert cli.main(["baseline", "save", path, "--baselines", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("replaced ")


def test_list_names_every_baseline_and_what_is_broken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["baseline", "list", "--baselines", str(folder)]) == 0
    assert "no baselines" in capsys.readouterr().out
    baseline.save(folder, measured())
    (folder / "imaginary-8c" / "base.en.json").write_text(json.dumps({"schema_version": 99}))
    assert cli.main(["baseline", "list", "--baselines", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "imaginary-8c/tiny.en" in printed
    assert "honest@cpu/float32" in printed
    assert "99" in printed


def test_show_prints_the_table(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline.save(folder, measured())
    assert cli.main(["baseline", "show", "imaginary-8c/tiny.en", "--baselines", str(folder)]) == 0
    assert "honest@cpu/float32" in capsys.readouterr().out
    monkeypatch.setattr(environment, "describe", lambda: {"host_class": "imaginary-8c"})
    assert cli.main(["baseline", "show", "tiny.en", "--baselines", str(folder)]) == 0
    assert cli.main(["baseline", "show", "large", "--baselines", str(folder)]) == 2
    assert "existing baselines: imaginary-8c/tiny.en" in capsys.readouterr().err
