"""scripts/remote_bench.sh through a real sshd on this machine: words, results, failures, and what is left."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from paths import ROOT, SUPPORT

from asrgate.harness import record

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
MISSING = [name for name, path in (("sshd", SSHD), ("ssh", shutil.which("ssh"))) if path is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"{' and '.join(MISSING)} missing: install openssh-server and openssh-client"
    ),
]

STUB = """#!/bin/sh
# Stands in for the interpreter: keeps its words, then does as the test says.
shift 2
for word in "$@"; do printf '%s\\0' "$word"; done >"{seen}/words"
pwd >"{seen}/folder"
env >"{seen}/environment"
find . -type f -o -type l >"{seen}/files"
echo $$ >"{seen}/pid"
for last in "$@"; do :; done
mkdir -p "$last/20260101T000000Z-abcd"
echo '{{}}' >"$last/20260101T000000Z-abcd/run.json"
ln -s 20260101T000000Z-abcd "$last/latest"
echo "the table"
{then}
"""


@dataclass(frozen=True)
class Remote:
    """The other machine: its home and temporary folder, and what the stand-in interpreter saw."""

    config: Path
    home: Path
    temporary: Path
    seen: Path

    def left(self) -> list[Path]:
        """Everything that is there now."""
        return [  # os.walk goes on where something vanishes meanwhile
            Path(inside, name)
            for folder in (self.home, self.temporary)
            for inside, folders, files in os.walk(folder)
            for name in (*folders, *files)
        ]

    def stub(self, then: str) -> Path:
        path = self.seen / "python"
        path.write_text(STUB.format(seen=self.seen, then=then))
        path.chmod(0o755)
        return path


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """An sshd of our own on a free port of the loopback, with keys and settings of its own."""
    folder = tmp_path_factory.mktemp("sshd")
    found = Remote(folder / "ssh_config", folder / "home", folder / "tmp", folder / "seen")
    for path in (found.home, found.temporary, found.seen):
        path.mkdir()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fakes = SUPPORT / "fakes"
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder / 'host'}\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin prohibit-password\n"
        f"SetEnv HOME={found.home} TMPDIR={found.temporary} ASRGATE_LOCKS={found.temporary} "
        f"PYTHONPATH={fakes} XDG_CACHE_HOME=\n"
    )
    found.config.write_text(
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n  BatchMode yes\n  LogLevel ERROR\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
    )
    separation = Path("/run/sshd")  # where sshd shuts itself in when root starts it
    made = os.geteuid() == 0 and not separation.exists()
    if made:
        separation.mkdir(mode=0o755)
    assert SSHD is not None
    log = (folder / "log").open("w")
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        for _ in range(1000):
            if answers(found):
                break
            assert daemon.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        else:
            pytest.fail(f"sshd lets nobody in: {(folder / 'log').read_text()[-1000:]}")
        yield found
    finally:
        for child in psutil.Process(daemon.pid).children(recursive=True):
            child.kill()
        daemon.kill()
        daemon.wait()
        log.close()
        if made:
            separation.rmdir()


def answers(remote: Remote) -> bool:
    done = subprocess.run(
        ["ssh", "-F", str(remote.config), "there", "true"], capture_output=True, timeout=20, check=False
    )
    return done.returncode == 0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with the script in it, tracked by git."""
    folder = tmp_path / "the project"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "remote_bench.sh", folder / "scripts")
    (folder / ".gitignore").write_text("ignored\n/results/\n")
    (folder / "-tracked file\n'name'").write_text("tracked")
    (folder / "gone").write_text("gone")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "All"], check=True)
    (folder / "gone").unlink()
    (folder / "untracked").write_text("untracked")
    (folder / "ignored").write_text("secret")
    return folder


