"""`--executor ray` on a real Ray on this machine: three actors, one killed while it works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import soundfile
import tones
from paths import ROOT

from asrgate.harness import record
from asrgate.harness.scoring import machines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine short clips, every third one with a word in its reference that nobody says."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(9):
        text = " ".join(tones.WORDS[number : number + 1 + number % 3])
        soundfile.write(folder / f"clip{number}.wav", tones.speak(text), tones.SAMPLE_RATE_HZ)
        (folder / f"clip{number}.txt").write_text(text if number % 3 else f"{text} paper")
    return folder


def arguments(clips: Path, model: Path, results: Path) -> list[str]:
    asked = ["run", "--audio", str(clips), "--model", str(model), "--reference", "honest", "--quiet"]
    asked += [
        "--backends",
        "waits-to-be-killed",
        "--rounds",
        "2",
        "--warmup",
        "0",
        "--threads",
        "1",
        "--json",
    ]
    return [*asked, "--results", str(results)]


def kill_the_actor_at_work(driver: psutil.Process, cache: Path) -> None:
    """Kill the process of an actor, and no other, while its engine is in a measured call.

    The engine waits there until it is killed, so the kill can come neither too early nor too late. There are
    no warm-up calls, so its first call is a measured one.
    """
    while not (held := list(cache.glob("held-*"))):
        assert driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE, "no engine was held"
        time.sleep(0.02)
    (pid,) = (int(path.name.removeprefix("held-")) for path in held)
    (actor,) = (
        parent
        for parent in psutil.Process(pid).parents()
        if parent.cmdline()[:1] and parent.cmdline()[0].startswith("ray::Actor")
    )
    actor.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(
    clips: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The records of one process and of three actors, one of them killed; what the latter run imported."""
    pytest.importorskip("ray", reason="needs ray")
    alone, divided, cache = (tmp_path_factory.mktemp(name) for name in ("alone", "divided", "cache"))
    local = subprocess.run(
        [sys.executable, "-m", "asrgate", *arguments(clips, model, alone)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    code = (
        "import sys; from asrgate.harness.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'ctranslate2', 'whisper', 'faster_whisper', 'max'}; "
        "print('imported', *heavy & set(sys.modules)); "
        "sys.exit(status)"
    )
    asked = [*arguments(clips, model, divided), "--executor", "ray", "--workers", "3"]
    (cache / "hold-one").touch()
    # Ray puts sockets there, whose names may be 107 bytes long
    environment = dict(os.environ, RAY_TMPDIR="/tmp", ASRGATE_CACHE=str(cache))
    with subprocess.Popen(
        [sys.executable, "-c", code, *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        try:
            kill_the_actor_at_work(psutil.Process(process.pid), cache)
            out, err = process.communicate(timeout=280)
        finally:
            process.kill()
    assert process.returncode == 0, err
    *document, imported = out.strip("\n").split("\n")
    return json.loads(local.stdout), json.loads("\n".join(document)), imported.split()[1:]


def test_a_killed_place_loses_no_clip_and_no_digit(runs: tuple[dict[str, Any], dict[str, Any], Any]) -> None:
    alone, run, _ = runs
    assert run["complete"]
    for row, expected in zip(run["results"], alone["results"], strict=True):
        assert [(s["round"], s["clip"]) for s in row["samples"]] == [
            (s["round"], s["clip"]) for s in expected["samples"]
        ]
        assert [s["text"] for s in row["samples"]] == [s["text"] for s in expected["samples"]]
        assert row["wer"] == expected["wer"]
        assert row["wer"]["wer"] > 0
        assert row["rtfx"]["audio_seconds"] == expected["rtfx"]["audio_seconds"]
        found, usual = (
            Counter(probe["kind"] for probe in result["integrity"]["probes"]) for result in (row, expected)
        )
        assert found["spliced"] == usual["spliced"] > 0
        assert found["dithered"] > 0, "on one machine the rounds themselves tell"
    assert machines.lost_calls(run) >= 1
    assert len(run["retries"]) == 1
    assert any("were lost with their process or machine" in warning for warning in run["warnings"])
    assert [(entry["actors"], entry["timed"]) for entry in run["hosts"]] == [(3, True)]
    assert run["host"]["host_class"] == alone["host"]["host_class"]
    record.validate(run)


def test_neither_the_leading_process_imports_an_engine_nor_a_local_run_ray(
    runs: tuple[Any, Any, list[str]], clips: Path, model: Path, tmp_path: Path
) -> None:
    assert runs[2] == []
    code = (
        "import sys; from asrgate.harness.cli import main; main(sys.argv[1:]); sys.exit('ray' in sys.modules)"
    )
    asked = [*arguments(clips, model, tmp_path), "--where", "none=absent", "--sample", "1", "--no-reference"]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], stdout=subprocess.DEVNULL, cwd=ROOT, check=False
    )
    assert done.returncode == 0


def test_nothing_is_left_running(runs: Any) -> None:
    """Neither Ray nor a worker outlives its run."""
    left = [p.cmdline() for p in psutil.Process().children(recursive=True) if p.is_running()]
    assert not [
        line for line in left if "raylet" in " ".join(line) or "asrgate.harness.worker.child" in line
    ], left
