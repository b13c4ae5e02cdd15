"""The table of docs/trust.md counts the rows of real runs, and tells false alarms from bad texts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("honest_rows")


@pytest.mark.slow
def test_the_docs_show_the_table_of_all_runs(script: ModuleType) -> None:
    text = (ROOT / "docs" / "trust.md").read_text()
    table = script.table(script.published() + script.stored())
    assert f"<!-- power:honest -->\n{table}<!-- /power:honest -->" in text


def test_only_what_says_nothing_of_texts_is_a_false_alarm(script: ModuleType) -> None:
    reasons = {
        "a@cpu/float32": [],
        "b@cpu/float32": ["WER 9.0% is 2.0 points above the reference's 7.0% (allowed: 1.0)"],
        "c@cpu/float32": ["splices of two clips took 2.4 times as long as a clip: its answers were known"],
        "d@cpu/float32": ["WER 9.0% is above the ceiling of 5%", "it worked for 0.50 s after its calls"],
    }
    quiet = {"others": 0.01, "scenario": "single-stream", "rows": reasons}
    table = script.table([quiet, quiet | {"others": 0.5, "scenario": "offline"}])
    assert "| a | 1 | 0 | 0 | 0 | 0 | 0 |" in table
    assert "| b | 1 | 0 | 1 |" in table
    assert "| c | 1 | 1 | 0 |" in table
    assert "| d, offline | 0 | 0 | 0 | 1 | 1 | 1 |" in table
    assert "| all | 4 | 2 | 2 | 4 | 2 | 2 |" in table
