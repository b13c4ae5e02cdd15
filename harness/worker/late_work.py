"""Whether work goes on in a worker after a call has returned: such work was left out of the call's time.

Two kinds are looked for: threads of any kind that use the CPU, here or in child processes, and Python threads
that the call started and that outlive it, whatever they do. An engine's thread pool spins on for a few
milliseconds after its last task, in case another comes. That is no work, so a thread's own CPU time is what
counts, which a busy machine does not stretch, and only above SPIN_SECONDS.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

# libgomp, under torch's and CTranslate2's wheels, spins for up to 11 ms of CPU time a thread (measured with 1
# to 8 threads on a busy machine); the least that must be found is 50 ms.
SPIN_SECONDS = 0.03
LOOK_SECONDS = 0.0015  # between looks: longer than the scheduler's tick of 1 ms, by which CPU times advance
# A thread that only looks whether there is something to do uses less than both. Work is not throttled:
# between looks a thread that has some is seen running, or ran for most of the time.
NOTICED_SECONDS = 0.0001
POLLING_SHARE = 0.3  # of a core; MAX 26.7 has a thread that polls for ever, with 3 to 13 % of one
LIMIT_SECONDS = 2.0  # what lasts longer is known to be late; waiting on would only cost time
# Where a thread of an idle pool waits for its next task (file and function): one that still waits there at
# the limit does no late work. An engine starts such threads once, in its first calls.
WAITING_PLACES = (
    ("threading.py", "wait"),
    ("queue.py", "get"),
    ("selectors.py", "select"),
    (os.path.join("concurrent", "futures", "thread.py"), "_worker"),
)


class LateWorkDetector:
    """Tells for how long a process worked on after a call. Costs about 3 ms a call when nothing goes on."""

    def __init__(self) -> None:
        self._known: set[threading.Thread] = set()
        self._tasks: list[str] = []

    def before(self) -> None:
        """Note the threads there are, right before the call."""
        self._known = set(threading.enumerate())
        self._tasks = os.listdir("/proc/self/task") if sys.platform == "linux" else []

    def after(self) -> float:
        """Wait until nothing goes on any more, LIMIT_SECONDS at most, right after the call.

        Returns:
            seconds of work found: the CPU time of the busiest thread or the life of the longest-living new
            Python thread, whichever is more; 0.0 for what is not above SPIN_SECONDS.
        """
        start = time.perf_counter()
        # At once and without a file: a Python thread that works on takes the interpreter's lock for 5 ms
        # whenever this one lets go of it, so reading /proc takes longer than such work may last.
        cpu_seconds = {}
        for task in self._tasks:
            with contextlib.suppress(OSError):  # it ended meanwhile
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
        cpu_seconds_at_start: of the threads for which it is known what they had used by then.
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
            spent = cpu_seconds - last.get(thread, 0.0)  # of a thread started meanwhile all counts
            last[thread] = cpu_seconds
            if runnable or spent > max(NOTICED_SECONDS, POLLING_SHARE * elapsed):
                idle_looks = 0
                used[thread] = used.get(thread, 0.0) + spent
    return max(used.values(), default=0.0)


def _other_threads() -> Iterator[tuple[str, tuple[float, bool]]]:
    """Yield (name, (CPU seconds, is running or ready to)) of all threads but the calling one."""
    if sys.platform != "linux":
        # Only the sum can be had without more privileges; it is never called ready to run.
        yield "process", (time.process_time() - time.thread_time(), False)
        return
    own = str(threading.get_native_id())
    processes = ["self"]
    for process in processes:
        with contextlib.suppress(OSError):  # it ended meanwhile
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
    """Return the CPU time of a thread of this process; OSError where there is none of that number."""
    return time.clock_gettime(~int(task) << 3 | 6)  # a thread's own clock, as Linux numbers them


def _cpu_seconds_of_a_child(folder: str, stat: list[str]) -> float:
    try:
        return int(_read(f"{folder}/schedstat").split()[0]) * 1e-9
    except OSError:  # a kernel without it tells CPU time in ticks of 10 ms only
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
