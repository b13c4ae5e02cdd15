"""The curve of docs/performance.md is that of its records, and the length in use is one it speaks for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from types import ModuleType

import pytest
from paths import ROOT

from asrgate.backends.checkpoints import catalog
from asrgate.backends.whisper_common import greedy

RECORDS = ROOT / "results" / "published" / "trim-silence"
GATE = 0.01  # the gate's tolerance


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("trim_silence")


@pytest.mark.parametrize("model", ["tiny.en", "base"])
def test_the_docs_show_the_records(script: ModuleType, model: str) -> None:
    stored = json.loads((RECORDS / f"{model}.json").read_text())
    assert stored["tensors_sha256"] == catalog.catalogue()[model].tensors_sha256
    points = [script.Point(**point) for point in stored["points"]]
    assert script.table(points) in (ROOT / "docs" / "performance.md").read_text()


def test_the_length_in_use_keeps_tiny_en_within_the_gate() -> None:
    points = json.loads((RECORDS / "tiny.en.json").read_text())["points"]
    wer = {point["silence_seconds"]: point["wer"] for point in points}
    assert wer[greedy.SILENCE_ENCODED_SECONDS] - wer[None] < GATE
    assert wer[2.0] - wer[None] > GATE, "a shorter one would do"