@pytest.fixture
def start(remote: Remote, project: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the script; whatever it starts is ended with the test."""
    (tmp_path / "local").mkdir()
    shutil.rmtree(remote.seen)
    remote.seen.mkdir()
    started: list[subprocess.Popen[str]] = []

    def call(*words: str, then: str = "exit 0", **variables: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "TMPDIR": str(tmp_path / "local"),
            "ASRGATE_SSH_CONFIG": str(remote.config),
            "ASRGATE_REMOTE_PYTHON": str(remote.stub(then)),
        }
        started.append(
            subprocess.Popen(
                [str(project / "scripts" / "remote_bench.sh"), *words],
                env=environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def bench(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Run the script to its end; returns exit status, stdout and stderr."""

    def call(*words: str, **options: Any) -> tuple[int, str, str]:
        process = start(*words, **options)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    return call


def wait_for(condition: Callable[[], bool], seconds: float = 200.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


HOSTILE = [
    "two words",
    "it's",
    '"quoted"',
    "*",
    "[a-z]?",
    "$HOME",
    "$(touch /tmp/pwned)",
    "`id`",
    "back\\slash\\",
    "\\",
    "semi;colon && true || false | cat > x < y &",
    "!history!",
    "~",
    "#comment",
    "{a,b}",
    "",
    " leading and trailing ",
    "tab\there",
    "ünïcödé 音",
    "--",
    "-n",
    "%s%n",
    "''",
    "'\\''",
]


def test_every_word_arrives_as_it_was(bench: Callable[..., tuple[int, str, str]], remote: Remote) -> None:
    status, _, errors = bench("there", *HOSTILE)
    assert status == 0, errors
    words = (remote.seen / "words").read_text().split("\0")
    assert words[0] == "run"
    assert words[1:-3] == HOSTILE
    assert words[-3] == "--results"


def test_run_comes_back_and_nothing_is_left(
    bench: Callable[..., tuple[int, str, str]], remote: Remote, project: Path, tmp_path: Path
) -> None:
    status, output, errors = bench("there", "run", "--rounds", "2")
    assert (status, output) == (0, "the table\n"), errors
    words = (remote.seen / "words").read_text().split("\0")
    assert words[:3] == ["run", "--rounds", "2"], "`run` itself is not repeated"
    assert (project / "results" / "20260101T000000Z-abcd" / "run.json").read_text() == "{}\n"
    assert os.readlink(project / "results" / "latest") == "20260101T000000Z-abcd"
    assert remote.left() == []
    assert not list((tmp_path / "local").iterdir())


def test_what_git_knows_or_could_know_is_copied(
    bench: Callable[..., tuple[int, str, str]], remote: Remote, project: Path
) -> None:
    assert bench("there")[0] == 0
    copied = (remote.seen / "files").read_text()
    assert "./-tracked file\n'name'\n" in copied and "./untracked\n" in copied
    assert "./scripts/remote_bench.sh\n" in copied
    assert "ignored\n" not in copied.replace(".gitignore", "") and "gone" not in copied
    shutil.rmtree(project / ".git")
    shutil.rmtree(project / "results")
    (project / ".venv").mkdir()
    (project / ".venv" / "large").write_text("large")
    assert bench("there")[0] == 0, "an unpacked archive of the project will do too"
    copied = (remote.seen / "files").read_text()
    assert "./untracked\n" in copied and ".venv" not in copied


def test_caches_and_temporary_files_are_put_where_they_are_removed(
    bench: Callable[..., tuple[int, str, str]], remote: Remote, tmp_path: Path
) -> None:
    then = 'touch "$TMPDIR/x"; mkdir -p "$XDG_CACHE_HOME/pip" "$ASRGATE_CACHE/weights"; exit 0'
    assert bench("there", then=then)[0] == 0
    assert remote.left() == []
    kept = tmp_path / "kept cache"
    assert (
        bench("there", then=then, ASRGATE_REMOTE_CACHE=str(kept), ASRGATE_RESULTS=str(tmp_path / "r"))[0] == 0
    )
    assert (kept / "weights").is_dir()
    assert remote.left() == []


def test_lock_of_the_machine_is_the_one_others_take(
    bench: Callable[..., tuple[int, str, str]], remote: Remote, tmp_path: Path
) -> None:
    name = f"asrgate-{os.getuid()}.lock"
    then = f'echo held >>"$ASRGATE_LOCKS/{name}"; exit 0'
    lock = remote.temporary / name
    assert bench("there", then=then)[0] == 0
    assert remote.left() == [], "it was not there before"
    lock.write_text("")
    try:
        assert bench("there", then=then, ASRGATE_RESULTS=str(tmp_path / "r"))[0] == 0
        assert lock.read_text() == "held\n", "another's lock is used, and stays"
    finally:
        lock.unlink()


def test_exit_status_of_the_run_comes_back_with_its_results(
    bench: Callable[..., tuple[int, str, str]], project: Path
) -> None:
    status, output, _ = bench("there", then="echo oops >&2; exit 1")
    assert (status, output) == (1, "the table\n")
    assert (project / "results" / "latest" / "run.json").is_file()


def test_errors_of_the_run_are_shown(bench: Callable[..., tuple[int, str, str]], remote: Remote) -> None:
    status, _, errors = bench("there", then="echo 'asrgate: no backend is called x' >&2; exit 2")
    assert status == 2 and "no backend is called x" in errors
    assert remote.left() == []


def test_set_up_by_make_and_its_failure(
    bench: Callable[..., tuple[int, str, str]], remote: Remote, project: Path
) -> None:
    makefile = project / "Makefile"
    makefile.write_text(
        ".venv/.installed:\n\tmkdir -p .venv/bin\n"
        f"\tcp {remote.seen}/python .venv/bin/python\n\techo installing\n\ttouch $@\n"
    )
    status, output, errors = bench("there", ASRGATE_REMOTE_PYTHON="")
    assert (status, output) == (0, "the table\n"), errors
    assert "installing" in errors, "what make says is no result"
    makefile.write_text(".venv/.installed:\n\t@echo no network >&2; exit 1\n")
    status, output, errors = bench("there", ASRGATE_REMOTE_PYTHON="")
    assert (status, output) == (3, "")
    assert "no network" in errors and "the set-up failed" in errors
    assert remote.left() == []


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_stops_the_other_machine(
    start: Callable[..., subprocess.Popen[str]], remote: Remote, tmp_path: Path, kill: signal.Signals
) -> None:
    process = start("there", then=f"touch {remote.seen}/begun; exec sleep 300")
    assert wait_for((remote.seen / "begun").exists)
    assert remote.left()
    job = int((remote.seen / "pid").read_text())
    process.send_signal(kill)
    process.communicate(timeout=200)
    assert process.returncode == 128 + kill
    assert not psutil.pid_exists(job)
    assert remote.left() == [], "it has waited for the other machine to clean up"
    assert not list((tmp_path / "local").iterdir())


def test_lost_connection_ends_the_run_and_cleans_up(
    start: Callable[..., subprocess.Popen[str]], remote: Remote
) -> None:
    process = start("there", then=f"trap '' TERM; touch {remote.seen}/begun; while :; do sleep 1; done")
    assert wait_for((remote.seen / "begun").exists)
    job = int((remote.seen / "pid").read_text())
    os.killpg(process.pid, signal.SIGKILL)  # the script and its ssh, as a power cut would
    assert wait_for(lambda: not remote.left()), remote.left()
    assert not psutil.pid_exists(job), "even one that does not want to stop"


def test_run_that_is_here_already_is_not_overwritten(
    bench: Callable[..., tuple[int, str, str]], project: Path
) -> None:
    kept = project / "results" / "20260101T000000Z-abcd"
    kept.mkdir(parents=True)
    status, _, errors = bench("there")
    assert status == 3 and "is there already" in errors
    assert not list(kept.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "usage:"),
        (("--backends", "x"), "the first argument is the host"),
        (("-oProxyCommand=touch pwned",), "the first argument is the host"),
        (("there", "--results", "x"), "set ASRGATE_RESULTS"),
        (("there", "--results=x"), "set ASRGATE_RESULTS"),
        (("there", "--output", "x.md"), "asrgate report"),
        (("there", "a\nb"), "line break"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    bench: Callable[..., tuple[int, str, str]], remote: Remote, words: tuple[str, ...], message: str
) -> None:
    status, output, errors = bench(*words)
    assert (status, output) == (2, "") and message in errors
    assert not (remote.seen / "words").exists()


def test_host_that_is_not_there(bench: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  HostName 127.0.0.1\n  Port 9\n  BatchMode yes\n")
    status, output, errors = bench("there", ASRGATE_SSH_CONFIG=str(config))
    assert (status, output) == (3, "") and "nothing came back from there (exit status 255" in errors
    assert not list((tmp_path / "local").iterdir())


def test_real_run_through_ssh(
    start: Callable[..., subprocess.Popen[str]], remote: Remote, spoken: Path, model: Path, tmp_path: Path
) -> None:
    project = tmp_path / "the project"
    for name in ("backends", "harness"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    clips = tmp_path / "my clips; $HOME"
    clips.mkdir()
    for path in spoken.glob("[al]*"):
        shutil.copy(path, clips)
    process = start(
        *(
            "there",
            "--backends",
            "twin",
            "--reference",
            "honest",
            "--model",
            str(model),
            "--audio",
            str(clips),
        ),
        *("--rounds", "1", "--warmup", "0", "--threads", "1", "--quiet"),
        ASRGATE_REMOTE_PYTHON=sys.executable,
        ASRGATE_RESULTS=str(tmp_path / "results here"),
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    run = record.read(tmp_path / "results here" / "latest")
    assert run["complete"] and {row["backend"] for row in run["results"]} == {"honest", "twin"}
    assert all(row["wer"]["wer"] == 0 for row in run["results"])
    assert "honest@cpu/float32" in output
    assert (tmp_path / "results here" / "latest" / "report.html").stat().st_mode & stat.S_IRUSR
    assert remote.left() == []
