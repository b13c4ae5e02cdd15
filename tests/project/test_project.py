"""The project's own promises: pixi and make run the same commands, CI runs the README's test command."""

from __future__ import annotations

import importlib
import json
import re
import sys

import jsonschema_rs
import pytest
from paths import ROOT, SUPPORT

from asrgate import backends
from asrgate.backends.whisper_common import decoding

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHARED_TARGETS = (
    "benchmark",
    "benchmark-json",
    "list",
    "doctor",
    "regression",
    "demo",
    "test-cpu",
    "test-gpu",
    "test-max",
    "test",
    "test-all",
    "lint",
    "bench",
    "bench-compare",
)


def pixi() -> dict:
    return tomllib.loads((ROOT / "pixi.toml").read_text())


def tasks() -> dict:
    return pixi()["tasks"] | pixi()["feature"]["dev"]["tasks"]


def make_commands(target: str) -> list[str]:
    """Return a Makefile target's commands without the tools' folder, silence and arguments."""
    text = (ROOT / "Makefile").read_text()
    (body,) = re.findall(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", text, re.M)
    lines = [line.strip().lstrip("@") for line in body.splitlines()]
    return [line.replace("$(BIN)/", "").replace("$(ARGS)", "").strip() for line in lines]


@pytest.mark.parametrize("target", SHARED_TARGETS)
def test_pixi_and_make_run_the_same_commands(target: str) -> None:
    assert tasks()[target]["cmd"].split(" && ") == make_commands(target)


def test_every_pixi_task_has_its_make_target() -> None:
    assert set(tasks()) == set(SHARED_TARGETS)


def test_pixi_manifest_follows_its_schema() -> None:
    # pixi's own schema (prefix-dev/pixi 2b25fc7, BSD-3-Clause)
    schema = json.loads((SUPPORT / "pixi.schema.json").read_text())
    jsonschema_rs.validator_for(schema).validate(pixi())


def test_pixi_has_the_environments_the_readme_names() -> None:
    assert {"default", "cuda"} <= set(pixi()["environments"])


def test_ci_runs_the_readme_test_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in ("make lint", "make test-all"):
        assert any(line.startswith(command) for line in lines)
        assert command in (ROOT / "README.md").read_text()


def test_builtin_backends_follow_the_protocol() -> None:
    for name in backends.BUILTIN:
        engine = backends.load(name)
        assert engine.devices
        assert engine.imports
        for method in ("check", "load", "transcribe", "synchronize", "applied_settings"):
            assert hasattr(engine, method), f"{name} lacks {method}"
        assert backends.of(name)


def test_no_advice_installs_a_package_called_asrgate() -> None:
    """The index has another project of that name: advice names the packages that are missing."""
    for folder in ("backends", "harness", "docs", "examples", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".sh", ".toml"):
                assert not re.search(r"install[^\n]*\basrgate\[", path.read_text()), path


def test_the_old_address_of_decoding_still_answers() -> None:
    """Plug-ins that an earlier `new-backend` wrote import it."""
    with pytest.warns(DeprecationWarning, match=r"backends\.whisper_common\.decoding"):
        old = importlib.import_module("asrgate.backends.decoding")
    assert old.require_language is decoding.require_language
    assert old.require_honourable is decoding.require_honourable


def test_tests_lie_where_what_they_test_lies() -> None:
    for package in ("backends", "harness"):
        for path in (ROOT / "tests" / package).rglob("test_*.py"):
            tested = path.parent.relative_to(ROOT / "tests")
            assert (ROOT / tested / "__init__.py").is_file(), f"{path}: there is no package {tested}"
    loose = [path.name for path in (ROOT / "tests").glob("test_*.py")]
    assert not loose, "a test belongs beside its package: tests/harness/…, tests/backends/…, tests/project/"
