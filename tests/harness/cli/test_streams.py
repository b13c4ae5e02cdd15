"""`--log-format json`: stderr that a machine can read, whatever happens."""

from __future__ import annotations

import datetime
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from asrgate.harness import record
from asrgate.harness.cli import main
from asrgate.harness.runner import json_events

KEYS = {"time", "event", *json_events.KEYS}


def events(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_every_call_is_an_event_that_agrees_with_the_record(
    spoken: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = main(
        ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest", "--threads", "1"]
        + ["--backends", "twin,raises,exits-at-load,prints-to-stdout", "--rounds", "2"]
        + ["--results", str(tmp_path / "results"), "--log-format", "json"]
    )
    assert status == 1
    told = events(capfd)
    assert all(set(event) == KEYS for event in told)
    assert {event["event"] for event in told} == {
        *("note", "start", "stage", "answer", "figures", "failure", "close")
    }
    assert {event["event"] for event in told} <= json_events.EVENTS.keys()
    assert "prints-to-stdout@cpu/float32: clears its throat" in [event["message"] for event in told]
    times = [datetime.datetime.fromisoformat(event["time"]) for event in told]
    assert times == sorted(times)

    run = record.read(tmp_path / "results" / "latest")
    measured = {
        (row["variant"], s["clip"], s["round"], s["wall_seconds"], s["error"])
        for row in run["results"]
        for s in row["samples"]
    }
    answers = [event for event in told if event["event"] == "answer"]
    names = ("variant", "clip", "round", "seconds", "error")
    assert {tuple(event[name] for name in names) for event in answers} == measured
    assert any("ValueError" in (event["error"] or "") for event in answers)
    (failure,) = [event for event in told if event["event"] == "failure"]
    assert failure["variant"] == "exits-at-load@cpu/float32"
    assert "code 7" in failure["error"]
    assert told[-1]["event"] == "close"
    assert told[-1]["done"] == told[-1]["calls"] >= len(answers)


def test_errors_are_events_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--backends", "fastr-whisper", "--log-format", "json"]) == 2
    (event,) = events(capfd)
    assert event["event"] == "error"
    assert "Did you mean 'faster-whisper'?" in event["message"]


def test_what_modules_warn_of_is_an_event(capfd: pytest.CaptureFixture[str]) -> None:
    with json_events.warnings_as_events():
        logging.getLogger("asrgate.harness.corpus.clips").warning("%s lasts longer", "clip \u2028 é")
    (event,) = events(capfd)
    assert (event["event"], event["message"]) == ("warning", "clip \u2028 é lasts longer")
    before = len(logging.getLogger().handlers)
    with json_events.warnings_as_events():
        assert len(logging.getLogger().handlers) == before + 1
    assert len(logging.getLogger().handlers) == before


def test_one_event_is_one_line_of_ascii(capfd: pytest.CaptureFixture[str]) -> None:
    json_events.emit("note", message="a\nb\u2028\x1b[31m é")
    said = capfd.readouterr().err
    assert said.isascii()
    assert said.count("\n") == 1
    assert json.loads(said)["message"] == "a\nb\u2028\x1b[31m é"


def test_every_key_and_event_is_documented() -> None:
    documented = set(re.findall(r"^(\w+) +\S", json_events.__doc__ or "", re.M))
    assert documented >= KEYS
    page = (ROOT / "docs" / "reports.md").read_text()
    for name in (*KEYS, *json_events.EVENTS):
        assert f"`{name}`" in page, name


def test_quiet_and_json_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--quiet", "--log-format", "json"])
    assert "not allowed with argument" in capsys.readouterr().err
