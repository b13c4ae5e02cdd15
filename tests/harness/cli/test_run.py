"""What a user of `asrgate run` meets: files, JSON, errors that keep the other results, interruptions."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_checkpoint import MULTILINGUAL, write_fake_checkpoint
from paths import ROOT
from tones import TEXTS

from asrgate.harness import record


def latest(tmp_path: Path) -> dict[str, Any]:
    return record.read(tmp_path / "results" / "latest")


def by_name(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["backend"]: row for row in run["results"]}


def test_run_leaves_its_files_and_latest(asrgate: Callable[..., int], tmp_path: Path) -> None:
    extra = tmp_path / "extra.md"
    assert asrgate("--backends", "twin", "--rounds", "2", "--output", str(extra)) == 0
    folder = tmp_path / "results" / "latest"
    assert folder.is_symlink()
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "samples.csv",
        "summary.csv",
        "report.md",
        "report.html",
    }
    run = latest(tmp_path)
    assert run["complete"]
    assert [len(row["samples"]) for row in run["results"]] == [2 * 5, 2 * 5]
    assert all(row["wer"]["wer"] == 0 for row in run["results"])
    with (folder / "samples.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 2 * 10
    assert extra.read_text() == (folder / "report.md").read_text()


def test_rounds_interleave_with_rotating_order(asrgate: Callable[..., int], tmp_path: Path) -> None:
    asrgate("--backends", "twin,prints-to-stdout", "--rounds", "3")
    orders = [entry["order"] for entry in latest(tmp_path)["rounds"]]
    assert sorted(map(sorted, orders)) == [sorted(orders[0])] * 3
    assert {order[0] for order in orders} == set(orders[0])


def test_json_is_one_document_and_nothing_else(
    asrgate: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert asrgate("--backends", "prints-to-stdout", "--rounds", "1", "--json") == 0
    printed = json.loads(capfd.readouterr().out)
    record.validate(printed)
    assert by_name(printed)["prints-to-stdout"]["status"] == "ok"


def test_spinning_thread_pool_is_not_taken_for_late_work(asrgate: Callable[..., int], tmp_path: Path) -> None:
    # two threads, so that numpy's OpenBLAS has one to spin
    asrgate("--backends", "uses-blas", "--rounds", "3", "--threads", "2")
    row = by_name(latest(tmp_path))["uses-blas"]
    assert row["integrity"]["late_work_seconds"] == 0
    assert row["gate"]["ranked"]


def test_no_texts_keeps_hashes_and_the_verdict(asrgate: Callable[..., int], tmp_path: Path) -> None:
    asrgate("--backends", "twin", "--rounds", "1", "--no-texts")
    run = latest(tmp_path)
    stored = "".join(path.read_text() for path in (tmp_path / "results" / "latest").iterdir())
    assert "apple" not in stored.replace("apples", "")
    assert all(sample["text"] is None for row in run["results"] for sample in row["samples"])
    assert by_name(run)["twin"]["gate"]["ranked"]
    same = {row["samples"][0]["text_sha256"] for row in run["results"]}
    assert len(same) == 1


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, spoken: Path, model: Path) -> tuple[int, dict[str, Any]]:
    """One run in which nearly everything breaks: (exit status, record)."""
    from asrgate.harness.cli import main

    results = tmp_path_factory.mktemp("broken")
    names = "twin,raises,aborts,killed-for-memory,hangs,exits-at-load,refuses-setting,not-installed,"
    names += "hostile-text,reports-nonsense"
    status = main(
        ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest", "--quiet"]
        + [
            "--backends",
            names,
            "--results",
            str(results),
            "--rounds",
            "2",
            "--timeout",
            "4",
            "--threads",
            "1",
        ]
    )
    return status, record.read(results / "latest")


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("raises", "ok", "ValueError: the | engine"),
        ("aborts", "error", "SIGABRT"),
        ("killed-for-memory", "error", "memory ran out"),
        ("hangs", "error", "no answer within 4 s"),
        ("exits-at-load", "error", "exited with code 7 while loading"),
        ("refuses-setting", "error", "cannot translate; choose --task transcribe"),
        ("reports-nonsense", "error", "sent -1.0 as the seconds of stage 'encode'"),
        ("not-installed", "unavailable", "`unobtainium` is missing"),
    ],
)
def test_failure_is_a_row_that_says_why(
    broken: tuple[int, dict[str, Any]], name: str, status: str, message: str
) -> None:
    row = by_name(broken[1])[name]
    assert row["status"] == status
    assert message in " ".join(row["gate"]["reasons"])
    assert not row["gate"]["ranked"]


def test_failures_cost_the_others_nothing(broken: tuple[int, dict[str, Any]]) -> None:
    status, run = broken
    rows = by_name(run)
    assert status == 1
    assert rows["honest"]["gate"]["ranked"]
    assert rows["twin"]["gate"]["ranked"]
    assert rows["not-installed"]["remedy"] == "pip install unobtainium"
    # killed on its seventh measured call: two were for warming up
    assert len(rows["killed-for-memory"]["samples"]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "fastr-whisper"], "Did you mean 'faster-whisper'?"),
        (["--backends", "honest@tpu"], "has no device 'tpu'; it has cpu"),
        (["--backends", "honest@cpu/int3"], "has no precision 'int3'; it has float32"),
        (["--backends", " , "], "--backends names no backend"),
        (["--model", "tiny.enn"], "tiny.en"),
        (["--manifest", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--normalizer", "whispr"], "whisper"),
        (["--where", "lang=xx"], "no clip has lang=xx; the clips have these values of 'lang': en"),
        (["--results", "/proc/none"], "/proc/none"),
        (["--output", "report.docx"], "docx"),
    ],
)
def test_bad_input_is_one_clear_error(
    asrgate: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    base = [] if "--backends" in arguments else ["--backends", "twin"]
    if arguments[0] == "--manifest":
        from asrgate.harness.cli import main

        status = main(["run", *base, "--reference", "honest", *arguments])
    else:
        status = asrgate(*base, *arguments)
    said = capsys.readouterr().err
    assert status == 2
    assert message in said
    assert "Traceback" not in said


def test_where_selects_clips_by_a_manifest_field(
    asrgate: Callable[..., int], spoken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = spoken / "styles.jsonl"
    entries = [{"audio_filepath": "apples.wav", "text": "red apple white table", "style": "read"}]
    entries += [{"audio_filepath": "bridge.wav", "text": "stone river north summer cloud", "style": "song"}]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    try:
        assert asrgate("--backends", "twin", "--rounds", "1", "--where", "style=song", clips=manifest) == 0
        assert [clip["name"] for clip in latest(tmp_path)["clips"]] == ["bridge"]
        assert asrgate("--backends", "twin", "--where", "style=opera", clips=manifest) == 2
        assert "these values of 'style': read, song" in capsys.readouterr().err
    finally:
        manifest.unlink()


def test_bad_clip_is_named_before_anything_runs(
    asrgate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.wav").write_bytes(b"RIFF....WAVE not really")
    assert asrgate("--backends", "twin", clips=tmp_path / "clips") == 2
    assert "broken.wav" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    """A run left behind by a test that failed would keep all others from measuring."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def start_run(arguments: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "asrgate", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ.copy(),
    )
    STARTED.append(process)
    return process


