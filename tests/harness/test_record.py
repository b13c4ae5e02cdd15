"""What a record must be: a broken one is refused with the place and the reason, a large one in seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_run import make_run

from asrgate.harness import record


def sample(run: record.Run) -> dict[str, Any]:
    return run["results"][1]["samples"][3]


def test_the_first_break_of_the_schema_is_named_with_its_place() -> None:
    run = make_run()
    sample(run)["wall_seconds"] = -1.0
    with pytest.raises(record.RecordError, match=r"at results/1/samples/3/wall_seconds: .*-1\.0.*minimum"):
        record.validate(run)
    run["complete"] = "yes"  # nearer to the document: named before what lies deeper
    with pytest.raises(record.RecordError, match='at complete: "yes" is not of type "boolean"'):
        record.validate(run)
    run["colour"] = "red"
    with pytest.raises(record.RecordError, match=r"at the document: .*'colour' was unexpected"):
        record.validate(run)
    del run["colour"], run["clips"]
    with pytest.raises(record.RecordError, match='at the document: "clips" is a required property'):
        record.validate(run)


def test_what_json_can_hold_is_judged_by_what_it_will_say(tmp_path: Path) -> None:
    run = make_run()
    sample(run)["wall_seconds"] = np.float64(0.25)
    record.write(run, tmp_path / "run.json")
    assert sample(record.read(tmp_path))["wall_seconds"] == 0.25
    sample(run)["wall_seconds"] = np.float64(-1)
    with pytest.raises(record.RecordError, match="at results/1/samples/3/wall_seconds"):
        record.validate(run)
    sample(run)["wall_seconds"] = np.int64(1)
    with pytest.raises(record.RecordError, match=r"cannot be written as JSON: .*int64"):
        record.validate(run)
    sample(run)["wall_seconds"] = float("nan")
    with pytest.raises(record.RecordError):
        record.write(run, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["complete"]


def test_validating_stays_far_below_scoring_in_a_large_record() -> None:
    run = make_run(references=5_000, rounds=1)
    started = time.process_time()
    record.validate(run)
    # jsonschema took 0.6 s for 1,000 clips of two variants; 5,000 take 0.02 s
    assert time.process_time() - started < 1
