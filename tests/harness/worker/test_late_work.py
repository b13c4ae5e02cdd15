"""Late work: an honest engine reads 0, whatever it owns; one that works on after its call is found."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from paths import ROOT

from asrgate.harness.worker import late_work
from asrgate.harness.worker.late_work import LOOK_SECONDS, LateWorkDetector


def burn(cpu_seconds: float) -> None:
    end = time.thread_time() + cpu_seconds
    while time.thread_time() < end:
        pass


def give(thread: queue.Queue, cpu_seconds: float) -> None:
    """Have the thread burn, and return when it has begun: work that a call leaves behind is under way."""
    begun = threading.Event()
    thread.put(lambda: (begun.set(), burn(cpu_seconds)))
    begun.wait()


def late_after(call: Callable[[], object]) -> float:
    detector = LateWorkDetector()
    detector.before()
    call()
    return detector.after()


@pytest.fixture
def old_thread():
    """A worker thread that was there before the call: give it functions to run."""
    tasks: queue.Queue[Callable[[], object] | None] = queue.Queue()

    def serve():
        while (task := tasks.get()) is not None:
            task()

    thread = threading.Thread(target=serve)
    thread.start()
    yield tasks
    tasks.put(None)
    thread.join()


def test_work_inside_the_call_is_not_late(old_thread):
    def call():
        done = threading.Event()
        old_thread.put(lambda: (burn(0.1), done.set()))
        burn(0.05)
        done.wait()
        thread = threading.Thread(target=burn, args=(0.05,))
        thread.start()
        thread.join()

    assert late_after(call) == 0.0


def test_a_thread_that_was_there_and_burns_on_is_found(old_thread):
    """However many threads there are to look at, between which it takes the interpreter's lock again."""
    stop = threading.Event()
    idle = [threading.Thread(target=stop.wait) for _ in range(20)]
    for thread in idle:
        thread.start()
    found = [late_after(lambda: give(old_thread, 0.08)) for _ in range(5)]
    stop.set()
    assert sorted(found)[2] == pytest.approx(0.08, abs=0.03)


def test_a_short_spin_is_tolerated(old_thread):
    assert late_after(lambda: give(old_thread, 0.01)) == 0.0


def test_a_new_thread_that_burns_on_is_found():
    assert late_after(lambda: threading.Thread(target=burn, args=(0.08,)).start()) > 0.05


@pytest.mark.parametrize("wait", [time.sleep, lambda seconds: threading.Event().wait(seconds)])
def test_a_new_thread_that_only_waits_for_something_is_found(wait):
    """As one does that waits for a device."""
    assert late_after(lambda: threading.Thread(target=wait, args=(0.15,)).start()) > 0.1


def test_a_thread_that_outlives_the_limit_is_found(monkeypatch):
    monkeypatch.setattr(late_work, "LIMIT_SECONDS", 0.2)
    thread = threading.Thread(target=time.sleep, args=(0.6,))
    assert late_after(thread.start) >= 0.2
    thread.join()


def test_the_idle_pool_an_engine_starts_is_no_work(monkeypatch):
    monkeypatch.setattr(late_work, "LIMIT_SECONDS", 0.3)
    with ThreadPoolExecutor(2) as pool:
        assert late_after(lambda: pool.submit(burn, 0.001).result()) == 0.0


def test_a_new_pool_that_still_works_at_the_limit_is_found(monkeypatch):
    monkeypatch.setattr(late_work, "LIMIT_SECONDS", 0.3)
    with ThreadPoolExecutor(1) as pool:
        assert late_after(lambda: pool.submit(time.sleep, 0.8)) >= 0.3


def test_a_child_process_that_works_on_is_found():
    code = "import time\nwhile time.process_time() < 0.3: pass"
    child = None

    def call():
        nonlocal child
        child = subprocess.Popen([sys.executable, "-c", code])

    assert late_after(call) > 0.1
    assert child is not None
    child.wait()


def test_each_call_is_judged_on_its_own(old_thread):
    detector = LateWorkDetector()
    found = []
    for cpu_seconds in (0.0, 0.08) * 5:
        detector.before()
        give(old_thread, cpu_seconds)
        found.append(detector.after())
    assert found[0::2] == [0.0] * 5
    assert sorted(found[1::2])[2] > 0.05


def test_two_looks_suffice_when_nothing_goes_on(monkeypatch):
    sleep, slept = time.sleep, []
    monkeypatch.setattr(
        "asrgate.harness.worker.late_work.time.sleep", lambda seconds: (slept.append(seconds), sleep(seconds))
    )
    looks = []
    for _ in range(20):
        slept.clear()
        detector = LateWorkDetector()
        detector.before()
        assert detector.after() == 0.0
        looks.append(sum(slept))
    assert min(looks) <= 2 * LOOK_SECONDS


def test_a_thread_that_polls_for_ever_is_no_work():
    """As MAX 26.7 has one: it must neither be taken for work nor be waited for."""
    stop = threading.Event()

    def poll():
        while not stop.wait(0.0007):
            burn(0.00005)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    detector, seconds = LateWorkDetector(), []
    for _ in range(5):
        detector.before()
        start = time.perf_counter()
        assert detector.after() == 0.0
        seconds.append(time.perf_counter() - start)
    stop.set()
    thread.join()
    assert min(seconds) < late_work.LIMIT_SECONDS / 4


def test_the_thread_pool_of_torch_is_not_taken_for_late_work():
    code = """
import torch
from asrgate.harness.worker.late_work import LateWorkDetector
torch.set_num_threads(2)
a = torch.randn(512, 384)
detector = LateWorkDetector()
print(max((detector.before(), a @ a.T, detector.after())[2] for _ in range(5)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(done.stdout) == 0.0
