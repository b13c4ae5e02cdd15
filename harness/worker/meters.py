"""What a process uses and what disturbs it: memory, CPU time, energy, video memory, and the load of others.

Figures that this machine cannot provide are None. GPU figures come from NVML, which counts by device and by
process, whichever engine allocates. `nvml` parameters take a replacement for the pynvml module.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from asrgate.backends.base import REMOTE
from asrgate.harness.worker.late_work import LateWorkDetector

__all__ = [
    "EnergyMeter",
    "LateWorkDetector",
    "LoadMonitor",
    "foreign_gpu_pids",
    "load_nvml",
    "peak_rss_bytes",
    "process_vram_bytes",
    "torch_peak_allocated_bytes",
]

POWERCAP = Path("/sys/class/powercap")  # https://docs.kernel.org/power/powercap/powercap.html
MICROJOULE = 1e-6
MILLIJOULE = 1e-3


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory that this process has had."""
    try:
        # VmHWM and not ru_maxrss, which a child inherits from its parent
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def torch_peak_allocated_bytes() -> int | None:
    """Return the peak of torch's CUDA allocator over all devices; None if torch or CUDA is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))


@cache
def load_nvml() -> Any:
    """Return the initialised pynvml module, or None on a machine without an NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


def process_vram_bytes(pid: int, nvml: Any = None) -> int | None:
    """Return the video memory that a process holds now on all GPUs; None if NVML does not list the process.

    In a container NVML may know the process by a different id; then the result is None too, not 0.
    """
    used = _gpu_processes(nvml or load_nvml())
    return None if used is None else used.get(pid)


def available_fraction() -> float:
    """Return the share of the machine's memory that new work could still have without swapping."""
    memory = psutil.virtual_memory()
    return float(memory.available / memory.total)


def foreign_gpu_pids(own: Iterable[int], nvml: Any = None) -> list[int] | None:
    """Return the processes that use a GPU and are not in `own`; None if that is unknown."""
    used = _gpu_processes(nvml or load_nvml())
    # Ids that do not exist here belong to the machine outside the container; ours could be among them.
    if used is None or not all(map(psutil.pid_exists, used)):
        return None
    return sorted(set(used) - set(own))


def _gpu_processes(nvml: Any) -> dict[int, int | None] | None:
    """Return process id -> bytes over all GPUs (None if NVML does not know)."""
    if nvml is None:
        return None
    used: dict[int, int | None] = {}
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(device):
                held, before = process.usedGpuMemory, used.get(process.pid, 0)
                used[process.pid] = None if held is None or before is None else held + before
    except nvml.NVMLError:
        return None
    return used


class EnergyMeter:
    """Measures the energy of the device that an engine runs on: the whole GPU, or all CPU packages.

    `source` names the counter ("nvml" or "rapl"); None if no counter is readable on this machine.
    """

    def __init__(
        self,
        device: str,
        nvml: Any = None,
        powercap: Path = POWERCAP,
        environment: Mapping[str, str] = os.environ,
    ):
        self.source: str | None = None
        self._nvml = self._gpu = None
        self._packages: list[_RaplCounter] = []
        if device == "cuda":
            self._nvml = nvml or load_nvml()
            self._gpu = _first_gpu(self._nvml, environment) if self._nvml is not None else None
            self.source = "nvml" if self._gpu is not None else None
        elif device != REMOTE:  # a server uses its energy on its own machine
            self._packages = _rapl_packages(powercap)
            self.source = "rapl" if self._packages else None
        if self.read_joules() is None:
            self.source = None

    def read_joules(self) -> float | None:
        """Return a count of joules that only grows; subtract two readings to get the energy used."""
        if self.source == "nvml":
            assert self._nvml is not None
            try:
                return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) * MILLIJOULE
            except self._nvml.NVMLError:
                return None
        if self.source == "rapl":
            try:
                return sum(package.read_microjoules() for package in self._packages) * MICROJOULE
            except (OSError, ValueError):
                return None
        return None


class _RaplCounter:
    """One package's counter, which wraps to 0 every few minutes to hours; it must be read more often."""

    def __init__(self, folder: Path):
        self._path = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._path.read_text())
        self._total = 0

    def read_microjoules(self) -> int:
        """Return the microjoules since the counter was opened."""
        now = int(self._path.read_text())
        self._total += now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return self._total


def _rapl_packages(powercap: Path) -> list[_RaplCounter]:
    packages = []
    try:
        for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD's counters have that name too
            if (folder / "name").read_text().startswith("package"):
                packages.append(_RaplCounter(folder))
    except (OSError, ValueError):  # since 2020 kernels let only root read them (CVE-2020-8694)
        return []
    return packages


def _first_gpu(nvml: Any, environment: Mapping[str, str]) -> Any:
    """Return NVML's handle for the GPU that CUDA calls 0, or None if there is none."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        if chosen.isdecimal():
            return nvml.nvmlDeviceGetHandleByIndex(int(chosen))
        if chosen.startswith("GPU-"):
            return nvml.nvmlDeviceGetHandleByUUID(chosen)
    except nvml.NVMLError:
        return None
    return None  # "" and "-1" hide all GPUs; a MIG slice has no energy counter of its own


class LoadMonitor:
    """Measures, from its creation to finish(), how much of the machine other programs used."""

    def __init__(self, pids: Iterable[int]):
        """Start.

        Args:
            pids: this run's workers. This process and all its descendants also count as the run's.
        """
        self._pids = list(pids)
        self._before = self._read()

    def finish(self) -> dict[str, float | None]:
        """Return `foreign_cpu_fraction`, the share of all cores' time, and `load_average_1min`."""
        total, busy, ours = (now - then for now, then in zip(self._read(), self._before, strict=True))
        # CPU times come in ticks of 10 ms, so over a few ticks their difference says nothing
        known = total > 0.1
        return {
            "foreign_cpu_fraction": min(1.0, max(0.0, (busy - ours) / total)) if known else None,
            "load_average_1min": _load_average(),
        }

    def _read(self) -> tuple[float, float, float]:
        """Return CPU seconds of all cores: total, busy, and used by this run."""
        times = psutil.cpu_times()
        guest = getattr(times, "guest", 0.0) + getattr(
            times, "guest_nice", 0.0
        )  # is also included in user and nice
        total = sum(times) - guest
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        return total, busy, _cpu_seconds_of([os.getpid(), *self._pids])


def _cpu_seconds_of(pids: Iterable[int]) -> float:
    """Return the CPU seconds of processes and of all their descendants.

    A descendant that ends and is waited for adds all its time to its parent's `children_*`, so the sum does
    not jump when one ends.
    """
    processes: dict[int, psutil.Process] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
        processes.update({member.pid: member for member in family})
    spent = 0.0
    for process in processes.values():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
