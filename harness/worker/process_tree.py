"""A worker and everything it started: found, timed, paused and killed from outside.

A child that leaves its parent goes to the next ancestor that is a subreaper. Worker and parent both are: an
orphan stays below its worker, and below the parent if the engine has undone that. So nothing gets away.

On other systems than Linux the tree is what psutil finds, and nobody is a subreaper.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
NANOSECONDS = 1e-9
IS_LINUX = sys.platform == "linux"

# How long a signal may take to reach all: a process that waits for a disk or a driver obeys late.
PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.001
# A thread in an uninterruptible wait runs no code of its own before it obeys; one waits so in vfork() for a
# child that stands. After this long it counts as standing.
DEEP_SECONDS = 0.1


def become_subreaper() -> bool:
    """Make this process the parent of every orphan among its descendants; return whether it is.

    The measuring process calls it before its first worker, and each worker before any engine code: children
    do not inherit it.
    """
    if not IS_LINUX:
        return False
    arguments = map(ctypes.c_ulong, (1, 0, 0, 0))
    return ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, *arguments) == 0


@contextmanager
def subreaper() -> Iterator[None]:
    """Be the parent of every orphan among this process's descendants, for as long as the context lasts."""
    before = ctypes.c_int(0)
    if IS_LINUX:
        ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), *map(ctypes.c_ulong, (0, 0, 0)))
    become_subreaper()
    try:
        yield
    finally:
        if IS_LINUX and not before.value:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (0, 0, 0, 0)))


@dataclass(frozen=True)
class _Process:
    pid: int
    started: int  # ticks since boot: a process id is used again, both together are not


@dataclass
class _Cost:
    """CPU seconds of one process, as last seen."""

    parent: int
    own: float = 0.0  # all its threads, dead ones too
    waited_for: float = 0.0  # children that it reaped, by the kernel's account
    lost: float = 0.0  # children that have gone, by ours: who ignores SIGCHLD is given no account

    @property
    def total(self) -> float:
        return self.own + max(self.waited_for, self.lost)


class ProcessTree:
    """A process and all its descendants."""

    def __init__(self, pid: int):
        self.pid = pid
        self._costs: dict[_Process, _Cost] = {}
        self._gone = 0.0
        self._cpu_seconds = 0.0

    def members(self) -> list[int]:
        """Return the process ids of the process and its descendants that live; the process comes first."""
        return [process.pid for process in self._all() if _states(process.pid) - {"Z", "X"}]

    def threads(self) -> int:
        """Return how many threads the tree has."""
        return sum(len(_thread_ids(pid)) for pid in self.members())

    def affinity(self) -> set[int]:
        """Return the cores that at least one thread may run on; empty where the system does not tell."""
        cores: set[int] = set()
        if hasattr(os, "sched_getaffinity"):
            for pid in self.members():
                for thread in _thread_ids(pid):
                    with suppress(OSError):
                        cores |= os.sched_getaffinity(thread)
        return cores

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the tree since each of its processes began; never less than before.

        Living processes count to the nanosecond, as do their dead threads; children that were reaped count in
        the kernel's ticks (10 ms). A child that begins and ends between two calls counts through its parent
        alone, and not at all if that one ignores SIGCHLD.
        """
        alive = self._all()
        parents = {process.pid: process for process in alive}
        now: dict[_Process, _Cost] = {}
        for process in alive:
            cost = _cost(process.pid)
            if cost is None:
                continue
            before = self._costs.get(process)
            if before is not None:  # it may have ended since the listing: it never used less than before
                cost.own, cost.lost = max(cost.own, before.own), before.lost
                cost.waited_for = max(cost.waited_for, before.waited_for)
            now[process] = cost
        # children first: what a child leaves reaches its parent before the parent's goes further up
        for process, cost in reversed(self._costs.items()):
            if process in now:
                continue
            heir = parents.get(cost.parent)
            if heir is not None and heir in now:
                now[heir].lost += cost.total
                continue
            dead = next((other for other in self._costs if other.pid == cost.parent), None)
            if dead is not None and dead not in now:
                self._costs[dead].lost += cost.total
            else:
                self._gone += cost.total
        self._costs = now
        total = self._gone + sum(cost.total for cost in now.values())
        self._cpu_seconds = max(self._cpu_seconds, total)
        return self._cpu_seconds

    def pause(self) -> list[int]:
        """Stop all members; return those that would not stop in time, none as a rule.

        What runs may have started others meanwhile, so this looks until every thread of every member stands.
        """
        begun = time.monotonic()
        standing = {"T", "t", "Z", "X"}
        while left := [process for process in self._all() if not _states(process.pid) <= standing]:
            waited = time.monotonic() - begun
            if waited > PATIENCE_SECONDS:
                break
            if waited > DEEP_SECONDS:
                standing.add("D")
            for process in left:
                _send(process, signal.SIGSTOP)
            time.sleep(LOOK_SECONDS)
        return [process.pid for process in left]

    def resume(self) -> None:
        """Let all members go on."""
        for process in self._all():
            _send(process, signal.SIGCONT)

    def kill(self) -> list[int]:
        """Kill all members, whatever session they are in; return those that would not die in time.

        They are stopped first: what stands cannot start others. The process itself is left for its parent to
        reap, descendants that came to this process are reaped.
        """
        family = dict.fromkeys(self._all())
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.pause()
            family |= dict.fromkeys(self._all())
            for process in family:
                _send(process, signal.SIGKILL)
            left = [process.pid for process in family if not _is_dead(process)]
            for process in family:
                if process.pid != self.pid:
                    _reap(process.pid)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(LOOK_SECONDS)

    def _all(self) -> list[_Process]:
        """Return the process and its descendants, zombies too.

        Whatever is missed as it moves is found on the second look, so it looks until two looks agree.
        """
        before: list[_Process] | None = None
        for _ in range(100):
            found = list(_family(self.pid))
            if before is not None and set(found) == set(before):
                return found
            before = found
        return before or []


def own_children() -> list[int]:
    """Return the process ids of this process's children."""
    return _children(os.getpid())


