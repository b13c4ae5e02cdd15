"""The example of a plug-in, built and installed as a user would; and report formats of other packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from make_run import make_run
from paths import ROOT

from asrgate.harness import record, report
from asrgate.harness.cli import main
from asrgate.harness.report.formats import FormatError, format_of
from asrgate.harness.scoring import gate, score
from asrgate.harness.worker import sandbox

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "plugin"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example: building leaves nothing in the checkout."""
    return shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("example") / "plugin")


@pytest.fixture(scope="module")
def installed(source: Path) -> Path:
    """The folder that the example is installed in, by pip and without a network."""
    target = source.parent / "site"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--disable-pip-version-check", "--no-index", "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def environment(installed: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}


def asrgate(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asrgate", *arguments],
        env=environment(installed),
        cwd=installed.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    run = make_run()
    score.score(run, "whisper")
    gate.judge(run)
    record.write(run, tmp_path / "run.json")
    return tmp_path / "run.json"


def test_example_passes_its_own_tests(source: Path, installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        env=environment(installed),
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_its_backend_is_listed_after_ours(installed: Path) -> None:
    listed = asrgate(installed, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = {row["variant"]: row["available"] for row in json.loads(listed.stdout)}
    assert rows["morse@cpu/float32"] is True
    assert next(iter(rows)) == "whisper-cpu@cpu/float32"


def test_its_format_can_be_asked_for_by_name_and_by_ending(installed: Path, stored: Path) -> None:
    printed = asrgate(installed, "report", str(stored), "--format", "tsv")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("rank\tvariant\t")
    written = stored.with_name("Table.TSV")
    assert asrgate(installed, "report", str(stored), "--output", str(written)).returncode == 0
    assert written.read_text() == printed.stdout
    unknown = asrgate(installed, "report", str(stored), "--format", "tvs")
    assert unknown.returncode == 2
    assert "Did you mean 'tsv'?" in unknown.stderr and "html" in unknown.stderr


# --- report formats of other packages, good and bad -----------------------------------------------------


@pytest.fixture
def formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with formats that work, lie, break, or take one of our names."""
    info = tmp_path / "odd_formats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[asrgate.reports]\nids = odd_formats:ids\nbytes = odd_formats:data\nbroken = odd_formats:broken\n"
        "absent = no_such_module:render\nvandal = odd_formats:vandal\ncsv = odd_formats:ids\n"
        "long.ids = odd_formats:data\nforger = odd_formats:forger\nexits = odd_formats:exits\n"
        "prints = odd_formats:prints\n"
    )
    (tmp_path / "odd_formats.py").write_text(
        "def ids(run):\n    return run['run_id']\n"
        "def data(run):\n    return b'bytes'\n"
        "def broken(run):\n    return run['colour']\n"
        "def vandal(run):\n    run.clear()\n    return 'gone'\n"
        "def exits(run):\n    import os\n    os._exit(3)\n"
        "def prints(run):\n    print('noise')\n    return 'quiet'\n"
        "def forger(run):\n"
        "    import os, pathlib\n"
        "    path = pathlib.Path(os.environ['STORED_RUN'])\n"
        "    path.write_text(path.read_text().replace('a', 'b'))\n"
        "    return 'done'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("formats")
def test_format_of_another_package_is_one_of_ours() -> None:
    run = make_run()
    assert report.render(run, "ids") == run["run_id"]
    assert format_of(Path("x.ids")) == "ids"
    assert format_of(Path("x.long.ids")) == "long.ids", "the longest ending first, as with ours"


@pytest.mark.usefixtures("formats")
def test_our_own_names_and_endings_stay_ours() -> None:
    run = make_run()
    score.score(run, "whisper")
    gate.judge(run)
    assert report.render(run, "csv") != run["run_id"]
    assert format_of(Path("x.csv")) == "csv"


@pytest.mark.usefixtures("formats")
def test_format_of_another_package_cannot_change_the_record() -> None:
    run = make_run()
    assert report.render(run, "vandal") == "gone"
    record.validate(run)


@pytest.mark.usefixtures("formats")
def test_format_of_another_package_never_runs_where_the_record_is_made(
    asrgate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run.prints"
    before = set(sys.modules)
    assert report.render(make_run(), "prints") == "quiet"
    assert asrgate("--backends", "twin", "--rounds", "1", "--json", "--output", str(output)) == 0
    assert "odd_formats" not in set(sys.modules) - before
    assert json.loads(capsys.readouterr().out)["complete"]  # its print did not get between
    assert output.read_text() == "quiet"


@pytest.mark.usefixtures("formats")
def test_format_of_another_package_cannot_edit_the_stored_run(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sandbox.available().level == "none":
        pytest.skip(f"nothing keeps a format in here: {sandbox.available().why}")
    path = stored / "run.json" if stored.is_dir() else stored
    monkeypatch.setenv("STORED_RUN", str(path))
    before = path.read_bytes()
    with pytest.raises(FormatError, match="'forger' of odd_formats:forger failed: PermissionError"):
        report.render(record.read(path), "forger", denied=[path])
    assert path.read_bytes() == before


@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exits", r"'exits' of odd_formats:exits ended its process with exit status 3"),
        ("broken", r"'broken' of odd_formats:broken failed: KeyError: 'colour'"),
        ("absent", r"'absent' of no_such_module:render failed: ModuleNotFoundError"),
        ("bytes", r"'bytes' of odd_formats:data returned a bytes, not a str"),
        ("idz", r"no report format is called 'idz'. Did you mean 'ids'\? Available: html.*broken"),
    ],
)
def test_format_that_fails_is_one_clear_error(name: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        report.render(make_run(), name)


@pytest.mark.usefixtures("formats")
def test_failing_format_is_no_traceback_on_the_command_line(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(stored), "--format", "broken"]) == 2
    assert "asrgate: the report format 'broken'" in capsys.readouterr().err


@pytest.mark.usefixtures("formats")
def test_unknown_ending_lists_those_of_other_packages() -> None:
    with pytest.raises(FormatError, match=r"use one of .*\.html.*\.ids"):
        format_of(Path("x.docx"))
