"""Records and journals that no run wrote: one clear message each, and never a traceback or a wait."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from make_run import REFERENCE, make_run
from paths import ROOT

from asrgate.backends.base import AsrgateError
from asrgate.harness import record
from asrgate.harness.cli import main
from asrgate.harness.cli.run import _parser
from asrgate.harness.corpus import load_clips
from asrgate.harness.record import Run
from asrgate.harness.runner import journal, resume
from asrgate.harness.runner.journal import JournalError
from asrgate.harness.scoring import gate, score

STREAMED = ROOT / "results" / "published" / "tiny.en-streaming-cpu" / "run.json"


def scored() -> Run:
    run = make_run()
    score.score(run, replicates=20)
    gate.judge(run)
    return run


def store(run: Run, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    return folder


READERS: dict[str, Callable[[Path, Path], list[str]]] = {
    "report": lambda bad, good: ["report", str(bad)],
    "html": lambda bad, good: ["report", str(bad), "--format", "html"],
    "rescore": lambda bad, good: ["rescore", str(bad)],
    "table": lambda bad, good: ["table", str(good), str(bad)],
    "compare": lambda bad, good: ["compare", str(good), str(bad)],
    "history": lambda bad, good: ["history", str(bad)],
}


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "run.json")


def device(folder: Path) -> None:
    (folder / "run.json").symlink_to("/dev/zero")


def too_large(folder: Path) -> None:
    with (folder / "run.json").open("wb") as file:
        file.truncate(record.FILE_LIMIT_BYTES + 1)


def deep(folder: Path) -> None:
    (folder / "run.json").write_text('{"schema_version":' + "[" * 200_000 + "]" * 200_000 + "}")


def deep_valid(folder: Path) -> None:
    run = scored()
    run["clips"][0]["tags"] = {"a": "TAG"}
    (folder / "run.json").write_text(json.dumps(run).replace('"TAG"', "[" * 5000 + "]" * 5000))


def not_utf8(folder: Path) -> None:
    (folder / "run.json").write_bytes(b'{"schema_version": 3, "run_id": "\xff"}')


def infinite(folder: Path) -> None:
    (folder / "run.json").write_text('{"schema_version": 1e999}')


def digits(folder: Path) -> None:
    (folder / "run.json").write_text('{"schema_version": ' + "9" * 5000 + "}")


FILES = {
    pipe: "is not a regular file",
    device: "is not a regular file",
    too_large: "has 1,073,741,825 bytes, and at most",
    deep: "nested too deeply",
    deep_valid: "nested too deeply|violates its schema",
    not_utf8: "is not JSON",
    infinite: "1e999 is too large a number",
    digits: "is not JSON",
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_a_file_that_is_no_record_is_refused(
    make: Callable[[Path], None], command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = store(scored(), tmp_path / "good")
    bad = tmp_path / "bad"
    bad.mkdir()
    make(bad)
    assert main(READERS[command](bad, good)) == 2
    shown = capsys.readouterr().err
    with pytest.raises(AssertionError, match=FILES[make]):
        raise AssertionError(shown)
    assert shown.count("\n") == 1


def a_sample(run: Run) -> Any:
    return run["results"][0]["samples"][0]


DOCTORED: dict[str, Callable[[Run], object]] = {
    "sample of an unknown clip": lambda run: a_sample(run).update(clip="nobody"),
    "figure of an unknown clip": lambda run: run["results"][0]["wer"]["per_clip"][0].update(clip="nobody"),
    "two clips of one name": lambda run: run["clips"][1].update(name=run["clips"][0]["name"]),
    "two rows of one variant": lambda run: run["results"][1].update(variant=run["results"][0]["variant"]),
    "server without its terms": lambda run: run["settings"].update(scenario="server"),
    "server without its rows": lambda run: run["settings"].update(
        scenario="server",
        server={
            "rate_per_second": 1.0,
            "find_max_rate": False,
            "p99_seconds": None,
            "requests": 6,
            "limit_seconds": 60.0,
        },
    ),
    "streaming without chunks": lambda run: run["settings"].update(scenario="streaming"),
    "streaming without its rows": lambda run: run["settings"].update(scenario="streaming", chunk_seconds=0.5),
    "offline without its rows": lambda run: run["settings"].update(scenario="offline", batch_sizes=[1]),
    "RTFx 0": lambda run: run["results"][1]["rtfx"].update(rtfx=0),
    "RTF 0": lambda run: run["results"][1]["rtfx"].update(rtf=0),
    "seed 1e308": lambda run: run["settings"].update(seed=1e308),
    "round 1e30": lambda run: a_sample(run).update(round=1e30),
    "surrogate": lambda run: run["command"].append("\udc80"),
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("change", DOCTORED)
def test_a_doctored_record_is_refused_in_words(
    change: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scored()
    good = store(run, tmp_path / "good")
    record.read(good)
    DOCTORED[change](run)
    bad = store(run, tmp_path / "bad")
    with pytest.raises(record.RecordError):
        record.read(bad)
    assert main(READERS[command](bad, good)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_reading_lets_through_is_no_traceback_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "read", lambda path: {"results": []})
    assert main(["report", str(tmp_path)]) == 2
    assert "its values fit no run" in capsys.readouterr().err


def test_a_whole_number_written_with_a_point_is_one(tmp_path: Path) -> None:
    run = scored()
    run["settings"]["seed"] = 7.0
    a_sample(run)["round"] = 1.0
    back = record.read(store(run, tmp_path / "run"))
    assert type(back["settings"]["seed"]) is int
    assert type(a_sample(back)["round"]) is int
    assert type(back["results"][0]["rtfx"]["wall_seconds"]) is float


def test_history_names_bad_files_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(scored(), tmp_path / "good")
    for make in FILES:
        (tmp_path / make.__name__).mkdir()
        make(tmp_path / make.__name__)
    for number, change in enumerate(DOCTORED.values()):
        run = scored() | {"run_id": f"doctored{number}"}
        change(run)
        store(run, tmp_path / f"doctored{number}")
    assert main(["history", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert REFERENCE in shown.out
    left_out = shown.err.splitlines()
    assert len(left_out) == len(FILES) + len(DOCTORED)
    assert all(line.startswith("asrgate: left out: ") for line in left_out)


# --- journals -------------------------------------------------------------------------------------------


HEAD = {
    "plan": {"weights": None, "settings": {}, "variants": ["a@cpu/int8"], "clips": {}, "versions": {}},
    "run_id": "20260101-000000",
    "started_at": "2026-01-01T00:00:00+00:00",
    "argv": ["run", "--audio", "clips"],
    "journal_version": journal.VERSION,
    "at": "2026-01-01T00:00:00+00:00",
}
ATTEMPT = {"attempt": {"host": {}, "versions": {}}, "at": HEAD["at"]}
SAMPLE = {"variant": "a@cpu/int8", "sample": a_sample(make_run()), "at": HEAD["at"]}


def journal_of(folder: Path, *lines: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / journal.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def changed(line: Any, *place: str, value: object) -> Any:
    line = copy.deepcopy(line)
    part = line
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    return line


@pytest.mark.parametrize(
    "lines",
    [
        [changed(HEAD, "argv", value="run")],
        [changed(HEAD, "argv", value=["run", 7])],
        [changed(HEAD, "plan", value=[])],
        [changed(HEAD, "plan", "clips", value=None)],
        [changed(HEAD, "plan", "variants", value=[1])],
        [changed(HEAD, "run_id", value="../../etc")],
        [changed(HEAD, "started_at", value=3)],
        [changed(HEAD, "at", value=None)],
        [HEAD, {"attempt": {}, "at": HEAD["at"]}],
        [HEAD, {"attempt": 3, "at": HEAD["at"]}],
        [HEAD, {name: value for name, value in SAMPLE.items() if name != "variant"}],
        [HEAD, {name: value for name, value in SAMPLE.items() if name != "at"}],
        [HEAD, changed(SAMPLE, "sample", "text", value=5)],
        [HEAD, changed(SAMPLE, "sample", "round", value=-1)],
        [HEAD, changed(SAMPLE, "sample", "extra", value=1)],
        [HEAD, changed(SAMPLE, "variant", value=["a"])],
        [HEAD, {"round": {"round": "first"}, "at": HEAD["at"]}],
        [HEAD, {"failure": {"samples": []}, "variant": "a@cpu/int8", "at": HEAD["at"]}],
        [HEAD, {"host": {}, "at": HEAD["at"]}],
        [HEAD, {"retry": 1, "at": HEAD["at"]}],
        [HEAD, ATTEMPT, {}],
        [HEAD, ATTEMPT, {"at": HEAD["at"]}],
        [HEAD, ATTEMPT, HEAD],
        [HEAD, ATTEMPT, {**HEAD, "sample": {}}],
        [HEAD, {**ATTEMPT, "sample": 3}],
        [HEAD | ATTEMPT],
        [changed(HEAD, "argv", value=["run", {"hex": "6"}])],
        [changed(HEAD, "argv", value=["run", {"hex": 7}])],
    ],
    ids=lambda lines: json.dumps(lines[-1])[:60],
)
def test_a_doctored_journal_is_refused_in_words(
    lines: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = journal_of(tmp_path / "run", HEAD, SAMPLE)
    journal.read(folder)
    journal_of(folder, *lines)
    with pytest.raises(JournalError, match=rf"line {len(lines)} of .* is not as asrgate writes it"):
        journal.read(folder)
    assert main(["run", "--resume", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_half_of_a_surrogate_pair_in_a_journal_is_damage(tmp_path: Path) -> None:
    line = changed(HEAD, "plan", "weights", value="\ud800")
    with pytest.raises(JournalError, match=r"line 1 of .* is damaged"):
        journal.read(journal_of(tmp_path, line, SAMPLE))


@pytest.mark.parametrize("make", [pipe, device, too_large], ids=lambda make: make.__name__)
def test_a_journal_that_is_no_regular_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "run.json").rename(tmp_path / journal.NAME)
    with pytest.raises(AsrgateError, match=r"is not a regular file|at most"):
        journal.read(tmp_path)


def test_a_link_in_the_journals_place_is_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / journal.NAME).symlink_to(other)
    with pytest.raises(record.RecordError, match="cannot write"):
        journal.Journal(tmp_path)
    assert other.read_text() == "mine"


def resumed(folder: Path, argv: list[str], *now: str) -> Any:
    kept = journal.read(journal_of(folder, changed(HEAD, "argv", value=argv)))
    parser = _parser()
    return resume.arguments(kept, parser.parse_args(["run", "--resume", str(folder), *now]), parser)


def test_a_resumed_run_writes_only_below_its_folder(tmp_path: Path) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim.html"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    for path in (victim, folder / ".." / "victim.html", folder / "out" / "victim.html"):
        with pytest.raises(resume.ResumeError, match=r"was to write .*victim\.html, outside its folder"):
            resumed(folder, ["run", "--output", str(path)])
    assert resumed(folder, ["run", "--output", str(folder / "a.html")]).output == [folder / "a.html"]
    asked = resumed(folder, ["run", "--output", str(victim)], "--output", str(tmp_path / "b.html"))
    assert asked.output == [tmp_path / "b.html"]
    assert resumed(folder, ["run", "--results", "/etc"]).results == tmp_path


def test_a_resumed_run_joins_no_cluster_that_a_journal_names(tmp_path: Path) -> None:
    argv = ["run", "--executor", "ray", "--ray-address", "198.51.100.1:6379"]
    with pytest.raises(resume.ResumeError, match="pass --ray-address again"):
        resumed(tmp_path / "run", argv)
    assert resumed(tmp_path / "run", argv, "--ray-address", "auto").ray_address == "auto"


@pytest.mark.parametrize("argv", [["run", "--nothing"], ["run", "--help"], ["run", "--rounds", "0"]])
def test_arguments_that_run_does_not_take_are_refused(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(resume.ResumeError, match="has arguments that asrgate run does not take"):
        resumed(tmp_path / "run", argv)
    assert capsys.readouterr() == ("", "")


# --- manifests, paths and streams -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('"tag": 1e999', "1e999 is too large a number"),
        ('"tag": -1e999', "-1e999 is too large a number"),
        (f'"duration": {"9" * 400}', "9999… is too large a number"),
        (f'"tag": {"9" * 5000}', "9999… is too large a number"),
    ],
)
def test_a_number_too_large_in_a_manifest_is_refused(tmp_path: Path, field: str, message: str) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"audio_filepath": "a.wav", ' + field + "}\n")
    with pytest.raises(AsrgateError, match=rf"manifest\.jsonl:1: not JSON: .*{message}"):
        load_clips([path])


def asrgate(
    *arguments: str | bytes, stdout: str = "", cwd: Path = ROOT
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a shell of its own, with these redirections."""
    command = [b"sh", b"-c", b'"$@" ' + stdout.encode(), b"sh", sys.executable.encode(), b"-m", b"asrgate"]
    command += [part if isinstance(part, bytes) else part.encode() for part in arguments]
    return subprocess.run(command, capture_output=True, check=False, cwd=ROOT, timeout=300)


