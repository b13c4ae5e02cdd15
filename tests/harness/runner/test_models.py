"""Several models in a run: every variant with each, each judged against its own model's reference."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_checkpoint import MULTILINGUAL, write_fake_checkpoint
from make_run import REFERENCE, make_run, result_of

from asrgate.backends import Variant
from asrgate.harness import record, report
from asrgate.harness.regression import compare, preconditions
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.report import frames, tables
from asrgate.harness.report.rows import rows as rows_of
from asrgate.harness.runner import resume
from asrgate.harness.scenarios.offline import Offline
from asrgate.harness.scoring import gate, round_ratios, score, verify
from asrgate.harness.worker import meters

OTHER = "faster-whisper@cpu/int8"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_checkpoint(tmp_path_factory.mktemp("small") / "small.en.pt", seed=1)


def judged(**changes: Any) -> record.Run:
    run = make_run((REFERENCE, OTHER), models=("small.en", "large.en"), **changes)
    record.validate(run)
    score.score(run, "none")
    gate.judge(run)
    return run


def test_each_variant_is_measured_with_each_model_and_judged_within_it(
    asrgate: Callable[..., int],
    model: Path,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAKE_MODEL", f"{model}{os.pathsep}{small}")
    asked = ["--backends", "hears-by-model-too", "--reference", "hears-by-model"]
    asked += ["--model", str(model), "--model", str(small)]
    assert asrgate(*asked, "--rounds", "2", "--audit") == 0
    run = verify.read(tmp_path / "results" / "latest")
    names = [
        f"hears-by-model{too}@cpu/float32:{name}" for name in ("fake.en", "small.en") for too in ("", "-too")
    ]
    assert [row["variant"] for row in run["results"]] == names
    assert [row["model"] for row in run["results"]] == ["fake.en", "fake.en", "small.en", "small.en"]
    assert [entry["name"] for entry in run["models"]] == ["fake.en", "small.en"]
    assert len({entry["tensors_sha256"] for entry in run["models"]}) == 2
    assert [sorted(entry["order"]) for entry in run["rounds"]] == [sorted(names)] * 2

    rows = {row["variant"]: row for row in run["results"]}
    assert rows[names[1]]["wer"]["wer"] == 0 and 0.2 < rows[names[3]]["wer"]["wer"] < 0.4
    assert rows[names[3]]["wer"]["versus_reference"]["variant"] == names[2]
    assert rows[names[3]]["wer"]["versus_reference"]["wer_difference"] == 0
    assert all(row["gate"]["ranked"] for row in rows.values()), [r["gate"] for r in rows.values()]
    assert sorted(rows[name]["gate"]["rank"] for name in names[:2]) == [1, 2]
    assert sorted(rows[name]["gate"]["rank"] for name in names[2:]) == [1, 2]
    derived = {row["model"]: row["audit"]["checkpoint_sha256"] for row in rows.values()}
    assert len(set(derived.values())) == 2
    assert [row["audit"]["changed_words"] for row in run["results"]] == [15, 0, 15, 0]

    told = capsys.readouterr().out
    assert told.index("fake.en") < told.index("small.en")
    page = report.render(run, "md")
    assert "**fake.en**" in page and "**small.en**" in page


def test_a_model_that_lacks_a_language_is_refused_and_the_others_run(
    asrgate: Callable[..., int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = write_fake_checkpoint(tmp_path / "many.pt", n_vocab=MULTILINGUAL)
    asked = ["--backends", "twin", "--model", str(model), "--model", str(many), "--language", "de"]
    assert asrgate(*asked, "--rounds", "1") == 1
    run = verify.read(tmp_path / "results" / "latest")
    assert [(row["variant"], row["status"], len(row["samples"])) for row in run["results"]] == [
        ("honest@cpu/float32:many", "ok", 5),
        ("twin@cpu/float32:many", "ok", 5),
        ("honest@cpu/float32:fake.en", "unavailable", 0),
        ("twin@cpu/float32:fake.en", "unavailable", 0),
    ]
    told = " ".join(capsys.readouterr().out.split())
    assert "fake.en understands only English, but some clips are in de" in told
    assert "Not measured: honest@cpu/float32:fake.en, twin@cpu/float32:fake.en" in told


def test_a_machine_whose_memory_the_engines_fill_is_warned_of(
    asrgate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "available_fraction", lambda: 0.04)
    assert asrgate("--backends", "honest", "--rounds", "1") == 0
    (told,) = [w for w in record.read(tmp_path / "results" / "latest")["warnings"] if "memory" in w]
    assert told.startswith("once 1 engines were loaded, 4% of the memory was left")


def test_the_same_model_twice_is_refused(
    asrgate: Callable[..., int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(model.read_bytes())
    assert asrgate("--backends", "twin", "--model", str(model), "--model", str(copy)) == 2
    assert "--model fake.en and --model copy are the same model" in capsys.readouterr().err


def test_models_of_the_same_name_are_told_apart(
    asrgate: Callable[..., int], model: Path, tmp_path: Path
) -> None:
    other = write_fake_checkpoint(tmp_path / "fake.en.pt", seed=2)
    asked = ("--model", str(model), "--model", str(other))
    assert asrgate("--backends", "honest", *asked, "--rounds", "1") == 0
    run = record.read(tmp_path / "results" / "latest")
    assert [row["model"] for row in run["results"]] == [f"fake.en-{m['sha256'][:8]}" for m in run["models"]]


def test_speed_and_words_count_against_the_reference_of_the_same_model() -> None:
    names = [f"{variant}:{model}" for model in ("small.en", "large.en") for variant in (REFERENCE, OTHER)]
    run = judged(seconds_per_audio_second=dict(zip(names, (0.1, 0.05, 0.4, 0.1), strict=True)), rounds=3)
    ratios = [round_ratios.over_reference(run, result) for result in run["results"]]
    assert [round(found.ratio) for found in ratios if found] == [1, 2, 1, 4]
    rows = {row["variant"]: row for row in rows_of(run)}
    assert round(rows[names[3]]["speedup"]) == 4
    assert [row["variant"] for row in rows_of(run)] == [names[1], names[0], names[3], names[2]]


def test_tables_and_frames_have_each_row_with_its_own_model() -> None:
    run = judged()
    digests = {model["name"]: model["tensors_sha256"] for model in run["models"]}
    lines = tables.summary_lines(run)
    assert {line["variant"]: line["model_tensors_sha256"] for line in lines} == {
        row["variant"]: digests[row["model"]] for row in run["results"]
    }
    clips = frames.of_clips([run])
    assert set(zip(clips["variant"], clips["model"], strict=True)) == {
        (row["variant"], row["model"]) for row in run["results"]
    }
    assert frames.of_runs([run])["model"].tolist() == ["small.en, large.en"]


def test_batches_of_a_model_are_compared_with_its_single_clips() -> None:
    asked = [Variant("honest", "cpu", "float32", model=model) for model in ("small.en", "large.en")]
    names = [str(variant) for variant in Offline((4,)).variants(asked, "honest@cpu/float32")]
    assert names == ["honest@cpu/float32:small.en", "honest@cpu/float32:large.en"]
    asked = [replace(variant, backend="batches") for variant in asked]
    found = Offline((4,)).variants(asked, "batches@cpu/float32")
    assert [str(variant) for variant in found] == [
        f"batches@cpu/float32:{model}{batch}"
        for model in ("small.en", "large.en")
        for batch in ("", " batch 4")
    ]
    result: Any = {"variant": str(found[1]), "model": "small.en"}
    assert record.reference_name(make_run(("batches@cpu/float32",)), result) == str(found[0])
    assert record.without_model(result) == "batches@cpu/float32 batch 4"


def test_a_reference_that_fails_costs_only_its_own_model_the_ranks() -> None:
    run = judged()
    result_of(run, f"{REFERENCE}:small.en").update(status="error", error="it crashed")
    gate.judge(run)
    lost, kept = (result_of(run, f"{OTHER}:{model}")["gate"] for model in ("small.en", "large.en"))
    assert (
        not lost["ranked"] and f"the reference {REFERENCE}:small.en is not in this run" in lost["reasons"][0]
    )
    assert kept["ranked"]


def test_a_record_whose_rows_and_models_do_not_fit_is_refused(tmp_path: Path) -> None:
    run = judged()
    record.write(run, tmp_path / "run.json")
    assert record.read(tmp_path / "run.json")["results"][2]["model"] == "large.en"
    for change, told in (
        (lambda r: r["results"][2].update(model="huge"), "which is none of the run's"),
        (lambda r: r["results"][2].update(model="small.en"), "does not say its model"),
        (lambda r: r["results"][2].pop("model"), "names none of the run's models"),
        (lambda r: r["models"][1].update(name="small.en"), "two models have the same name"),
    ):
        changed = deepcopy(run)
        change(changed)
        record.write(changed, tmp_path / "run.json")
        with pytest.raises(record.RecordError, match=told):
            record.read(tmp_path / "run.json")


def test_the_digest_covers_the_models() -> None:
    run = judged()
    before = record.digest_of(run)
    run["models"][1]["tensors_sha256"] = "0" * 64
    assert record.digest_of(run) != before


def test_runs_are_compared_row_by_row_of_the_same_model() -> None:
    base, new = judged(rounds=3), judged(rounds=3)
    assert not compare.compare(base, new, Limits()).regressed
    new["models"].reverse()
    assert preconditions.differences(base, new) == []
    # under each other's names, the rows still meet those of their own model
    renamed = deepcopy(base)
    for place in (*renamed["models"], *renamed["results"]):
        key = "name" if "name" in place else "model"
        other = {"small.en": "large.en", "large.en": "small.en"}[place[key]]
        if key == "model":
            place["variant"] = place["variant"].replace(f":{place['model']}", f":{other}")
        place[key] = other
    result_of(renamed, f"{OTHER}:large.en")["status"] = "error"
    found = {row.variant: row.verdict for row in compare.compare(base, renamed, Limits()).rows}
    assert [name for name, verdict in found.items() if verdict == "regression"] == [f"{OTHER}:large.en"]


def test_a_run_of_one_model_is_compared_with_its_rows_in_a_run_of_several() -> None:
    new = judged(rounds=3)
    one = deepcopy(new)
    del one["models"]
    one["results"] = [row for row in one["results"] if row["model"] == "small.en"]
    for row in one["results"]:
        row["variant"] = row["variant"].removesuffix(":small.en")
        del row["model"]
    assert [difference.kind for difference in preconditions.differences(one, new)] == ["checkpoint"]
    found = {row.variant: row.verdict for row in compare.compare(one, new, Limits(), ["checkpoint"]).rows}
    assert found == {
        f"{REFERENCE}:small.en": "unclear",
        f"{OTHER}:small.en": "unclear",  # three rounds are too few to call anything slower
        f"{REFERENCE}:large.en": "new",
        f"{OTHER}:large.en": "new",
    }


def test_a_run_is_resumed_only_with_the_same_models() -> None:
    run = judged()
    before = resume.fingerprint(run)
    run["models"][1]["tensors_sha256"] = "0" * 64
    (told,) = resume._differences(before, resume.fingerprint(run))
    assert told.startswith("models: small.en (") and "000000000000…" in told
