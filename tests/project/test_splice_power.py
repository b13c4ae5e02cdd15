"""The table of docs/trust.md is the simulated one, and it says what the limit on splices is for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from paths import ROOT

from asrgate.harness.scoring import cache_probes


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("splice_power")


@pytest.mark.slow
def test_the_docs_show_the_simulated_table(script: ModuleType) -> None:
    text = (ROOT / "docs" / "trust.md").read_text()
    assert f"<!-- power:splices -->\n{script.table()}<!-- /power:splices -->" in text


def test_the_limit_that_is_simulated_is_the_gates(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share() -> float:
        rng = np.random.default_rng(0)
        return float(np.mean([script.refused(rng, 5, 0.15, 0.33, 1.0) for _ in range(100)]))

    assert share() > 0.95, "three times as long is beyond the limit of twice"
    monkeypatch.setattr(cache_probes, "SPLICED_OVER_SEEN_LIMIT", 4.0)
    assert share() == 0.0
