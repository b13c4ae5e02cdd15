"""The regression workflow: commands that exist, caches, least rights, and a report whatever the outcome."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

from asrgate.backends.checkpoints import catalog
from asrgate.harness.cli import commands
from asrgate.harness.metrics import mann_whitney
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.scenarios import registry

PATH = ROOT / ".github" / "workflows" / "regression.yml"


@pytest.fixture
def workflow() -> dict[Any, Any]:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


@pytest.fixture
def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    (job,) = workflow["jobs"].values()
    return job["steps"]


def running(steps: list[dict[str, Any]], command: str) -> dict[str, Any]:
    (step,) = (step for step in steps if command in step.get("run", ""))
    return step


def test_it_runs_for_changes_and_may_only_read(workflow: dict[Any, Any]) -> None:
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert {"pull_request", "push"} <= set(triggers)
    assert "pull_request_target" not in triggers  # it would run a stranger's change with our rights
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] <= 60


def test_every_step_does_one_thing_and_every_action_has_its_version(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_measuring_command_is_one_that_make_and_asrgate_know(steps: list[dict[str, Any]]) -> None:
    words = shlex.split(running(steps, "make benchmark")["run"])
    assert words[:2] == ["make", "benchmark"]
    arguments = shlex.split(words[2].removeprefix("ARGS="))
    parsed = commands._parser().parse_args(["run", *arguments])
    assert parsed.model == [catalog.FALLBACK_MODEL]
    rounds = parsed.rounds or registry.BUILTIN[parsed.scenario].default_rounds
    assert mann_whitney.smallest_p_value(rounds, rounds) < Limits().alpha


def test_comparing_command_is_one_that_asrgate_knows(steps: list[dict[str, Any]]) -> None:
    step = running(steps, "asrgate compare")
    program, *arguments = shlex.split(step["run"])
    assert program == ".venv/bin/asrgate"
    parsed = commands._parser().parse_args(arguments)
    assert parsed.base == "baseline"
    assert parsed.baselines == Path("results/baselines")
    assert parsed.new == Path("results/latest")
    assert "continue-on-error" not in step
    assert steps.index(step) > steps.index(running(steps, "make benchmark"))


def test_comparison_and_run_are_kept_whatever_the_outcome(steps: list[dict[str, Any]]) -> None:
    output = commands._parser().parse_args(shlex.split(running(steps, "asrgate compare")["run"])[1:]).output
    summary = running(steps, "GITHUB_STEP_SUMMARY")
    assert f"cat {output}" in summary["run"]
    (upload,) = (step for step in steps if step.get("uses", "").startswith("actions/upload-artifact@"))
    assert str(output) in upload["with"]["path"].split()
    assert any(path.startswith("results/") for path in upload["with"]["path"].split())
    for step in (summary, upload):
        assert "!cancelled()" in step["if"]


def test_environment_weights_and_compilations_are_cached(
    workflow: dict[Any, Any], steps: list[dict[str, Any]]
) -> None:
    caches = [step["with"] for step in steps if step.get("uses", "").startswith("actions/cache@")]
    assert {cache["path"] for cache in caches} == {".venv", ".ci-cache"}
    (job,) = workflow["jobs"].values()
    for name in ("ASRGATE_CACHE", "TORCHINDUCTOR_CACHE_DIR", "MODULAR_CACHE_DIR"):
        assert job["env"][name].startswith("${{ github.workspace }}/.ci-cache/")
    (venv,) = (cache for cache in caches if cache["path"] == ".venv")
    assert "constraints.txt" in venv["key"]
    assert "pyproject.toml" in venv["key"]
    for path in (".venv/x", ".ci-cache/x"):
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
        assert ignored.returncode == 0, f"{path} would be committed"


def test_no_script_takes_in_what_a_stranger_wrote(steps: list[dict[str, Any]]) -> None:
    """Titles and branch names are text from outside: in a script they would be commands."""
    for step in steps:
        assert "${{" not in step.get("run", "")


def test_baselines_are_committed_and_runs_are_not() -> None:
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0

    assert ignored("results/20260101T000000Z-abcd/run.json")
    assert not ignored("results/baselines/some-host/nano.en.json")