FAKE_RUN = ("--backends", "twin", "--reference", "honest", "--rounds", "1", "--warmup", "0", "--quiet")


def test_paths_that_are_not_utf8_can_be_measured(spoken: Path, model: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    os.mkdir(folder + b"/clips-\xff")
    for source in list(spoken.glob("apples.*")) + list(spoken.glob("bridge.*")):
        name = os.fsencode(source.name).replace(b"apples", b"apples-\xfe")
        with open(folder + b"/clips-\xff/" + name, "wb") as target:
            target.write(source.read_bytes())
    with av.open(str(spoken / "letter.wav")) as source, av.open(str(tmp_path / "letter.m4a"), "w") as target:
        stream = target.add_stream("aac", rate=16_000, layout="mono")
        for frame in source.decode(audio=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    os.rename(tmp_path / "letter.m4a", folder + b"/clips-\xff/letter-\xfe.m4a")
    with open(folder + b"/model-\xfd.pt", "wb") as target:
        target.write(model.read_bytes())
    done = asrgate(
        *("run", "--audio", folder + b"/clips-\xff", "--model", folder + b"/model-\xfd.pt"),
        *("--results", folder + b"/results-\xfc", *FAKE_RUN),
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    stored = Path(os.fsdecode(folder + b"/results-\xfc/latest"))
    run = record.read(stored)
    assert run["complete"] and len(run["clips"]) == 3
    assert {clip["audio_filepath"] for clip in run["clips"]} == {
        *("bridge.wav", "apples-\\udcfe.wav", "letter-\\udcfe.m4a")
    }
    assert run["checkpoint"]["name"] == "model-\\udcfd"
    assert asrgate("report", os.fsencode(stored)).returncode == 0
    assert asrgate("report", folder + b"/gone-\xfb").returncode == 2


def test_json_to_a_stdout_that_is_closed_is_refused_at_once(
    spoken: Path, model: Path, tmp_path: Path
) -> None:
    asked = ("run", "--audio", str(spoken), "--model", str(model), "--results", str(tmp_path), *FAKE_RUN)
    done = asrgate(*asked, "--json", stdout=">&-")
    assert done.returncode == 2
    assert done.stderr == b"asrgate: --json prints to stdout, which is closed; leave >&- out, or --json\n"
    assert not list(tmp_path.iterdir())
    assert asrgate(*asked, stdout=">&-").returncode == 0
    assert record.read(tmp_path / "latest")["complete"]


@pytest.mark.parametrize("reader", ["2>/dev/full", "2>&-", "2> >(head -c 100 >/dev/null)"])
@pytest.mark.slow
def test_a_reader_of_the_log_that_leaves_ends_no_run(
    reader: str, spoken: Path, model: Path, tmp_path: Path
) -> None:
    asked = ["run", "--audio", str(spoken), "--model", str(model), "--results", str(tmp_path), *FAKE_RUN[:-1]]
    command = ["bash", "-c", f'"$@" {reader}', "bash", sys.executable, "-m", "asrgate"]
    for log in ("json", "text"):
        done = subprocess.run(
            [*command, *asked, "--log-format", log],
            capture_output=True,
            check=False,
            cwd=ROOT,
            timeout=300,
        )
        assert done.returncode == 0, done
        assert record.read(tmp_path / "latest")["complete"]
        assert b"twin" in done.stdout
    assert len(list(tmp_path.glob("2*/run.json"))) == 2


FULL = "asrgate: cannot write to standard output: No space left on device"


def test_json_to_a_full_disk_is_one_error_and_the_run_is_stored(
    spoken: Path, model: Path, tmp_path: Path
) -> None:
    asked = ("run", "--audio", str(spoken), "--model", str(model), "--results", str(tmp_path), *FAKE_RUN)
    for more in (("--json",), ()):
        done = asrgate(*asked, *more, stdout=">/dev/full")
        assert done.returncode == 2
        folder = max(tmp_path.glob("2*"))
        said = f"{FULL}; the run is stored in {folder}/"
        assert done.stderr.decode().splitlines()[-1] == said
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
        assert record.read(folder)["complete"]
    assert len(list(tmp_path.glob("2*"))) == 2


@pytest.mark.parametrize(
    "command",
    [("report",), ("compare",), ("report", "--format", "json"), ("list",), ("--help",), ("run", "--help")],
)
def test_what_is_printed_to_a_full_disk_is_one_error(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = store(scored(), tmp_path / "run")
    before = (folder / "run.json").read_bytes()
    runs = {"report": [str(folder)], "compare": [str(folder), str(folder)]}.get(command[0], [])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        try:
            status = main([command[0], *runs, *command[1:]])
        except SystemExit as ended:  # argparse's, of --help
            status = ended.code
        monkeypatch.undo()
    assert status == 2
    assert capsys.readouterr().err == f"{FULL}\n"
    assert (folder / "run.json").read_bytes() == before
