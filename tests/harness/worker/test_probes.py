"""Probes: memory, CPU, energy and video memory of a process, and the load of others, on fake hardware."""

import os
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from paths import ROOT

from asrgate.harness.worker import meters
from asrgate.harness.worker.process_tree import ProcessTree

HERE = os.getpid()
NOBODY = 2**22 + 1  # above Linux's largest process id
GIB = 1 << 30


@dataclass
class FakeNvml:
    """GPUs as lists of (pid, bytes); stands in for the pynvml module."""

    gpus: list = field(default_factory=list)
    millijoules: list = field(default_factory=lambda: [1_000, 8_000])
    broken: bool = False

    class NVMLError(Exception):
        pass

    def _check(self):
        if self.broken:
            raise self.NVMLError("driver gone")

    def nvmlDeviceGetCount(self):
        self._check()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        self._check()
        if index >= len(self.gpus):
            raise self.NVMLError("no such GPU")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.gpus[handle]]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self._check()
        self.millijoules[handle] += 500
        return self.millijoules[handle]


def write_package(folder: Path, microjoules: int, name: str = "package-0", limit: int = 1_000_000) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_peak_memory_stays_after_the_memory_is_given_back():
    block = np.ones(300_000_000, np.uint8)
    held = psutil.Process().memory_info().rss
    del block
    assert psutil.Process().memory_info().rss < held - 200_000_000
    assert meters.peak_rss_bytes() > held - 10_000_000


def test_peak_memory_is_not_the_parents():
    block = np.ones(300_000_000, np.uint8)
    code = "from asrgate.harness.worker import meters; print(meters.peak_rss_bytes())"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert 5_000_000 < int(done.stdout) < 200_000_000 < len(block)


def test_cpu_seconds_count_work_and_not_waiting():
    tree = ProcessTree(os.getpid())
    start = tree.cpu_seconds()
    time.sleep(0.2)
    slept = tree.cpu_seconds() - start
    while tree.cpu_seconds() < start + slept + 0.1:
        pass
    assert slept < 0.1


def test_torch_is_asked_only_where_it_is_in_use(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert meters.torch_peak_allocated_bytes() is None
    cuda = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert meters.torch_peak_allocated_bytes() is None
    cuda.is_initialized = lambda: True
    cuda.device_count = lambda: 2
    cuda.max_memory_allocated = lambda device: (device + 1) * GIB
    assert meters.torch_peak_allocated_bytes() == 3 * GIB


def test_video_memory_of_one_process_over_all_gpus():
    nvml = FakeNvml([[(HERE, GIB), (1, 5 * GIB)], [(HERE, 2 * GIB)]])
    assert meters.process_vram_bytes(HERE, nvml) == 3 * GIB
    assert meters.process_vram_bytes(NOBODY, nvml) is None
    assert meters.process_vram_bytes(HERE, FakeNvml([[(HERE, None)], [(HERE, GIB)]])) is None
    assert meters.process_vram_bytes(HERE, FakeNvml(broken=True)) is None


def test_foreign_processes_on_the_gpu():
    assert meters.foreign_gpu_pids([HERE], FakeNvml([[(HERE, GIB), (1, GIB)]])) == [1]
    assert meters.foreign_gpu_pids([HERE], FakeNvml([[(HERE, GIB)], []])) == []
    assert meters.foreign_gpu_pids([HERE], FakeNvml([[(NOBODY, GIB)]])) is None
    assert meters.foreign_gpu_pids([HERE], FakeNvml(broken=True)) is None


@pytest.mark.parametrize(
    ("visible", "joules"),
    [({}, 0.5), ({"CUDA_VISIBLE_DEVICES": "1,0"}, 0.5), ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, 0.5)],
)
def test_energy_of_the_visible_gpu(visible, joules):
    nvml = FakeNvml([[], []])
    meter = meters.EnergyMeter("cuda", nvml, environment=visible)
    assert meter.source == "nvml"
    first = meter.read_joules()
    assert meter.read_joules() - first == pytest.approx(joules)
    assert first == pytest.approx(2.0 if not visible else 9.0)


@pytest.mark.parametrize("visible", ["", "-1", "7", "MIG-GPU-a/1/0"])
def test_no_energy_where_no_gpu_is_visible(visible):
    nvml = FakeNvml([[], []])
    meter = meters.EnergyMeter("cuda", nvml, environment={"CUDA_VISIBLE_DEVICES": visible})
    assert (meter.source, meter.read_joules()) == (None, None)