def strays(known: Iterable[int]) -> list[int]:
    """Return the children of this process that it did not start: orphans that came to it as a subreaper.

    Args:
        known: children that it did start: workers, and those of multiprocessing (its resource tracker) and of
            subprocess that live at the moment.
    """
    known = set(known)
    return [pid for pid in own_children() if pid not in known]


def kill_strays(known: Iterable[int]) -> list[int]:
    """Kill and reap all strays with their descendants; return their process ids.

    Descendants of a stray become strays as it dies, so this looks until there is none.
    """
    known = set(known)
    killed: dict[int, None] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := strays(known)) and time.monotonic() < deadline:
        for pid in found:
            if _states(pid) - {"Z", "X"}:
                killed[pid] = None
                ProcessTree(pid).kill()
            _reap(pid)
    return list(killed)


def _family(pid: int) -> Iterator[_Process]:
    seen = set()
    todo = [pid]
    while todo:
        member = todo.pop(0)
        if member in seen:
            continue
        seen.add(member)
        process = _identify(member)
        if process is not None:
            yield process
            todo += _children(member)


def _identify(pid: int) -> _Process | None:
    if not IS_LINUX:
        with suppress(psutil.Error):
            return _Process(pid, int(psutil.Process(pid).create_time() * 1000))
        return None
    fields = _stat(f"/proc/{pid}/stat")
    return _Process(pid, int(fields[19])) if fields else None


def _stat(path: str) -> list[str]:
    """Return the fields of a stat file from the state on (field 3 of proc(5)), none if it has gone."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before may hold spaces and brackets


def _children(pid: int) -> list[int]:
    if not IS_LINUX:
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # a kernel without PROC_CHILDREN
        others = map(int, filter(str.isdecimal, os.listdir("/proc")))
        return [other for other in others if _stat(f"/proc/{other}/stat")[1:2] == [str(pid)]]
    found: list[int] = []
    for thread in _thread_ids(pid):
        with suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _thread_ids(pid: int) -> list[int]:
    if not IS_LINUX:
        with suppress(psutil.Error):
            return [thread.id for thread in psutil.Process(pid).threads()]
        return []
    with suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []


def _states(pid: int) -> set[str]:
    """Return the states of all threads, as letters of proc(5): the first may be dead while others run."""
    if not IS_LINUX:
        with suppress(psutil.Error):
            status = psutil.Process(pid).status()
            return {{psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_STOPPED: "T"}.get(status, "R")}
        return set()
    return {fields[0] for thread in _thread_ids(pid) if (fields := _stat(f"/proc/{pid}/task/{thread}/stat"))}


def _cost(pid: int) -> _Cost | None:
    if not IS_LINUX:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            times = process.cpu_times()
            return _Cost(process.ppid(), times.user + times.system)
        return None
    fields = _stat(f"/proc/{pid}/stat")
    if not fields:
        return None
    try:
        own = (
            time.clock_gettime_ns((~pid << 3) | 2) * NANOSECONDS
        )  # the clock id of a process, CPUCLOCK_SCHED
    except OSError:
        return None
    ticks = int(fields[13]) + int(fields[14])  # cutime, cstime
    return _Cost(int(fields[1]), own, ticks / os.sysconf("SC_CLK_TCK"))


def _is_dead(process: _Process) -> bool:
    return _identify(process.pid) != process or not _states(process.pid) - {"Z", "X"}


def _send(process: _Process, number: signal.Signals) -> None:
    """Send a signal to just that process, even if its id has been given to another since."""
    with suppress(ProcessLookupError, PermissionError):
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        except (AttributeError, OSError):  # not on this system, or not in a container
            if _identify(process.pid) == process:
                os.kill(process.pid, number)
            return
        try:
            if _identify(process.pid) == process:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
