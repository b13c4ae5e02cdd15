"""Why the gate exists: every way of being fast by being wrong ends unranked, with the reason in words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import FAKES

from asrgate.harness import record

CHEATS = {  # name -> what its reason must say
    "stops-early": r"wrote [34]\d% of the reference\'s number of words",
    "repeats-token": r"WER \d+\.\d% is above the ceiling",
    "caches-by-beginning": r"spliced from two clips with the text of",
    "hears-again": r"splices of two clips took \d+\.\d times as long as a clip",
    "behaves-at-the-end": r"splices of two clips took \d+\.\d times as long as a clip",
    "tells-splices": r"[345] of 5 splices of two clips were answered otherwise than by the reference",
    "tells-later-splices": r"\d+ of 15 splices of two clips were answered|splices of two clips took",
    "answers-last-clip": r"WER .* is above the ceiling",
    "lazy-generator": r"the text from transcribe\(\) is a generator",
    "returns-before-device": r"it worked for \d+\.\d+ s after its calls had returned",
    "drops-clip": r"answered 4 of 5 clips \(not bridge\).*NoneType",
    "empty-text": r"wrote 0% of the reference\'s number of words",
    "other-beam": r"ran with beam_size 5, but 1 was requested",
    "says-nothing-of-threads": r"it does not say which threads it used",
    "works-ahead-at-load": r"after the first round its clips took \d+\.\d times as long|Permission denied",
    "quick-at-first": r"after the first round its clips took \d+\.\d times as long",
    "sends-a-process-away": r"processes that it had sent away while loading would have gone on",
    "works-in-the-collector": r"it computed for \d+\.\d+ s outside its \d+ calls, in which it computed",
    "works-while-looked-at": r"it computed for \d+\.\d+ s outside its \d+ calls, in which it computed",
    "goes-bad": r"words changed between its first answers and round [23]",
    "skips-one-clip": r"answered nothing to 2 of 5 clips that the reference understood \(letter, window\)",
}
if len(os.sched_getaffinity(0)) > 1:  # with a single core there is no other to take
    CHEATS["takes-more-cores"] = r"it may use the cores [\d, ]+ although it was given only \d"
SHUT_IN = {  # what the operating system keeps from them
    "knows-the-answers": r"PermissionError.*\.txt",
    "edits-the-record": r"PermissionError.*run\.json",
    "stops-rivals": r"PermissionError",
}
# What it fools counts for nothing; no samples come twice; what it cannot read it cannot prepare.
HARMLESS = {"stops-the-clock", "caches-answers", "works-ahead-at-warm-up"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, spoken: Path, model: Path) -> dict[str, dict[str, Any]]:
    """One run of the honest engine, its twin and every cheat: backend name -> row."""
    from asrgate.harness.cli import main

    results = tmp_path_factory.mktemp("cheats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_CLIPS", str(spoken))
        patch.setenv("FAKE_RESULTS", str(results))
        main(
            ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest", "--quiet"]
            + [
                "--backends",
                ",".join(["twin", "slowed-for-a-while", *CHEATS, *SHUT_IN, *HARMLESS]),
                "--results",
                str(results),
                "--rounds",
                "3",
            ]
            + ["--threads", "1"]
        )
    run = record.read(results / "latest")
    return {row["backend"]: row for row in run["results"]}


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_is_unranked_with_its_reason(name: str, rows: dict[str, dict[str, Any]]) -> None:
    gate = rows[name]["gate"]
    assert not gate["ranked"]
    assert gate["rank"] is None
    reasons = "\n".join(gate["reasons"])
    assert re.search(CHEATS[name], reasons), reasons


@pytest.mark.parametrize("name", SHUT_IN)
def test_an_engine_that_reaches_out_is_kept_in(name: str, rows: dict[str, dict[str, Any]]) -> None:
    isolation = rows[name]["isolation"]
    if isolation["level"] == "none":
        pytest.skip(f"nothing keeps a worker in here: {isolation['why']}")
    reasons = "\n".join(rows[name]["gate"]["reasons"])
    assert not rows[name]["gate"]["ranked"] and re.search(SHUT_IN[name], reasons), reasons
    assert rows["honest"]["isolation"] == isolation


def test_honest_engines_are_ranked(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["honest"]["gate"]["reasons"] == []
    assert rows["twin"]["gate"]["reasons"] == []
    assert rows["slowed-for-a-while"]["gate"]["reasons"] == []
    assert len(splices(rows["slowed-for-a-while"])) == 15, "the first five were slow"
    honest = {"honest", "twin", "slowed-for-a-while", *HARMLESS}
    if rows["honest"]["isolation"]["level"] == "none":
        honest.remove("works-ahead-at-warm-up")
    assert {name for name, row in rows.items() if row["gate"]["ranked"]} == honest
    assert {rows[name]["gate"]["rank"] for name in honest} == set(range(1, len(honest) + 1))


def splices(row: dict[str, Any]) -> list[Any]:
    return [probe for probe in row["integrity"]["probes"] if probe["kind"] == "spliced"]


def test_every_cheat_of_the_fakes_is_tested() -> None:
    source = (FAKES / "fake_engines.py").read_text()
    cheats = source.split("# Cheats:")[1].split("# Breakage:")[0]
    classes = re.findall(r"^class (\w+)", cheats, re.M)
    tested = {*CHEATS, *SHUT_IN, *HARMLESS, "takes-more-cores"}
    assert {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in classes} == tested


@pytest.mark.parametrize("name", sorted(HARMLESS - {"stops-the-clock"}))
def test_the_harmless_gain_nothing(name: str, rows: dict[str, dict[str, Any]]) -> None:
    if rows[name]["gate"]["ranked"]:
        assert rows[name]["rtfx"]["rtfx"] < 1.5 * rows["honest"]["rtfx"]["rtfx"]
    else:
        assert re.search("after the first round its clips took", "".join(rows[name]["gate"]["reasons"]))


def test_a_worker_that_stops_its_clock_gains_nothing(rows: dict[str, dict[str, Any]]) -> None:
    honest, cheat = rows["honest"]["rtfx"]["rtfx"], rows["stops-the-clock"]["rtfx"]["rtfx"]
    assert cheat < 1.5 * honest, "a tenth of the time on its own clock"
    own = [sample["worker_seconds"] for sample in rows["stops-the-clock"]["samples"]]
    assert sum(own) < 0.2 * sum(sample["wall_seconds"] for sample in rows["stops-the-clock"]["samples"])


def test_most_cheats_look_faster_than_the_honest_engine(rows: dict[str, dict[str, Any]]) -> None:
    """Without the gate they would lead the table: this is what it is for."""
    honest = rows["honest"]["rtfx"]["rtfx"]
    faster = [name for name in CHEATS if rows[name]["rtfx"] and rows[name]["rtfx"]["rtfx"] > 1.5 * honest]
    assert len(faster) >= 7, faster


def test_reference_that_cheats_lets_nobody_through(asrgate: Callable[..., int], tmp_path: Path) -> None:
    asrgate("--backends", "twin", "--reference", "empty-text", "--rounds", "1")
    run = record.read(tmp_path / "results" / "latest")
    assert [row["gate"]["ranked"] for row in run["results"]] == [False, False]
    twin = next(row for row in run["results"] if row["backend"] == "twin")
    assert "itself did not pass the gate" in " ".join(twin["gate"]["reasons"])