def slow_arguments(spoken: Path, model: Path, results: Path) -> list[str]:
    base = ["--audio", str(spoken), "--model", str(model), "--results", str(results), "--threads", "1"]
    return [*base, "--reference", "honest", "--backends", "slow", "--rounds", "200", "--warmup", "0"]


def wait_for_round(results: Path, rounds: int) -> None:
    """Wait until a saved record holds so many rounds."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for path in results.glob("*/run.json"):
            if len(json.loads(path.read_text())["rounds"]) >= rounds:
                return
        time.sleep(0.1)
    raise AssertionError("the run did not get to its rounds in time")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_saves_what_was_measured(
    spoken: Path, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start_run(slow_arguments(spoken, model, tmp_path))
    wait_for_round(tmp_path, 1)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(number)
    _, said = process.communicate(timeout=280)
    assert process.returncode == 130, said
    assert "stopped by the user" in said
    run = record.read(tmp_path / "latest")
    assert not run["complete"]
    assert run["interrupted"]
    assert len(by_name(run)["slow"]["samples"]) >= 5
    assert not by_name(run)["slow"]["gate"]["ranked"]
    psutil.wait_procs(workers, timeout=200)
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)


def test_workers_die_with_a_killed_parent_and_its_rounds_stay(
    spoken: Path, model: Path, tmp_path: Path
) -> None:
    process = start_run(slow_arguments(spoken, model, tmp_path))
    wait_for_round(tmp_path, 1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=280)
    psutil.wait_procs(workers, timeout=200)
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)
    run = record.read(next(tmp_path.glob("*/run.json")))
    assert not run["complete"]
    assert by_name(run)["slow"]["samples"]


def test_second_run_is_refused_while_one_measures(
    asrgate: Callable[..., int],
    spoken: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = start_run(slow_arguments(spoken, model, tmp_path / "first"))
    try:
        wait_for_round(tmp_path / "first", 1)
        assert asrgate("--backends", "twin") == 2
        assert f"another run is measuring on this machine (process {first.pid})" in capsys.readouterr().err
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        assert asrgate("--backends", "twin") == 2, "another folder for temporary files is no other machine"
    finally:
        first.terminate()
        first.communicate(timeout=280)


def test_a_link_at_the_lock_is_not_followed(
    asrgate: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    monkeypatch.setenv("ASRGATE_LOCKS", str(tmp_path))
    (tmp_path / f"asrgate-{os.getuid()}.lock").symlink_to(precious)
    assert asrgate("--backends", "honest", "--rounds", "1") == 2
    assert "cannot open the lock" in capsys.readouterr().err
    assert precious.read_text() == "mine"


def test_full_disk_is_a_clear_error_and_keeps_the_last_save(
    asrgate: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, saves = os.fsync, []

    def fsync(descriptor: int) -> None:
        saves.append(descriptor)
        if len(saves) > 2:  # the start and the first round fit
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(record.os, "fsync", fsync)
    assert asrgate("--backends", "twin", "--rounds", "3") == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(record.os, "fsync", real)
    (folder,) = (tmp_path / "results").iterdir()
    kept = record.read(folder)
    assert len(kept["rounds"]) == 1
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_reference_is_added_and_can_be_left_out(asrgate: Callable[..., int], tmp_path: Path) -> None:
    asrgate("--backends", "twin", "--rounds", "1", "--no-reference")
    run = latest(tmp_path)
    assert [row["backend"] for row in run["results"]] == ["twin"]
    assert "honest@cpu/float32 is not in this run" in " ".join(run["results"][0]["gate"]["reasons"])


def test_parent_never_imports_an_engine(spoken: Path, model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from asrgate.harness.cli import main; "
        f"status = main({['run', '--audio', str(spoken), '--model', str(model), '--reference', 'honest']!r}"
        f" + {['--backends', 'twin', '--rounds', '1', '--quiet', '--results', str(tmp_path)]!r}); "
        "main(['list']); "
        "heavy = {'torch', 'ctranslate2', 'whisper', 'faster_whisper', 'max'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def polyglot(tmp_path: Path) -> Path:
    return write_fake_checkpoint(tmp_path / "polyglot.pt", n_vocab=MULTILINGUAL)


def test_engines_are_left_to_detect_the_language(
    asrgate: Callable[..., int],
    spoken: Path,
    polyglot: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = {"apples": "de", "chairs": "German", "bridge": "en", "letter": "nl"}
    lines = [
        {"audio_filepath": f"{name}.wav", "text": TEXTS[name], "lang": lang} for name, lang in told.items()
    ]
    lines.append({"audio_filepath": "window.wav", "text": TEXTS["window"]})
    folder = tmp_path / "told"
    shutil.copytree(spoken, folder)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ("--language", "Auto", "--model", str(polyglot), "--reference", "detects", "--rounds", "1")
    assert asrgate("--backends", "detects,honest", *options, clips=folder) == 0
    run = record.read(tmp_path / "results" / "latest")
    rows = {row["backend"]: row for row in run["results"]}
    assert rows["detects"]["language_id"]["right"] == 3 and rows["detects"]["language_id"]["clips"] == 4
    assert rows["detects"]["language_id"]["mistakes"] == [{"spoken": "nl", "detected": "en", "count": 1}]
    assert rows["detects"]["gate"]["ranked"]
    assert "does not say which language it detected" in " ".join(rows["honest"]["gate"]["reasons"])
    out = capsys.readouterr().out
    assert "lang ID %" in out and "75.00" in out
    assert "no language is named for 1 of 5 clips (window), so what engines detect" in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "is English-only and cannot detect a language; choose a multilingual --model"),
        (("--scenario", "offline"), "--language auto works with --scenario single-stream and server"),
    ],
)
def test_what_has_no_language_to_detect_is_refused(
    asrgate: Callable[..., int], capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert asrgate("--language", "auto", *options) == 2
    assert told in capsys.readouterr().err
