"""The doctor: finds what would stop the default benchmark, names the remedy, and imports no engine itself."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from paths import ROOT

from asrgate import backends
from asrgate.backends import description
from asrgate.backends.base import BackendUnavailable
from asrgate.backends.checkpoints import catalog
from asrgate.harness.cli import doctor, doctor_checks
from asrgate.harness.cli.doctor_checks import FAIL, OK, WARN


class Engine:
    """A backend whose engine is a module of the standard library."""

    devices = {"cpu": ("float32",)}
    imports: tuple[str, ...] = ("json",)

    @classmethod
    def check(cls, device, precision):
        pass


@pytest.fixture
def registered(monkeypatch):
    """Make these the only backends; returns a function of name -> class."""

    def register(**classes):
        described = {name: description.of_class(name, found) for name, found in classes.items()}
        monkeypatch.setattr(backends, "names", lambda: list(classes))
        monkeypatch.setattr(backends, "describe", lambda name: described[name])
        monkeypatch.setattr(backends, "describe_all", lambda names: {name: described[name] for name in names})

    return register


@pytest.fixture
def healthy(registered, model, tmp_path, monkeypatch):
    """A machine on which the default benchmark can run."""
    registered(good=Engine)
    monkeypatch.setenv("ASRGATE_WEIGHTS", str(model.parent))
    return tmp_path / "results"


def lines(check, results=Path("results")):
    return list(dict(doctor_checks.CHECKS)[check](results))


def statuses(check, results=Path("results")):
    return [line[0] for line in lines(check, results)]


def call(*arguments):
    parser = ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["doctor", *arguments])
    return parsed.func(parsed)


def test_max_is_tried_out_where_it_is_installed(registered, monkeypatch):
    registered(good=Engine)
    assert lines("max") == [(OK, "not tested: the max backend cannot run here")]
    registered(max=Engine)
    for code, expected in (
        ("print('noise'); print('MAX 1 runs')", (OK, "MAX 1 runs")),
        ("raise RuntimeError('it is wrong')", WARN),
        ("import os; os.abort()", WARN),
    ):
        with monkeypatch.context() as patch:
            trouble_and_lines = doctor_checks._in_process(code, 30)
            patch.setattr(doctor_checks, "_in_process", lambda *_, found=trouble_and_lines: found)
            ((*line,),) = lines("max")
        assert (tuple(line) if line[0] == OK else line[0]) == expected
        if line[0] == WARN:
            assert line[1].startswith("MAX on cpu: ") and ("it is wrong" in line[1] or "SIGABRT" in line[1])
            assert "reinstall max" in line[2]


def test_a_healthy_machine_passes(healthy, capsys):
    assert call("--results", str(healthy)) == 0
    printed = capsys.readouterr().out
    assert "fail" not in printed
    for check, _ in doctor_checks.CHECKS:
        assert f"{check}: " in printed
    assert not healthy.exists()


def test_json_says_the_same(healthy, capsys):
    assert call("--json", "--results", str(healthy)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is True
    assert {finding["check"] for finding in found["findings"]} == {name for name, _ in doctor_checks.CHECKS}
    assert all(set(finding) == {"check", "status", "detail", "remedy"} for finding in found["findings"])


def test_a_failure_is_exit_status_1_with_its_remedy(healthy, registered, capsys):
    registered()
    assert call("--results", str(healthy)) == 1
    printed = capsys.readouterr().out
    assert "fail  engines: no engine can run here\n      -> pip install" in printed


def test_a_check_that_breaks_is_a_finding(monkeypatch, tmp_path):
    def broken(results):
        yield OK, "so far so good"
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(doctor, "CHECKS", (("broken", broken), ("python", doctor_checks._python)))
    found = doctor.examine(tmp_path)
    assert [finding.status for finding in found] == [FAIL, OK]
    assert "ZeroDivisionError: oops" in found[0].detail


def test_one_broken_engine_does_not_stop_the_rest(registered):
    class Missing(Engine):
        imports = ("json", "no_such_engine")

    class NoDevice(Engine):
        @classmethod
        def check(cls, device, precision):
            raise BackendUnavailable("no GPU", "buy one")

    registered(good=Engine, missing=Missing, nodevice=NoDevice)
    found = lines("engines")
    assert found[0][0] == OK
    assert found[1][0] == WARN
    assert "No module named 'no_such_engine'" in found[1][1]
    assert found[2] == (WARN, "nodevice: no GPU", "buy one")
    assert len(found) == 3

    registered(missing=Missing, nodevice=NoDevice)
    assert statuses("engines") == [WARN, WARN, FAIL]


def test_an_engine_that_crashes_or_hangs_is_told_apart(registered, tmp_path, monkeypatch):
    (tmp_path / "crashing_engine.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    (tmp_path / "hanging_engine.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "was killed by SIGILL" in doctor_checks._import_trouble(["crashing_engine"])
    monkeypatch.setattr(doctor_checks, "IMPORT_SECONDS", 0.5)
    assert "took more than" in doctor_checks._import_trouble(["hanging_engine"])


def test_every_codec_is_really_decoded(monkeypatch):
    assert lines("codecs") == [(OK, "wav, flac, mp3, ogg, opus, m4a can be decoded")]
    whole = doctor_checks.audio.decode

    def half(path):
        samples = whole(path)
        return samples[: len(samples) // 2] if path.suffix == ".ogg" else samples

    monkeypatch.setattr(doctor_checks.audio, "decode", half)
    found = lines("codecs")
    assert found[0][:2] == (FAIL, "ogg decodes wrongly")
    assert found[1] == (OK, "wav, flac, mp3, opus, m4a can be decoded")


def test_checkpoints_are_verified(healthy, model, monkeypatch, tmp_path):
    assert set(statuses("checkpoints")) == {OK}
    assert any(model.stem in line[1] for line in lines("checkpoints"))

    bad = tmp_path / "weights"
    bad.mkdir()
    (bad / "own.pt").write_bytes(b"not a checkpoint")
    monkeypatch.setenv("ASRGATE_WEIGHTS", str(bad))
    assert WARN in statuses("checkpoints")

    (bad / "tiny.en.pt").write_bytes(model.read_bytes())  # another model under the default's name
    found = [line for line in lines("checkpoints") if line[0] == FAIL]
    assert len(found) >= 1
    assert "tiny.en" in found[0][1]


def test_no_checkpoint_at_all_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("ASRGATE_WEIGHTS", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(catalog, "catalogue", dict)
    ((status, _, remedy),) = lines("checkpoints")
    assert status == FAIL
    assert remedy.startswith("asrgate weights fetch tiny.en")


def test_a_wrong_weights_variable_is_a_finding(monkeypatch, tmp_path):
    monkeypatch.setenv("ASRGATE_WEIGHTS", str(tmp_path / "gone"))
    monkeypatch.setattr(doctor, "CHECKS", (("checkpoints", doctor_checks._checkpoints),))
    found = doctor.examine(tmp_path)
    assert [finding.status for finding in found] == [FAIL]
    assert "ASRGATE_WEIGHTS" in found[0].detail


def test_missing_clips_fail(monkeypatch, tmp_path):
    monkeypatch.setattr("asrgate.harness.corpus.clips.BUNDLED_MANIFEST", tmp_path / "manifest.jsonl")
    monkeypatch.setattr(doctor, "CHECKS", (("clips", doctor_checks._clips),))
    found = doctor.examine(tmp_path)
    assert [finding.status for finding in found] == [FAIL]


def test_results_that_cannot_be_written_fail(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    ((status, detail, remedy),) = lines("results", blocked / "results")
    assert status == FAIL
    assert "is not writable" in detail
    assert "--results" in remedy
    assert statuses("results", tmp_path / "new" / "folder") == [OK]
    assert os.listdir(tmp_path) == ["file"]


def test_a_nearly_full_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_checks, "SMALL_DISK_BYTES", 1 << 62)
    assert statuses("results", tmp_path) == [WARN]


def test_a_busy_or_throttled_machine_is_a_warning(monkeypatch):
    calm = {"governor": "performance", "memory_bytes": 64 << 30, "memory_limit_bytes": None}
    described = {**calm, "host_class": "x", "logical_cores": 4}
    monkeypatch.setattr(doctor_checks.environment, "describe", lambda: described)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    assert statuses("machine") == [OK]
    described["governor"] = "powersave"
    described["memory_limit_bytes"] = 2 << 30
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.1, 0.1))
    assert statuses("machine") == [OK, WARN, WARN, WARN]


def test_cache_sizes_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    assert doctor_checks._size_bytes(tmp_path) == 1000
    assert set(statuses("caches")) == {OK}


@pytest.mark.slow
def test_engines_stay_out_of_this_process():
    code = (
        "import sys; from pathlib import Path; from asrgate.harness.cli import doctor, doctor_checks;"
        # this check starts a process, which is slow with real engines
        "doctor_checks._import_trouble = lambda modules: None;"
        "doctor.examine(Path('results'));"
        "print([m for m in ('torch', 'whisper', 'ctranslate2', 'faster_whisper') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
