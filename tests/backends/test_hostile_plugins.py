"""A plug-in's code never runs where the record is made, and one that is broken costs only itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from asrgate import backends
from asrgate.backends import description
from asrgate.backends.base import BackendUnavailable
from asrgate.harness import record
from asrgate.harness.cli import doctor_checks, list_backends, main

pytestmark = pytest.mark.slow

TOP = (
    "import os, sys, time\nfrom fake_engines import Honest\n"
    "from asrgate.backends.base import BackendUnavailable\n"
)
ENGINE = "class Engine(Honest):\n    pass\n"
CHECKS = "class Engine(Honest):\n    @classmethod\n    def check(cls, device, precision):\n        "
LIMIT_SECONDS = 5.0  # for those that hang; the others need a second on a busy machine
REASONS = {  # name -> (source, what is said of it)
    "fails": (
        "raise ValueError('no card')\n",
        "its module cannot be imported: ValueError: no card",
    ),
    "exits": ("raise SystemExit(4)\n", "its module cannot be imported: SystemExit: 4"),
    "interrupts": ("raise KeyboardInterrupt\n", "its module cannot be imported: KeyboardInterrupt"),
    "quits": ("os._exit(3)\n", "ended the process with exit status 3"),
    "crashes": ("os.abort()\n", "ended the process by SIGABRT"),
    "lacks-package": ("import no_such_package\n", "No module named 'no_such_package'"),
    "lacks-class": ("Engine = None\ndel Engine\n", "has no attribute 'Engine'"),
    "no-devices": ("class Engine:\n    imports = ()\n", "its class has no `devices`"),
    "no-imports": ("class Engine:\n    devices = {'cpu': ('float32',)}\n", "its class has no `imports`"),
    "list": (f"{ENGINE}    devices = ['cpu']\n", "its `devices` are a list"),
    "empty": (f"{ENGINE}    devices = {{}}\n", "it names no device"),
    "numbers": (f"{ENGINE}    devices = {{1: ('float32',)}}\n", "a device that is a int, not a string"),
    "text-precisions": (f"{ENGINE}    devices = {{'cpu': 'float32'}}\n", "the precisions of cpu are a str"),
    "many": (f"{ENGINE}    devices = {{str(i): ('f',) for i in range(10_000)}}\n", "more than 100 pairs"),
    "surrogate": (f"{ENGINE}    devices = {{'cpu': ('\\ud800',)}}\n", r"it names the precision '\ud800'"),
    "escape": (f"{ENGINE}    devices = {{'\\x1b[31m': ('f',)}}\n", r"it names the device '\x1b[31m'"),
    "long": (f"{ENGINE}    devices = {{'x' * 101: ('f',)}}\n", "a name has 1 to 100 printable"),
    "two-parts": (f"{ENGINE}    devices = {{'cpu/float32': ('f',)}}\n", "none of them @, / or a comma"),
    "odd-imports": (f"{ENGINE}    imports = ('os; evil()',)\n", "which is no module"),
    "raising-devices": (
        "class Meta(type):\n    @property\n    def devices(cls):\n        raise SystemExit(1)\n"
        "class Engine(Honest, metaclass=Meta):\n    pass\n",
        "its class cannot be read: SystemExit: 1",
    ),
    "check-raises": (f"{CHECKS}raise ValueError('odd')\n", "its check failed: ValueError: odd"),
    "check-exits": (f"{CHECKS}raise SystemExit('bye')\n", "its check failed: SystemExit: bye"),
    "check-quits": (f"{CHECKS}os._exit(5)\n", "ended the process with exit status 5"),
    "check-says-much": (f"{CHECKS}raise BackendUnavailable('x' * 10**6)\n", "xxx…"),
    "check-says-odd": (f"{CHECKS}raise BackendUnavailable('a\\ud800\\x1bb', 7)\n", r"a\ud800\x1bb"),
    "closes": (f"os.closerange(0, 100)\ntime.sleep(3600)\n{ENGINE}", "ended the process by SIGKILL"),
    "lies": ("os.write(3, b'[' * 100_000 + b'\\n')\ntime.sleep(3600)\n", "its answer is broken"),
    "lies-twice": (
        'os.write(3, b\'{"devices": {"cpu": 7}}\\n\')\ntime.sleep(3600)\n',
        "its answer is broken",
    ),
    "pours": ("while True:\n    os.write(3, b'x' * 65536)\n", "more than 4,194,304 bytes"),
}
HANGS = {
    "sleeps": "time.sleep(3600)\n",
    "check-sleeps": f"{CHECKS}time.sleep(3600)\n",
    "child-holds-pipe": "if os.fork() == 0:\n    time.sleep(3600)\nos._exit(3)\n",
}
WORKS = {
    "prints": f"print('x' * 10_000_000)\nprint('y' * 10_000_000, file=sys.stderr, flush=True)\n{ENGINE}",
    "patches-exit": f"os._exit = lambda status: None\n{ENGINE}",
    "two-devices": f"{ENGINE}    devices = {{'cpu': ['float32', 'int8'], 'cuda': ['float16']}}\n",
}


def install(folder: Path, sources: dict[str, str]) -> None:
    """Write a package for each source, all registered by one dist-info in the folder."""
    info = folder / "hostile-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    lines = ["[asrgate.backends]"]
    for name, source in sources.items():
        module = f"hostile_{name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(TOP + source)
        lines.append(f"{name} = {module}:Engine")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Install plug-ins from name -> source, for this process and those that it starts."""

    def installed(sources: dict[str, str]) -> None:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        install(folder, sources)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]))

    return installed


