"""The table of scenarios, by the names of MLPerf's load generator: `--scenario NAME`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from asrgate.harness.record_types import Run
from asrgate.harness.scenarios.offline import Offline
from asrgate.harness.scenarios.scenario import Scenario, ScenarioError
from asrgate.harness.scenarios.server import Server
from asrgate.harness.scenarios.single_stream import SingleStream
from asrgate.harness.scenarios.streaming import Streaming

DEFAULT = SingleStream
BUILTIN: dict[str, type[Scenario]] = {
    scenario.name: scenario for scenario in (SingleStream, Offline, Server, Streaming)
}


def of(run: Run) -> Scenario:
    """Return the scenario of a record; records from before there were several are single streams."""
    settings: Mapping[str, Any] = run["settings"]
    return BUILTIN[settings.get("scenario", DEFAULT.name)].from_settings(settings)


def check(arguments: argparse.Namespace) -> None:
    """Raise ScenarioError if an option of one scenario is given with another."""
    for scenario in BUILTIN.values():
        for name in scenario.options:
            if scenario.name != arguments.scenario and getattr(arguments, name) not in (None, False):
                raise ScenarioError(
                    f"--{name.replace('_', '-')} works only with --scenario {scenario.name}, not "
                    f"{arguments.scenario}"
                )


def is_default(run: Run) -> bool:
    """Whether a run used the scenario that need not be mentioned."""
    return isinstance(of(run), DEFAULT)