def test_no_energy_from_a_gpu_that_does_not_count_it():
    nvml = FakeNvml([[]], broken=True)
    meter = meters.EnergyMeter("cuda", nvml, environment={})
    assert (meter.source, meter.read_joules()) == (None, None)


def test_rapl_adds_packages_and_survives_wrapping(tmp_path):
    first = write_package(tmp_path / "intel-rapl:0", 900_000)
    second = write_package(tmp_path / "intel-rapl:1", 100_000, "package-1")
    write_package(tmp_path / "intel-rapl:0:0", 5, "core")  # a part of package 0: counted there already
    write_package(tmp_path / "intel-rapl:2", 5, "psys")
    meter = meters.EnergyMeter("cpu", powercap=tmp_path)
    assert meter.source == "rapl"
    start = meter.read_joules()
    for part, name in ((tmp_path / "intel-rapl:0:0", "core"), (tmp_path / "intel-rapl:2", "psys")):
        write_package(part, 500_000, name)
    write_package(first, 950_000)
    write_package(second, 300_000, "package-1")
    assert meter.read_joules() - start == pytest.approx(0.25)
    write_package(first, 150_000)  # wrapped at 1,000,000
    assert meter.read_joules() - start == pytest.approx(0.45)
    (first / "energy_uj").unlink()
    assert meter.read_joules() is None


def test_no_energy_without_counters(tmp_path):
    assert meters.EnergyMeter("cpu", powercap=tmp_path).source is None
    (write_package(tmp_path / "intel-rapl:0", 1) / "energy_uj").unlink()  # as for users who are not root
    meter = meters.EnergyMeter("cpu", powercap=tmp_path)
    assert (meter.source, meter.read_joules()) == (None, None)


CpuTimes = namedtuple("CpuTimes", ("user", "nice", "system", "idle", "iowait", "steal", "guest"))


class FakeMachine:
    """CPU time of four cores; stands in for psutil.cpu_times."""

    def __init__(self):
        self.user = self.idle = self.iowait = self.steal = 0.0

    def __call__(self):
        return CpuTimes(self.user, 0.0, 0.0, self.idle, self.iowait, self.steal, 0.0)


@pytest.fixture
def machine(monkeypatch):
    fake = FakeMachine()
    monkeypatch.setattr(meters.psutil, "cpu_times", fake)
    return fake


def test_load_of_others_is_what_is_not_ours(machine, monkeypatch):
    ours = 0.0
    monkeypatch.setattr(meters, "_cpu_seconds_of", lambda pids: ours)
    monitor = meters.LoadMonitor([])
    machine.user, machine.idle, machine.iowait, machine.steal = 2.5, 6.0, 1.0, 0.5
    ours = 1.0
    found = monitor.finish()
    assert found["foreign_cpu_fraction"] == pytest.approx(0.2)
    assert found["load_average_1min"] == pytest.approx(os.getloadavg()[0], abs=1.0)


def test_load_is_unknown_over_no_time(machine):
    assert meters.LoadMonitor([]).finish()["foreign_cpu_fraction"] is None


def test_a_worker_that_ends_stays_ours(machine):
    code = "import time\nwhile time.process_time() < {}: pass"
    monitor = meters.LoadMonitor([NOBODY])
    before = meters._cpu_seconds_of([HERE])
    subprocess.run([sys.executable, "-c", code.format(0.5)], check=True)
    spent = meters._cpu_seconds_of([HERE]) - before
    assert 0.45 < spent < 2.0
    machine.user, machine.idle = 0.5, 1.5
    assert monitor.finish()["foreign_cpu_fraction"] < 0.05


def test_a_worker_that_runs_is_ours_while_it_runs():
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = meters._cpu_seconds_of([HERE])
        deadline = time.monotonic() + 20
        while meters._cpu_seconds_of([HERE]) < before + 0.2 and time.monotonic() < deadline:
            time.sleep(0.05)
        running = meters._cpu_seconds_of([HERE])
        assert running >= before + 0.2
    finally:
        child.kill()
        child.wait()
    assert meters._cpu_seconds_of([HERE, child.pid]) >= running - 0.02
