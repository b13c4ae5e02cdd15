"""A run that is killed goes on: nothing lost, nothing measured twice, times of two attempts never mixed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of
from paths import ROOT

from asrgate.harness import record
from asrgate.harness.runner import journal
from asrgate.harness.runner.journal import JournalError
from asrgate.harness.scoring import gate, score, timed_samples

KILLS = 10
USUAL_KILLS_OF_EACH = 4
MANY = int(os.environ.get("ASRGATE_KILLS", "0"))  # more than usual, and at other moments each time
KILLS_OF_EACH = MANY or USUAL_KILLS_OF_EACH  # with each signal
SEED = random.randrange(1 << 30) if MANY else 7
ENDING = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT")  # that a run ends of by itself
ROUNDS = 60  # of a run that is killed with every signal

# Imports once and forks for each attempt: what is killed is a process like any other, and starts at once.
# Before each kill it waits for further samples, or for a time that may end before the first.
DRIVER = """
import json, os, pathlib, random, signal, sys, time
from asrgate.backends import temporary
from asrgate.harness.cli import main
results, rng, startups = pathlib.Path(sys.argv[1]), random.Random(int(sys.argv[2])), float(sys.argv[3])
names, arguments, found = sys.argv[4].split(","), ["run", *sys.argv[5:], "--results", str(results)], []
fresh = arguments
place = pathlib.Path(os.environ["TMPDIR"])

def attempt(arguments):
    child = os.fork()
    if child == 0:
        sys.exit(main(arguments))
    return child

def lines():
    return sum((path.read_bytes().count(b'{"sample"') for path in results.glob("2*/journal.jsonl")), 0)

def folders():
    return sorted(path.name for path in place.glob(temporary.PREFIX + "*") if path.is_dir())

def alive():
    there, mark = 0, f"TMPDIR={place}/{temporary.PREFIX}".encode()
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            there += mark in path.read_bytes()  # nothing, if it has ended and its parent has not looked
        except OSError:
            pass
    return there

