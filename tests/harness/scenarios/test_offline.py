"""The offline scenario: batches, throughput, the gate over them, and that unlike scenarios never meet."""

from __future__ import annotations

import argparse
import copy
import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asrgate.backends import Variant
from asrgate.harness import record
from asrgate.harness.cli import baseline
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.regression import preconditions
from asrgate.harness.regression.compare import NotComparable, compare
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.report.race import RaceError, race
from asrgate.harness.scenarios import offline
from asrgate.harness.scenarios.batches import BatchVariant, batches

CHEATS = {  # name -> what the row of its batches must say
    "batch-loses-words": r"of the reference's number of words",
    "batch-in-another-order": r"WER .* is above the ceiling",
    "batch-lacks-an-answer": r"returned 1 answers for 2 clips",
    "batch-returns-early": r"it worked for \d+\.\d+ s after its calls had returned",
}
HARMLESS = "caches-batches"  # no batch comes twice


def clip(name: str, seconds: float, language: str = "en") -> Clip:
    return Clip(name, Path(f"{name}.wav"), seconds, "0" * 64, language, None, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, spoken: Path, model: Path) -> Path:
    """An offline run of the honest engine, one that takes batches, and the cheats."""
    from asrgate.harness.cli import main

    results = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_CLIPS", str(spoken))
        main(
            ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest", "--quiet"]
            + [
                "--backends",
                ",".join(["batches", *CHEATS, HARMLESS]),
                "--results",
                str(results),
                "--rounds",
                "3",
            ]
            + ["--threads", "1", "--scenario", "offline", "--batch-sizes", "1,2"]
        )
    return results / "latest"


@pytest.fixture(scope="module")
def run(folder: Path) -> dict[str, Any]:
    return record.read(folder)


@pytest.fixture(scope="module")
def rows(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in run["results"]}


@pytest.mark.slow
def test_each_batch_size_is_a_row_and_an_engine_without_batches_has_one(rows: dict[str, Any]) -> None:
    honest = [row for row in rows.values() if row["backend"] == "honest"]
    assert [(row["batch_size"], row["takes_batches"]) for row in honest] == [(1, False)]
    assert rows["batches@cpu/float32"]["batch_size"] == 1
    assert rows["batches@cpu/float32 batch 2"]["batch_size"] == 2
    assert rows["batches@cpu/float32 batch 2"]["takes_batches"]


def test_throughput_is_the_median_of_rounds_and_batches_pay(
    run: dict[str, Any], rows: dict[str, Any]
) -> None:
    audio = sum(entry["audio_seconds"] for entry in run["clips"])
    for name in ("batches@cpu/float32", "batches@cpu/float32 batch 2"):
        row = rows[name]
        rounds = [sum(s["wall_seconds"] for s in row["samples"] if s["round"] == n) for n in range(3)]
        assert row["rtfx"]["rtfx"] == pytest.approx(audio / sorted(rounds)[1])
        assert row["rtfx"]["interval"][0] <= row["rtfx"]["rtfx"] <= row["rtfx"]["interval"][1]
        assert row["latency"] is None
        assert row["gate"]["ranked"], row["gate"]["reasons"]
    single, batched = (rows[f"batches@cpu/float32{batch}"]["rtfx"]["rtfx"] for batch in ("", " batch 2"))
    assert batched > 1.15 * single


def test_every_clip_is_answered_once_a_round_and_shares_its_batch_s_time(rows: dict[str, Any]) -> None:
    samples = [s for s in rows["batches@cpu/float32 batch 2"]["samples"] if s["round"] == 0]
    assert len({sample["clip"] for sample in samples}) == len(samples) == 5
    assert [sample["batch"] for sample in samples] == [0, 0, 1, 1, 2]
    assert samples[0]["wall_seconds"] == samples[1]["wall_seconds"]


@pytest.mark.parametrize("name", CHEATS)
def test_batches_do_not_get_past_the_gate_by_being_wrong(rows: dict[str, Any], name: str) -> None:
    gate = rows[f"{name}@cpu/float32 batch 2"]["gate"]
    assert not gate["ranked"]
    assert re.search(CHEATS[name], "; ".join(gate["reasons"])), gate["reasons"]
    assert rows[f"{name}@cpu/float32"]["gate"]["ranked"], "alone it is honest"


