"""A scenario is one class behind one table: whatever the table holds can be asked for, run and reported."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from asrgate.harness import record
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.record import Result
from asrgate.harness.report import context
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.batches import BatchGenerator
from asrgate.harness.scenarios.scenario import Answered, Load, LoadGenerator, Order
from asrgate.harness.scenarios.single_stream import SingleStream


class BackwardsGenerator(BatchGenerator):
    def measure(
        self, worker: Any, number: int, is_done: Callable[[Clip], bool], result: Result
    ) -> Iterator[Answered]:
        yield from reversed(list(super().measure(worker, number, is_done, result)))


class Backwards(SingleStream):
    """The clips from the last to the first, ranked by the slowest call."""

    name = "backwards"
    default_rounds = 2
    adapts_rounds = False
    options = ("how_far",)
    has_rounds = False

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--how-far")

    def load_generator(self, load: Load) -> LoadGenerator:
        return BackwardsGenerator(load)

    def describe(self, run: record.Run) -> str:
        return "backwards: the last clip first"

    @property
    def order(self) -> Order:
        return Order("p99 latency", "latency", "p99_seconds")


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "backwards", Backwards)
    schema: dict[str, Any] = json.loads(record.SCHEMA_PATH.read_text())
    schema["properties"]["settings"]["properties"]["scenario"]["enum"].append("backwards")
    import jsonschema_rs

    monkeypatch.setattr(record, "_validator", lambda: jsonschema_rs.validator_for(schema))


@pytest.mark.usefixtures("backwards")
def test_a_scenario_of_the_table_is_run_judged_and_reported(
    asrgate: Callable[..., int], tmp_path: Path
) -> None:
    results = tmp_path / "found"
    arguments: Sequence[str] = ("--backends", "twin", "--scenario", "backwards", "--results", str(results))
    assert asrgate(*arguments) == 0
    run = record.read(results / "latest")
    assert run["settings"]["scenario"] == "backwards" and len(run["rounds"]) == Backwards.default_rounds
    for result in run["results"]:
        asked = [sample["clip"] for sample in result["samples"] if sample["round"] == 0]
        assert asked == [clip["name"] for clip in reversed(run["clips"])]
        assert result["gate"]["ranked"], result["gate"]["reasons"]
    ranked = sorted(run["results"], key=lambda result: result["latency"]["p99_seconds"])
    assert [result["gate"]["rank"] for result in ranked] == [1, 2]
    assert context.scenario(run) in (results / "latest" / "report.md").read_text()


@pytest.mark.usefixtures("backwards")
def test_its_options_are_refused_in_other_scenarios(asrgate: Callable[..., int], capsys: Any) -> None:
    assert asrgate("--backends", "twin", "--how-far", "2") == 2
    assert "--how-far works only with --scenario backwards, not single-stream" in capsys.readouterr().err


def test_nobody_else_asks_which_scenario_it_is() -> None:
    names = {f'"{name}"' for name in registry.BUILTIN} - {'"server"'}  # a word of its own elsewhere
    classes = {scenario.__name__ for scenario in registry.BUILTIN.values()}
    for path in (ROOT / "harness").rglob("*.py"):
        if path.parent.name != "scenarios":
            text = path.read_text()
            assert not [name for name in names if name in text], path
            assert not [name for name in classes if f"import {name}" in text or f".{name}" in text], path
