"""A worker's process tree: what tries to get away is found, counted, stopped and dead at the end."""

import itertools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asrgate.backends import child_process
from asrgate.harness.worker import process_tree
from asrgate.harness.worker.process_tree import ProcessTree

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason=f"{sys.platform} has no /proc and no subreapers"
)

# A worker that becomes a subreaper and a daemon that has left it: another session, no parent that waits.
START = """
import ctypes, os, signal, sys, threading, time
from asrgate.harness.worker import process_tree
def tell(word): print(word, flush=True)
def hear(): sys.stdin.readline()
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def daemon(work):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            work()
        os._exit(0)
    os.wait()
def count_for_ever():
    number = 0
    while True:
        number += 1
        with open(sys.argv[1], "w") as file: file.write(str(number))
"""
SUBREAPER = "process_tree.become_subreaper()\n"


class Child:
    """A process that runs code after START, and that is told to go on by a line."""

    def __init__(self, code: str, *arguments: object):
        self.process = subprocess.Popen(
            [sys.executable, "-c", START + code, *map(str, arguments)],
            env=child_process.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.tree = ProcessTree(self.process.pid)

    def hear(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0], "the child says nothing"
        return self.process.stdout.readline().decode().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.tree.kill()
        self.process.wait(timeout=200)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(autouse=True)
def parent() -> Iterator[None]:
    """Make this process a subreaper, as a measuring one is; leave no child behind."""
    known = process_tree.own_children()
    assert process_tree.become_subreaper()
    yield
    process_tree.kill_strays(known)
    libc = process_tree.ctypes.CDLL(None)
    libc.prctl(process_tree.PR_SET_CHILD_SUBREAPER, *map(process_tree.ctypes.c_ulong, (0, 0, 0, 0)))


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def begin(code: str, *arguments: object) -> Child:
        children.append(Child(code, *arguments))
        return children[-1]

    yield begin
    for child in children:
        child.close()


def wait_until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 200
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def lives(pid: int) -> bool:
    return bool(process_tree._states(pid) - {"Z", "X"})


def number_in(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


DAEMON = "daemon(count_for_ever); tell('begun'); hear()"


def test_a_daemon_is_a_member_and_its_cpu_counts(start, tmp_path):
    worker = start(SUBREAPER + DAEMON, tmp_path / "count")
    worker.hear()
    first, *others = worker.tree.members()
    assert first == worker.process.pid
    assert len(others) == 1 and os.getsid(others[0]) != os.getsid(first)
    assert worker.tree.threads() == 2
    before = worker.tree.cpu_seconds()
    wait_until(lambda: worker.tree.cpu_seconds() > before + 0.2, "the daemon's CPU time is not counted")


def test_pause_stops_a_daemon(start, tmp_path):
    path = tmp_path / "count"
    worker = start(SUBREAPER + DAEMON, path)
    worker.hear()
    wait_until(lambda: number_in(path) > 0, "the daemon does not count")
    assert worker.tree.pause() == []
    stood, cpu_seconds = path.read_bytes(), worker.tree.cpu_seconds()
    time.sleep(0.1)  # a thousand times what it needs for the next number
    assert (path.read_bytes(), worker.tree.cpu_seconds()) == (stood, cpu_seconds)
    worker.tree.resume()
    wait_until(lambda: path.read_bytes() not in (stood, b""), "the daemon does not go on")


def test_kill_reaches_a_daemon(start, tmp_path):
    worker = start(SUBREAPER + DAEMON, tmp_path / "count")
    worker.hear()
    members = worker.tree.members()
    assert len(members) == 2
    assert worker.tree.kill() == []
    assert not any(map(lives, members))
    assert worker.tree.members() == []


def test_who_forks_again_and_again_does_not_escape(start, tmp_path):
    """Each process leaves its parent, starts the next and ends."""
    code = """
def flee():
    for _ in range(3000):
        with open(sys.argv[1], "a") as file: file.write(f"{os.getpid()}\\n")
        if os.fork():
            os._exit(0)
        os.setsid()
    while True: signal.pause()
if os.fork() == 0: flee()
tell("begun"); hear()
"""
    path = tmp_path / "pids"
    before = process_tree.own_children()
    worker = start(SUBREAPER + code, path)
    worker.hear()
    wait_until(path.exists, "nobody fled")
    worker.tree.kill()
    process_tree.kill_strays([*before, worker.process.pid])  # one not seen as it moved comes to us as a stray
    fled = path.read_text().split()
    assert not any(lives(int(pid)) for pid in fled)
    assert process_tree.strays([*before, worker.process.pid]) == []
    assert path.read_text().split() == fled


def test_many_that_fork_at_once_do_not_escape(start, tmp_path):
    code = """
def spread(left):
    with open(sys.argv[1], "a") as file: file.write(f"{os.getpid()}\\n")
    for _ in range(left):
        if os.fork() == 0:
            spread(left // 3)
            while True: signal.pause()
if os.fork() == 0: spread(20); signal.pause()
tell("begun"); hear()
"""
    path = tmp_path / "pids"
    worker = start(SUBREAPER + code, path)
    worker.hear()
    wait_until(lambda: path.exists() and len(path.read_text().split()) > 5, "nobody forked")
    assert worker.tree.kill() == []
    assert not any(lives(int(pid)) for pid in path.read_text().split())


def test_a_reaped_childs_cpu_counts(start):
    """It began and ended between two readings."""
    worker = start(
        "tell('begun'); hear()\nif os.fork() == 0: burn(0.3); os._exit(0)\nos.wait(); tell('reaped'); hear()"
    )
    worker.hear()
    before = worker.tree.cpu_seconds()
    worker.go_on()
    assert worker.hear() == "reaped"
    assert worker.tree.members() == [worker.process.pid]
    assert 0.27 < worker.tree.cpu_seconds() - before < 0.6  # each of two counters loses less than a tick


def test_a_child_counts_once_whether_it_lives_or_not(start):
    """Also under a parent that ignores SIGCHLD, which the kernel keeps no account for."""
    for ignores in (False, True):
        worker = start(
            ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" if ignores else "")
            + "child = os.fork()\nif child == 0: burn(0.3); tell('burned'); hear(); os._exit(0)\n"
            + "try: os.wait()\nexcept ChildProcessError: pass\nburn(0.2); tell('over'); hear()"
        )
        assert worker.hear() == "burned"
        alive = worker.tree.cpu_seconds()
        assert alive > 0.3
        worker.go_on()
        assert worker.hear() == "over"
        assert alive + 0.19 <= worker.tree.cpu_seconds() < alive + 0.3


def test_dead_threads_count(start):
    worker = start(
        "tell('begun'); hear(); thread = threading.Thread(target=burn, args=(0.3,)); thread.start()\n"
        "thread.join(); tell('over'); hear()"
    )
    worker.hear()
    before = worker.tree.cpu_seconds()
    worker.go_on()
    worker.hear()
    assert worker.tree.cpu_seconds() - before >= 0.3


def test_the_cpu_clock_is_finer_than_a_tick(start):
    worker = start("tell('begun')\nwhile True:\n    hear(); burn(0.0005); tell('burned')")
    worker.hear()
    readings = [worker.tree.cpu_seconds()]
    for _ in range(5):
        worker.go_on()
        worker.hear()
        readings.append(worker.tree.cpu_seconds())
    steps = [later - earlier for earlier, later in itertools.pairwise(readings)]
    assert min(steps) >= 0.0005
    assert min(steps) < 0.005


def test_affinity_of_one_thread_is_seen(start):
    cores = sorted(os.sched_getaffinity(0))
    worker = start(
        f"os.sched_setaffinity(0, {{{cores[0]}}}); tell('narrow'); hear()\n"
        f"def widen(): os.sched_setaffinity(0, {{{cores[-1]}}}); tell('wide'); hear()\n"
        "threading.Thread(target=widen).start()"
    )
    worker.hear()
    assert worker.tree.affinity() == {cores[0]}
    worker.go_on()
    worker.hear()
    assert worker.tree.affinity() == {cores[0], cores[-1]}
    assert worker.tree.threads() == 2


def test_whose_first_thread_has_ended_is_not_dead(start, tmp_path):
    """Its process looks like a zombie while its other threads run."""
    path = tmp_path / "count"
    worker = start(
        "threading.Thread(target=count_for_ever).start()\n"
        "ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)",
        path,
    )
    pid = worker.process.pid
    wait_until(lambda: process_tree._stat(f"/proc/{pid}/stat")[0] == "Z", "the first thread does not end")
    assert worker.tree.members() == [pid]
    assert worker.tree.pause() == []
    stood = worker.tree.cpu_seconds()
    time.sleep(0.1)
    assert worker.tree.cpu_seconds() == stood
    assert worker.tree.kill() == []
    assert not lives(pid)


def test_an_orphan_of_an_engine_that_is_no_subreaper_is_a_stray(start, tmp_path):
    before = process_tree.own_children()
    worker = start(DAEMON, tmp_path / "count")
    worker.hear()
    helper = subprocess.Popen(["sleep", "60"])
    try:
        known = [*before, worker.process.pid, helper.pid]
        (stray,) = process_tree.strays(known)
        assert worker.tree.members() == [worker.process.pid]
        assert process_tree.kill_strays(known) == [stray]
        assert not lives(stray) and lives(helper.pid) and lives(worker.process.pid)
        assert stray not in process_tree.own_children()  # reaped, too
    finally:
        helper.kill()
        helper.wait()


def test_at_the_end_all_that_a_worker_started_is_dead(start, tmp_path):
    before = process_tree.own_children()
    kept, undone = (start(code + DAEMON, tmp_path / name) for code, name in ((SUBREAPER, "a"), ("", "b")))
    kept.hear(), undone.hear()
    (stray,) = process_tree.strays([*before, kept.process.pid, undone.process.pid])
    daemon = kept.tree.members()[1]
    assert kept.tree.kill() == undone.tree.kill() == []
    assert process_tree.kill_strays([*before, kept.process.pid, undone.process.pid]) == [stray]
    assert not any(map(lives, [stray, daemon, kept.process.pid, undone.process.pid]))
    assert kept.process.wait(timeout=200) == -signal.SIGKILL  # its own parent reaps it


def test_a_used_up_process_id_is_let_be():
    """A signal for a process that has ended must not reach whoever got its id."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        identity = process_tree._identify(child.pid)
        assert identity is not None
        earlier = process_tree._Process(child.pid, identity.started - 1)
        process_tree._send(earlier, signal.SIGKILL)
        process_tree._send(identity, signal.SIGSTOP)
        wait_until(lambda: process_tree._states(child.pid) == {"T"}, "the child does not stop")
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL


AS_LONG_AS_ASKED = """
import ctypes
from asrgate.harness.worker import process_tree

def is_one():
    found = ctypes.c_int(-1)
    get = process_tree.PR_GET_CHILD_SUBREAPER
    ctypes.CDLL(None).prctl(get, ctypes.byref(found), *map(ctypes.c_ulong, (0, 0, 0)))
    return found.value

told = [is_one()]
with process_tree.subreaper():
    told.append(is_one())
    with process_tree.subreaper():
        told.append(is_one())
    told.append(is_one())  # whoever was one before stays one
print(*told, is_one())
"""


def test_a_process_is_a_subreaper_only_as_long_as_asked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_LONG_AS_ASKED],
        env=child_process.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "1", "1", "1", "0"]
