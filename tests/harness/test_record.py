"""What a record must be: a broken one is refused with the place and the reason, a large one in seconds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_run import make_run

from asrgate.harness import record
from asrgate.harness.report import context
from asrgate.harness.scoring import gate, score


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


def stamped(**options: Any) -> Any:
    run = make_run(**options)
    run["digest"] = record.digest_of(run)
    return run


def text(run: Any) -> None:
    run["results"][1]["samples"][3]["text"] = "another"


def seconds(run: Any) -> None:
    run["results"][1]["samples"][3]["wall_seconds"] *= 1.0001


def swapped_samples(run: Any) -> None:
    first, second = run["results"]
    first["samples"], second["samples"] = second["samples"], first["samples"]


def host(run: Any) -> None:
    run["host"]["cpu"] = "Imaginary 9001"


def threads(run: Any) -> None:
    run["settings"]["decoding"]["threads"] = 16


def checkpoint(run: Any) -> None:
    run["checkpoint"]["tensors_sha256"] = "0" * 64


def clip(run: Any) -> None:
    run["clips"][0]["sha256"] = "0" * 64


def probe(run: Any) -> None:
    run["results"][0]["integrity"]["probes"][0]["unseen_seconds"] = 0.51


def isolation(run: Any) -> None:
    run["results"][0]["isolation"] = {
        **dict.fromkeys(("files", "signals", "memory"), True),
        "level": "landlock",
        "abi": 6,
        "why": None,
    }


@pytest.mark.parametrize(
    "change", [text, seconds, swapped_samples, host, threads, checkpoint, clip, probe, isolation]
)
def test_what_was_measured_cannot_change_without_its_digest(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    run = stamped()
    record.write(run, tmp_path / "run.json")
    assert record.read(tmp_path)["digest"] == run["digest"]
    change(run)
    record.write(run, tmp_path / "run.json")
    with pytest.raises(
        record.RecordError, match=r"does not hold what its digest [0-9a-f]{12}… is of: it was"
    ):
        record.read(tmp_path)


def test_the_digest_stays_whatever_is_derived_and_however_numbers_are_written(tmp_path: Path) -> None:
    run = stamped()
    run["clips"][0]["audio_seconds"] = run["results"][0]["samples"][0]["wall_seconds"] = 3.0
    run["results"][0]["samples"][0]["round"] = 0.0  # type: ignore[assignment]
    run["digest"] = before = record.digest_of(run)
    score.score(run, "none", replicates=10)
    gate.judge(run)
    run["settings"]["slices"] = ["length"]
    assert record.digest_of(run) == before
    (tmp_path / "run.json").write_text(record.dumps(run).replace(": 3.0", ": 3"))
    assert record.read(tmp_path)["digest"] == before


def test_a_record_without_texts_has_a_digest_of_what_it_holds(tmp_path: Path) -> None:
    run = stamped()
    bare = record.without_texts(run)
    assert bare["digest"] == record.digest_of(bare) != run["digest"]
    record.write(bare, tmp_path / "run.json")
    assert record.read(tmp_path)["digest"] == bare["digest"]


def test_an_older_record_has_no_digest_and_gets_none(tmp_path: Path) -> None:
    older = make_run()
    older["schema_version"] = 4
    (tmp_path / "run.json").write_text(record.dumps(older))
    read = record.read(tmp_path)
    assert "digest" not in read and "digest" not in record.without_texts(read)
    assert context.describe(read)["record"] == "no digest: it is older than asrgate's digests"
    told = context.describe(stamped())["record"]
    assert told == f"digest {stamped()['digest'][:12]}"


def test_a_signal_while_a_file_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "run.json").write_text("before")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        record.write_text(tmp_path / "run.json", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == "before"