def results(folder: Path) -> dict[str, Any]:
    """Return a run's rows by variant."""
    return {row["variant"]: row for row in record.read(folder / "results" / "latest")["results"]}


# --- what is said of each of them --------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `asrgate list` says with all of them installed, by variant."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, {name: source for name, (source, _) in REASONS.items()} | WORKS)
    done = subprocess.run(
        [sys.executable, "-m", "asrgate", "list", "--json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"], str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return {row["variant"]: row for row in json.loads(done.stdout)}


@pytest.mark.parametrize("name", REASONS)
def test_a_broken_one_is_listed_with_its_reason(listed: dict[str, dict[str, Any]], name: str) -> None:
    (row,) = (row for variant, row in listed.items() if variant.partition("@")[0] == name)
    assert row["available"] is False
    assert REASONS[name][1] in row["reason"]
    assert len(row["reason"]) < 3000
    has_devices = name.startswith("check-") and name != "check-quits"
    assert row["variant"] == (f"{name}@cpu/float32" if has_devices else name)


def test_the_others_are_listed_as_ever(listed: dict[str, dict[str, Any]]) -> None:
    for variant in (
        *("honest@cpu/float32", "prints@cpu/float32", "patches-exit@cpu/float32"),
        *("two-devices@cpu/float32", "two-devices@cpu/int8", "two-devices@cuda/float16"),
    ):
        assert listed[variant]["available"] is True
    assert listed["not-installed@cpu/float32"]["remedy"] == "pip install unobtainium"
    assert next(iter(listed)) == "whisper-cpu@cpu/float32"


def test_those_that_hang_are_given_up_together(
    hostile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile(HANGS | {"fine": ENGINE})
    started = time.monotonic()
    found = description.of_plugins(
        {name: f"hostile_{name.replace('-', '_')}:Engine" for name in [*HANGS, "fine"]}, LIMIT_SECONDS
    )
    assert time.monotonic() - started < 2 * LIMIT_SECONDS + 5
    for name in ("sleeps", "check-sleeps"):
        assert isinstance(found[name], BackendUnavailable)
        assert f"took more than {LIMIT_SECONDS:g} s" in str(found[name])
    assert "exit status 3" in str(found["child-holds-pipe"])
    assert isinstance(found["fine"], description.Description)


def test_optional_methods_are_told(hostile: Callable[..., None]) -> None:
    methods = "".join(f"    {name} = print\n" for name in ("stream", "encoder_trace", "decision"))
    hostile({"offers": ENGINE + methods})
    found = backends.describe("offers")
    assert found.streams and found.traces_encoder and found.decides and not found.takes_batches
    assert backends.describe("batches").takes_batches and not backends.describe("honest").takes_batches


def test_one_is_described_once_in_a_process(hostile: Callable[..., None], tmp_path: Path) -> None:
    hostile({"counts": f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n')\n{ENGINE}"})
    for _ in range(3):
        backends.describe("counts")
        backends.every()
    assert len((tmp_path / "pids").read_text().split()) == 1


# --- where its code runs -----------------------------------------------------------------------------


def test_no_command_imports_it(
    hostile: Callable[..., None],
    asrgate: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noted = tmp_path / "pids"
    note = f"open({str(noted)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    hostile({"notes": f"{note}{CHECKS}{note}"})
    assert main(["list"]) == 0
    monkeypatch.setattr(doctor_checks, "_import_trouble", lambda modules: None)  # a minute, of all engines
    assert list(doctor_checks._engines(tmp_path))
    for scenario in ("single-stream", "offline"):
        assert asrgate("--backends", "notes", "--rounds", "1", "--scenario", scenario) == 0
    assert main(["debug-encoder", "--backend", "notes"]) == 2
    assert "its class has no method encoder_trace" in capsys.readouterr().err
    pids = set(noted.read_text().split())
    assert len(pids) == 3, "one that described it and two workers"
    assert str(os.getpid()) not in pids
    assert "hostile_notes" not in sys.modules


def test_one_that_patches_the_gate_changes_no_verdict(
    hostile: Callable[..., None], asrgate: Callable[..., int], tmp_path: Path
) -> None:
    patch = (
        "from asrgate.harness.scoring import gate\n"
        "def judge(run, *rest):\n"
        "    for row in run['results']:\n"
        "        row['gate'] = {'ranked': True, 'reasons': []}\n"
        "gate.judge = judge\n"
        "from fake_engines import StopsEarly\n"
        "class Engine(StopsEarly):\n    pass\n"
    )
    hostile({"patches-gate": patch})
    assert main(["list"]) == 0
    asrgate("--backends", "patches-gate,stops-early", "--rounds", "2")
    rows = results(tmp_path)
    for name in ("patches-gate", "stops-early"):
        assert rows[f"{name}@cpu/float32"]["gate"]["ranked"] is False
        assert rows[f"{name}@cpu/float32"]["gate"]["reasons"]
    assert rows["honest@cpu/float32"]["gate"]["ranked"] is True


# --- what it costs the others ------------------------------------------------------------------------


def test_a_run_that_does_not_name_a_broken_one_is_unaffected(
    hostile: Callable[..., None], asrgate: Callable[..., int], tmp_path: Path
) -> None:
    hostile({"quits": "os._exit(3)\n", "sleeps": HANGS["sleeps"]})
    assert asrgate("--backends", "twin", "--rounds", "1") == 0
    assert set(results(tmp_path)) == {"honest@cpu/float32", "twin@cpu/float32"}


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "streaming"])
def test_a_run_that_names_a_broken_one_has_an_unavailable_row_of_it(
    hostile: Callable[..., None], asrgate: Callable[..., int], tmp_path: Path, scenario: str
) -> None:
    hostile({"quits": "os._exit(3)\n", "check-exits": f"{CHECKS}raise SystemExit('bye')\n"})
    status = asrgate(
        *("--backends", "quits,quits@cpu/int8,check-exits,twin", "--rounds", "1", "--scenario", scenario)
    )
    assert status == 1, "what was asked for by name could not be measured"
    rows = results(tmp_path)
    for variant in ("quits@unknown/unknown", "quits@cpu/int8"):
        assert rows[variant]["status"] == "unavailable"
        assert "exit status 3" in rows[variant]["error"]
    assert rows["check-exits@cpu/float32"]["status"] == "unavailable"
    assert "SystemExit: bye" in rows["check-exits@cpu/float32"]["error"]
    assert rows["twin@cpu/float32"]["status"] == "ok"


def test_a_run_of_nothing_else_is_one_clear_error(
    hostile: Callable[..., None], asrgate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    hostile({"quits": "os._exit(3)\n"})
    assert asrgate("--backends", "quits", "--no-reference") == 2
    error = capsys.readouterr().err
    assert "this machine cannot run any of the requested backends" in error
    assert "exit status 3" in error and "Traceback" not in error
    assert asrgate("--backends", "twin", "--reference", "quits") == 2
    error = capsys.readouterr().err
    assert "--reference 'quits' cannot run here" in error and "Traceback" not in error


def test_the_doctor_warns_of_a_broken_one_alone(
    hostile: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checks, "_import_trouble", lambda modules: None)
    hostile({"quits": "os._exit(3)\n"})
    lines = list(doctor_checks._engines(tmp_path))
    (line,) = (line for line in lines if line[1].startswith("quits: "))
    assert line[0] == doctor_checks.WARN and "exit status 3" in line[1]
    assert any(line[0] == doctor_checks.OK and line[1].startswith("honest: ") for line in lines)


def test_a_hanging_one_is_listed_after_the_limit(
    hostile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(description, "LIMIT_SECONDS", LIMIT_SECONDS)
    hostile({"sleeps": HANGS["sleeps"]})
    rows = {row["variant"]: row for row in list_backends.rows()}
    assert "took more than" in rows["sleeps"]["reason"]
    assert rows["honest@cpu/float32"]["available"] is True