def ended(child, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None

while len(found) < len(names):
    name, child, status = names[len(found)], attempt(arguments), None
    if lines() and rng.random() < startups:
        status = ended(child, rng.uniform(0, 1.5))
    else:
        wanted = lines() + rng.randint(0, 9)
        while status is None and lines() < wanted:
            status = ended(child, 0.002)
        time.sleep(rng.uniform(0, 0.04))
    if status == 0 and startups:
        arguments = fresh  # it came to its end; the next one is killed
        continue
    assert status is None, f"the run ended with {status} before kill {len(found)}"
    before = alive()
    os.kill(child, getattr(signal, name))
    status = ended(child, 600)  # a report is written, which takes a minute on a busy machine
    assert status is not None, f"{name} at kill {len(found)} did not end the run"
    after = alive()
    deadline = time.monotonic() + 300
    while name == "SIGKILL" and after and time.monotonic() < deadline:
        time.sleep(0.01)  # its workers are told by the system
        after = alive()
    runs = [path.parent for path in results.glob("2*/journal.jsonl")]
    kept, arguments = [], fresh
    if runs:
        arguments = ["run", "--resume", str(runs[0]), "--quiet"]
        whole = runs[0].joinpath("journal.jsonl").read_text().rpartition("\\n")[0].splitlines()
        kept = [line for line in map(json.loads, whole) if "sample" in line]
    run = runs[0].name if runs else None
    found.append(
        dict(name=name, status=status, before=before, after=after, folders=folders(), run=run, kept=kept)
    )
print(json.dumps(found), flush=True)
status = ended(attempt(arguments), 900)
print(json.dumps(dict(after=alive(), folders=folders())), flush=True)
sys.exit(status)
"""


def killed(asked: list[str], results: Path, names: list[str], startups: float) -> tuple[list[Any], Any]:
    """Kill a run with these signals, each time in its next attempt, and let it come to its end.

    Args:
        startups: share of the kills at any moment from an attempt's start; the others wait for samples.

    Returns:
        What the driver found after each kill, and at the end.
    """
    place = results / "tmp"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(results), str(SEED), str(startups), ",".join(names), *asked],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {"TMPDIR": str(place)},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    after_kill = [line for line in done.stdout.splitlines() if line.startswith(("[{", '{"after'))]
    found, end = map(json.loads, after_kill)
    assert len(found) == len(names)
    return found, end


def measured_of(run: record.Run) -> dict[tuple[str, int, str], Any]:
    return {
        (row["variant"], sample["round"], sample["clip"]): sample
        for row in run["results"]
        for sample in row["samples"]
    }


def assert_nothing_lost(found: list[Any], run: record.Run) -> None:
    """What was on the disk at any kill is in the record as it was then."""
    measured = measured_of(run)
    assert sum(len(row["samples"]) for row in run["results"]) == len(measured)
    lines = [line for kill in found for line in kill["kept"]]
    assert lines
    for line in lines:
        of = measured[line["variant"], line["sample"]["round"], line["sample"]["clip"]]
        assert {name: of[name] for name in ("wall_seconds", "text", "attempt")} == {
            name: line["sample"][name] for name in ("wall_seconds", "text", "attempt")
        }


def asked_for(spoken: Path, model: Path, rounds: int) -> list[str]:
    asked = ["--audio", str(spoken), "--model", str(model), "--reference", "honest", "--backends", "twin"]
    return asked + ["--rounds", str(rounds), "--warmup", "0", "--threads", "1", "--quiet"]


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_duplicate_nothing(spoken: Path, model: Path, tmp_path: Path) -> None:
    found, _ = killed(asked_for(spoken, model, 9), tmp_path, ["SIGKILL"] * KILLS, 0.0)
    (folder,) = (path.parent for path in tmp_path.glob("2*/run.json"))
    assert not list(folder.glob(".*")), "what a killed writer left is swept"
    run = record.read(folder)
    assert run["complete"]
    assert not (folder / journal.NAME).exists()
    assert (tmp_path / "latest").resolve() == folder

    assert_nothing_lost(found, run)
    assert sum(len(kill["kept"]) for kill in found) > 5 * KILLS
    assert len(measured_of(run)) == 2 * 9 * 5
    assert sorted(entry["round"] for entry in run["rounds"]) == list(range(9))
    assert [attempt["number"] for attempt in run["attempts"]] == list(range(len(run["attempts"])))
    assert all(s["started_at"] <= s["finished_at"] and s["host"]["cpu"] for s in run["attempts"])
    assert any(f"measured in {len(run['attempts'])} attempts" in warning for warning in run["warnings"])
    for row in run["results"]:
        assert row["wer"]["wer"] == 0
        of_attempt = Counter(sample["attempt"] for sample in row["samples"])
        (timed,) = {sample["attempt"] for sample in row["samples"] if sample["timed"]}
        assert row["latency"]["count"] == of_attempt[timed] < len(row["samples"])


@pytest.mark.slow
@pytest.mark.timeout(3600 * max(1, KILLS_OF_EACH // USUAL_KILLS_OF_EACH))
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of other processes' environments")
def test_kills_with_each_signal_lose_nothing_and_leave_no_process_and_no_folder(
    spoken: Path, model: Path, tmp_path: Path
) -> None:
    names = [*ENDING, "SIGKILL"] * KILLS_OF_EACH
    print(f"seed {SEED}, {len(names)} kills")
    random.Random(SEED).shuffle(names)
    asked = asked_for(spoken, model, ROUNDS)
    asked[asked.index("twin")] = "honest"  # one worker suffices, and starts sooner
    found, end = killed(asked, tmp_path, names, 0.3)
    assert end == {"after": 0, "folders": []}
    runs = {path.parent.name: record.read(path.parent) for path in tmp_path.glob("2*/run.json")}
    for name in {kill["run"] for kill in found if kill["kept"]}:
        assert runs[name]["complete"] and len(measured_of(runs[name])) == ROUNDS * 5
        assert_nothing_lost([kill for kill in found if kill["run"] == name], runs[name])
        assert not list((tmp_path / name).glob(".*")), "what a killed writer left is swept"

    assert sum(kill["before"] > 0 for kill in found) > len(found) / 3, "workers are seen while they are there"
    assert [kill for kill in found if kill["after"]] == []
    earlier: dict[str, Any] = {"folders": [], "kept": [], "run": None}
    for kill in found:
        own = set(kill["folders"]) - set(earlier["folders"])
        if kill["name"] == "SIGKILL":
            assert len(own) <= 1 and kill["status"] == -signal.SIGKILL
        else:  # 0: it came when all was measured; the other: before there was anything to save
            assert not own and kill["status"] in (130, 0, -signal.Signals[kill["name"]]), kill["name"]
        if kill["run"] == earlier["run"] and len(kill["kept"]) > len(
            earlier["kept"]
        ):  # a start swept what an earlier one left
            assert not set(kill["folders"]) & set(earlier["folders"])
        earlier = kill


def in_two_attempts(rounds_of_first: int = 3, rounds: int = 4) -> record.Run:
    """A scored run whose first attempt measured at its pace and whose second one ten times as slow."""
    run = make_run(rounds=rounds)
    facts = {"versions": run["versions"], "started_at": "2026", "finished_at": "2026"}
    slower = run["host"] | {"cpu": "Imaginary 1"}
    run["attempts"] = [{"number": n, "host": host, **facts} for n, host in enumerate((run["host"], slower))]
    for row in run["results"]:
        for sample in row["samples"]:
            sample["attempt"] = int(sample["round"] >= rounds_of_first)
            if sample["attempt"]:
                sample["wall_seconds"] *= 10
    timed_samples.settle(run)
    score.score(run, replicates=100)
    gate.judge(run)
    record.validate(run)
    return run


@pytest.mark.parametrize(("rounds_of_first", "timed", "calls"), [(3, 0, 3 * 6), (1, 1, 3 * 6)])
def test_speed_is_of_the_attempt_with_most_rounds(rounds_of_first: int, timed: int, calls: int) -> None:
    run = in_two_attempts(rounds_of_first)
    alone = make_run(rounds=4)
    for row in run["results"]:
        walls = [s["wall_seconds"] for s in row["samples"] if s["attempt"] == timed]
        assert row["latency"]["count"] == len(walls) == calls
        assert row["rtfx"]["wall_seconds"] == pytest.approx(sum(walls))
        assert row["latency"]["min_seconds"] == min(walls)
    assert run["host"]["cpu"] == ("Imaginary 9000", "Imaginary 1")[timed]
    assert result_of(run, REFERENCE)["wer"]["clips"] == len(alone["clips"])
    said = " ".join(run["warnings"])
    assert f"come from attempt {timed + 1} alone (3 of 4 rounds)" in said
    assert "changed between attempt 1 and attempt 2: cpu Imaginary 9000 then, Imaginary 1 now" in said


def test_reports_divide_no_mixed_times() -> None:
    from asrgate.harness.report import tables
    from asrgate.harness.scoring import slices

    run = in_two_attempts()
    (row,) = (r for r in slices.rows(run, ["lang"]) if r["variant"] == REFERENCE)
    assert row["rtfx"] == pytest.approx(result_of(run, REFERENCE)["rtfx"]["rtfx"])
    header, *lines = tables.samples(run).splitlines()
    places = [header.split(",").index(name) for name in ("round", "attempt", "timed")]
    found = {tuple(line.split(",")[place] for place in places) for line in lines}
    assert found == {("0", "0", "True"), ("1", "0", "True"), ("2", "0", "True"), ("3", "1", "False")}


def test_a_row_without_a_whole_round_in_the_timed_attempt_is_not_ranked() -> None:
    run = in_two_attempts()
    row = result_of(run, VARIANTS[1])
    assert row["gate"]["ranked"] or "whole round" not in " ".join(row["gate"]["reasons"])
    for sample in row["samples"]:
        if sample["clip"] == run["clips"][0]["name"]:
            sample["attempt"] = 1
    run["warnings"] = []
    timed_samples.settle(run)
    score.score(run, replicates=100)
    gate.judge(run)
    assert "no complete round in the timed session" in " ".join(row["gate"]["reasons"])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, spoken: Path, model: Path) -> Path:
    """The folder of a run that ended in its second round's last line, as a disk that fills up ends it."""
    return stopped_in(tmp_path_factory.mktemp("stopped"), spoken, model, "twin")


def stopped_in(results: Path, spoken: Path, model: Path, variant: str) -> Path:
    from asrgate.harness.cli import main

    def full(self: journal.Journal, kind: str, value: Any, **beside: Any) -> None:
        if kind == "round" and value["round"] == 1:
            raise record.RecordError("the disk is full")
        add(self, kind, value, **beside)

    add = journal.Journal.add
    asked = ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest", "--quiet"]
    asked += ["--backends", variant, "--rounds", "3", "--threads", "1", "--results", str(results)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "add", full)
        assert main(asked) == 2
    (folder,) = results.iterdir()
    return folder


@pytest.fixture
def cut_off(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run's folder, to go on with."""
    return shutil.copytree(stopped, tmp_path / "results" / stopped.name)


def resumed(*arguments: str) -> int:
    from asrgate.harness.cli import main

    return main(["run", "--resume", *arguments])


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [sample for row in record.read(folder)["results"] for sample in row["samples"]]


def test_a_torn_last_line_is_measured_again(cut_off: Path) -> None:
    path = cut_off / journal.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    assert sum(line.startswith(b'{"sample"') for line in lines) == 2 * 2 * 5
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    (cut_off / ".run.json.ab_d3fgh").write_text("{")
    (cut_off / ".mine").write_text("kept")
    assert resumed(str(cut_off), "--quiet") == 0
    assert [found.name for found in cut_off.glob(".*")] == [".mine"], "what a killed writer left is swept"
    samples = samples_of(cut_off)
    assert len(samples) == 2 * 3 * 5
    assert Counter(sample["attempt"] for sample in samples) == {0: 19, 1: 11}
    report = (cut_off / "report.md").read_text()
    assert "measured in 2 attempts" in report


def test_what_a_power_cut_leaves_of_a_file_is_tolerated_at_its_end_only(cut_off: Path) -> None:
    path = cut_off / journal.NAME
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 512 + b"\n" + b"\0" * 100)
    assert journal.read(cut_off).size_bytes == len(whole)
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{torn\n", *lines[4:]]))
    with pytest.raises(JournalError, match=r"line 5 of .* is damaged and other lines follow it"):
        journal.read(cut_off)
    path.write_bytes(b'{"sam')
    with pytest.raises(JournalError, match="contains no plan"):
        journal.read(cut_off)


def test_a_variant_that_failed_stays_failed(cut_off: Path) -> None:
    with (cut_off / journal.NAME).open("a") as file:
        failure = {"status": "error", "error": "the worker was killed by SIGSEGV", "remedy": None}
        file.write(json.dumps({"failure": failure, "variant": "twin@cpu/float32", "at": "2026"}) + "\n")
    assert resumed(str(cut_off), "--quiet") == 1
    rows = {row["backend"]: row for row in record.read(cut_off)["results"]}
    assert rows["twin"]["error"] == "the worker was killed by SIGSEGV"
    assert len(rows["twin"]["samples"]) == 10
    assert len(rows["honest"]["samples"]) == 15


def test_a_run_of_paths_that_are_not_utf8_goes_on(spoken: Path, model: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9 \xff")
    clips = shutil.copytree(spoken, odd / "clips")
    checkpoint = Path(shutil.copy(model, odd / os.fsdecode(b"\xfe.pt")))
    folder = stopped_in(odd / "results", clips, checkpoint, "honest")
    argv = json.loads((folder / journal.NAME).read_text().splitlines()[0])["argv"]
    assert {"hex": os.fsencode(clips).hex()} in argv and "run" in argv
    assert journal.read(folder).head["argv"][2] == str(clips)
    assert resumed(str(folder), "--quiet") == 0
    run = record.read(folder)
    assert run["complete"] and len(samples_of(folder)) == 3 * 5
    assert len(run["attempts"]) == 2
    assert not (folder / journal.NAME).exists()


def rewrite_head(folder: Path, **parts: Any) -> None:
    first, *rest = (folder / journal.NAME).read_text().splitlines(keepends=True)
    head = json.loads(first)
    for name, value in parts.items():
        head["plan"][name] = head["plan"][name] | value if isinstance(value, dict) else value
    (folder / journal.NAME).write_text("".join([json.dumps(head) + "\n", *rest]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "a" * 64}, "weights: tensors aaaaaaaaaaaa… then"),
        ({"clips": {"apples": ["b" * 64, "en", None]}}, "clips changed: apples"),
        ({"clips": {"pears": ["b" * 64, "en", None]}}, "clips gone: pears"),
        ({"settings": {"rounds": 4}}, "settings: rounds 4 then, 3 now"),
        ({"settings": {"decoding": {"beam_size": 5}}}, "settings: decoding {'beam_size': 5} then"),
        ({"variants": ["honest@cpu/float32"]}, "variants: honest@cpu/float32 then, honest@cpu/float32, twin"),
        ({"versions": {"torch": "0.1"}}, "versions: torch 0.1 then"),
    ],
)
def test_another_run_is_not_resumed(
    cut_off: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    rewrite_head(cut_off, **changes)
    before = (cut_off / journal.NAME).read_bytes()
    capsys.readouterr()
    assert resumed(str(cut_off)) == 2
    said = capsys.readouterr().err
    assert "cannot be resumed, because it would not be the same run" in said
    assert message in said
    assert (cut_off / journal.NAME).read_bytes() == before


def test_what_cannot_be_resumed_says_why(
    asrgate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], cut_off: Path
) -> None:
    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        assert resumed(*arguments) == 2
        return capsys.readouterr().err

    assert "there is no run at" in refusal(str(tmp_path / "nowhere"))
    assert "leave out --rounds, --slice" in refusal(str(cut_off), "--rounds", "5", "--slice", "lang")
    assert resumed(str(cut_off), "--quiet") == 0
    assert "is complete: there is nothing to resume" in refusal(str(cut_off))
    assert asrgate("--backends", "twin", "--rounds", "1", "--no-texts") == 0
    assert not any(path.name == journal.NAME for path in tmp_path.rglob("*"))


def test_a_full_disk_is_a_clear_error_of_the_journal(tmp_path: Path) -> None:
    opened = journal.Journal(tmp_path)
    os.close(opened._file)
    opened._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(record.RecordError, match=r"cannot write .*journal\.jsonl: No space left"):
        opened.add("round", {"round": 0})
    opened.close()