def test_a_cache_of_batches_gains_nothing(rows: dict[str, Any]) -> None:
    cached, honest = (rows[f"{name}@cpu/float32 batch 2"] for name in (HARMLESS, "batches"))
    assert cached["gate"]["ranked"], cached["gate"]["reasons"]
    assert cached["rtfx"]["rtfx"] < 1.5 * honest["rtfx"]["rtfx"]


def test_the_files_name_scenario_and_batch(folder: Path) -> None:
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for report in (page, text):
        assert "offline: all clips at once, in batches of 1, 2" in report
        assert "batches@cpu/float32 batch 2" in report
    assert "Speed by clip length" not in page
    with (folder / "summary.csv").open(newline="") as file:
        lines = {line["variant"]: line for line in csv.DictReader(file)}
    assert lines["batches@cpu/float32 batch 2"]["batch_size"] == "2"
    assert {line["scenario"] for line in lines.values()} == {"offline"}
    assert lines["batches@cpu/float32 batch 2"]["latency_median_seconds"] == ""


def test_unlike_scenarios_are_never_compared(run: dict[str, Any]) -> None:
    other = copy.deepcopy(run)
    del other["settings"]["scenario"]  # a record from before there were scenarios
    assert [d.kind for d in preconditions.differences(run, other)] == ["scenario"]
    with pytest.raises(NotComparable, match="used different scenarios"):
        compare(run, other, Limits(), allow=[*preconditions.KINDS, "scenario"])
    for each in (run, other):
        each["host"]["host_class"] = "some host"
    assert baseline.path_of(Path(), run) != baseline.path_of(Path(), other)


def test_there_is_no_race_on_a_clip(run: dict[str, Any]) -> None:
    with pytest.raises(RaceError, match="times are not those of single clips"):
        race(run)


def test_batches_hold_one_language_and_no_long_clip() -> None:
    clips = [clip("a", 3), clip("b", 9, "de"), clip("long", 31), clip("c", 5), clip("d", 4), clip("e", 30)]
    found = batches(clips, BatchVariant("x", "cpu", "float32", 2, True))
    assert [([c.name for c in batch.clips], batch.together) for batch in found] == [
        (["e", "c"], True),
        (["d", "a"], True),
        (["b"], True),
        (["long"], False),
    ]


def test_single_streams_keep_the_order_of_the_clips() -> None:
    clips = [clip("a", 3), clip("long", 31), clip("b", 9, "de")]
    found = batches(clips, Variant("x", "cpu", "float32"))
    assert [(batch.clips[0].name, batch.together) for batch in found] == [
        ("a", False),
        ("long", False),
        ("b", False),
    ]


def test_the_reference_is_measured_alone_whatever_sizes_are_asked_for() -> None:
    asked = [Variant("batches", "cpu", "float32"), Variant("honest", "cpu", "float32")]
    names = [str(v) for v in offline.Offline((4,)).variants(asked, "batches@cpu/float32")]
    assert names == ["batches@cpu/float32", "batches@cpu/float32 batch 4", "honest@cpu/float32"]


def test_a_round_that_lacks_a_clip_does_not_count() -> None:
    run = {
        "clips": [{"name": n, "audio_seconds": 10.0} for n in "ab"],
        "settings": {"seed": 0},
    }
    samples = [
        {"clip": c, "round": r, "wall_seconds": 1.0, "token_count": None}
        for c, r in (("a", 0), ("b", 0), ("a", 1))
    ]
    found = offline.Offline().speed(run, samples)
    assert found is not None
    assert (found["rtfx"], found["wall_seconds"], found["interval"]) == (10.0, 2.0, None)
    assert offline.Offline().speed(run, samples[2:]) is None


@pytest.mark.parametrize("text", ["0", "", "1,,2", "-4", "2.5", "x", "99999"])
def test_impossible_batch_sizes_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole numbers from 1"):
        offline.batch_sizes(text)


def test_batch_sizes_need_the_offline_scenario(asrgate: Callable[..., int], capsys: Any) -> None:
    assert asrgate("--backends", "twin", "--batch-sizes", "2") == 2
    assert "--batch-sizes works only with --scenario offline" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["multi-stream"])
def test_scenarios_that_do_not_exist_are_not_offered(asrgate: Callable[..., int], name: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        asrgate("--backends", "twin", "--scenario", name)
    assert stopped.value.code == 2
