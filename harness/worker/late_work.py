"""Detects work that continues in a worker after a call has returned, which the call's time leaves out.

Two kinds are detected: threads of any kind that use the CPU, here or in child processes, and Python threads
that the call started and that outlive it, whatever they do. An engine's thread pool keeps spinning for a few
milliseconds after its last task, in case another comes. That is not work. So a thread's own CPU time is
measured, which a busy machine does not inflate, and it counts only above SPIN_SECONDS.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

# libgomp, in torch's and CTranslate2's wheels, spins for up to 11 ms of CPU time per thread (measured with 1
# to 8 threads on a busy machine). Late work of 50 ms and more must be detected.
SPIN_SECONDS = 0.03
LOOK_SECONDS = 0.0015  # between checks: longer than the scheduler's tick of 1 ms, by which CPU times advance
# A thread that only polls for tasks uses less than both. Real work is not throttled: between checks, a thread
# that has work is seen running, or ran for most of the time.
NOTICED_SECONDS = 0.0001
POLLING_SHARE = 0.3  # of a core; MAX 26.7 has a thread that polls forever and uses 3 to 13 % of one
LIMIT_SECONDS = 2.0  # longer work is certainly late; waiting longer would only waste time
# Where a thread of an idle pool waits for its next task (file and function). A thread that is still waiting
# there at the limit does no late work. An engine starts such threads once, in its first calls.
WAITING_PLACES = (
    ("threading.py", "wait"),
    ("queue.py", "get"),
    ("selectors.py", "select"),
    (os.path.join("concurrent", "futures", "thread.py"), "_worker"),
)


class LateWorkDetector:
    """Measures how long a process keeps working after a call; about 3 ms per call if nothing runs."""

    def __init__(self) -> None:
        self._known: set[threading.Thread] = set()
        self._tasks: list[str] = []

    def before(self) -> None:
        """Record the existing threads, right before the call."""
        self._known = set(threading.enumerate())
        self._tasks = os.listdir("/proc/self/task") if sys.platform == "linux" else []

    def after(self) -> float:
        """Right after the call, wait until all work has stopped, for at most LIMIT_SECONDS.

        Returns:
            seconds of late work: the CPU time of the busiest thread or the lifetime of the longest-living new
            Python thread, whichever is more; 0.0 if it is not above SPIN_SECONDS.
        """
        start = time.perf_counter()
        # At once and without reading a file: a Python thread that keeps working takes the interpreter's lock
        # for 5 ms whenever this one releases it, so reading /proc takes longer than such work may last.
        cpu_seconds = {}
        for task in self._tasks:
            with contextlib.suppress(OSError):  # it has ended
                cpu_seconds[task] = _cpu_seconds(task)
        started = [thread for thread in threading.enumerate() if thread not in self._known]
        worked = _wait_for_idle(start, cpu_seconds)
        lived = 0.0
        for thread in started:
            thread.join(max(0.0, start + LIMIT_SECONDS - time.perf_counter()))
            if not (thread.is_alive() and _waits_for_a_task(thread)):
                lived = max(lived, time.perf_counter() - start)
        late = max(worked, lived if started else 0.0)
        return late if late > SPIN_SECONDS else 0.0


def _wait_for_idle(start: float, cpu_seconds_at_start: dict[str, float]) -> float:
    """Return the CPU seconds the busiest other thread used until all were idle.

    Args:
        start: when the call returned, by time.perf_counter().
        cpu_seconds_at_start: the CPU seconds used by then, for the threads for which they are known.
    """
    last = {thread: cpu_seconds for thread, (cpu_seconds, _) in _other_threads()} | cpu_seconds_at_start
    used = dict.fromkeys(last, 0.0)
    idle_looks = 0
    looked = start
    while idle_looks < 2 and looked < start + LIMIT_SECONDS:
        time.sleep(LOOK_SECONDS)
        idle_looks += 1
        elapsed = time.perf_counter() - looked
        looked += elapsed
        for thread, (cpu_seconds, runnable) in _other_threads():
            spent = cpu_seconds - last.get(thread, 0.0)  # for a new thread all of it counts
            last[thread] = cpu_seconds
            if runnable or spent > max(NOTICED_SECONDS, POLLING_SHARE * elapsed):
                idle_looks = 0
                used[thread] = used.get(thread, 0.0) + spent
    return max(used.values(), default=0.0)


def _other_threads() -> Iterator[tuple[str, tuple[float, bool]]]:
    """Yield (name, (CPU seconds, whether running or ready)) for all threads except the calling one."""
    if sys.platform != "linux":
        # Without more privileges only the sum is available; it is never reported as ready to run.
        yield "process", (time.process_time() - time.thread_time(), False)
        return
    own = str(threading.get_native_id())
    processes = ["self"]
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            for task in os.listdir(f"/proc/{process}/task"):
                folder = f"/proc/{process}/task/{task}"
                with contextlib.suppress(OSError):
                    processes += _read(f"{folder}/children").split()
                if process == "self" and task == own:
                    continue
                with contextlib.suppress(OSError):
                    state, *fields = _read(f"{folder}/stat").rpartition(")")[2].split()
                    own_thread = process == "self"
                    used = _cpu_seconds(task) if own_thread else _cpu_seconds_of_a_child(folder, fields)
                    yield task, (used, state == "R")


def _cpu_seconds(task: str) -> float:
    """Return the CPU time of a thread of this process; raise OSError if it has no such thread."""
    return time.clock_gettime(~int(task) << 3 | 6)  # a thread's own clock, in Linux's numbering


def _cpu_seconds_of_a_child(folder: str, stat: list[str]) -> float:
    try:
        return int(_read(f"{folder}/schedstat").split()[0]) * 1e-9
    except OSError:  # a kernel without it gives CPU time only in ticks of 10 ms
        return (int(stat[10]) + int(stat[11])) / os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


def _waits_for_a_task(thread: threading.Thread) -> bool:
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return False
    code = frame.f_code
    return any(code.co_filename.endswith(file) and code.co_name == name for file, name in WAITING_PLACES)
