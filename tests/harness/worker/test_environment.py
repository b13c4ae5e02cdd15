"""The host's description: right on made-up machines, free of names, and never a reason to stop a run."""

import getpass
import json
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from asrgate.harness.worker import environment as host


class FakeNvml:
    """One GPU; old versions of pynvml give names as bytes."""

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return b"Imaginary G100"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 << 30)

    def nvmlSystemGetDriverVersion(self):
        return "570.10"

    def nvmlSystemGetCudaDriverVersion(self):
        return 12_080


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_described_without_names():
    found = host.describe()
    text = json.dumps(found) + json.dumps(host.versions())
    assert found["physical_cores"] >= 1
    assert found["memory_bytes"] == psutil.virtual_memory().total
    assert found["usable_cores"] == len(os.sched_getaffinity(0))
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert len(private) < 3 or private not in text
    assert f'"{getpass.getuser()}"' not in text


def test_class_names_what_decides_speed(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=(64 << 30) - 300_000_000))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 8}, raising=False)
    root = write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Imaginary  CPU\t9000\n"})
    found = host.describe(root, FakeNvml())
    assert found["host_class"] == "Imaginary CPU 9000, 4 cores, Imaginary G100, 64 GiB"
    assert found["affinity"] == "cores 0-2,8"
    assert found["gpus"] == [{"name": "Imaginary G100", "memory_bytes": 80 << 30}]
    assert found["gpu_driver"] == "570.10"
    assert found["cuda_driver_version"] == "12.8"
    assert found["cpu_instructions"] is found["cpu_generation"] is None, "not x86, or not told"


@pytest.mark.parametrize(
    ("flags", "instructions", "lacks"),
    [
        ("fpu avx avx2 sha_ni", ["avx", "avx2"], True),
        ("fpu avx512_bf16 avx avx2 avx512f avx512vl", ["avx", "avx2", "avx512f", "avx512_bf16"], False),
        ("fpu sse2", [], True),
    ],
)
def test_one_model_name_with_and_without_avx512_is_two_classes(tmp_path, flags, instructions, lacks):
    numbers = "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: Imaginary Cloud\n"
    root = write(tmp_path, {"proc/cpuinfo": f"{numbers}flags\t\t: {flags}\n"})
    found = host.describe(root, FakeNvml())
    assert found["cpu_generation"] == "family 26, model 2"
    assert found["cpu_instructions"] == instructions
    assert found["host_class"].startswith("Imaginary Cloud without AVX-512, ") == lacks
    assert found["host_class"].startswith("Imaginary Cloud, ") != lacks


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/memory.max": f"{4 << 30}\n",
            "sys/fs/cgroup/a/memory.max": "max\n",
        },
        {
            "proc/self/cgroup": "4:memory:/\n1:cpu:/docker/x\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 << 30}\n",
        },
    ],
    ids=["version 2", "version 1"],
)
def test_limits_of_a_container(tmp_path, monkeypatch, files):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    found = host.describe(write(tmp_path, {".dockerenv": "", **files}))
    assert found["container"] == "docker"
    assert found["cpu_limit_cores"] == 1.5
    assert found["memory_limit_bytes"] == 4 << 30
    assert found["host_class"].endswith("2 cores, no GPU, 4 GiB")


def test_no_limit_is_none(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n1:memory:/\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = host.describe(write(tmp_path, files))
    assert (found["container"], found["cpu_limit_cores"], found["memory_limit_bytes"]) == (None, None, None)


@pytest.mark.parametrize(
    ("marks", "environment", "runtime"),
    [
        ({"run/.containerenv": ""}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
    ],
)
def test_kinds_of_containers(tmp_path, monkeypatch, marks, environment, runtime):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert host.describe(write(tmp_path, marks))["container"] == runtime


def test_governors_and_arm(tmp_path):
    files = {
        "proc/cpuinfo": "processor : 0\nCPU part\t: 0xd4f\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
    }
    found = host.describe(write(tmp_path, files))
    assert found["governor"] == "performance + powersave"
    assert found["cpu"].endswith("part 0xd4f")


def test_a_machine_that_tells_nothing_is_described_too(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("no")

    for module, name in ((psutil, "cpu_count"), (psutil, "virtual_memory"), (psutil, "cpu_freq")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    monkeypatch.setattr(subprocess, "run", refuse)
    broken = SimpleNamespace(nvmlDeviceGetCount=refuse)
    found = host.describe(tmp_path, broken)
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] is found["memory_bytes"] is found["gpus"] is None
    assert found["host_class"] == "unknown CPU, unknown cores, no GPU, unknown memory"
    assert host.versions()["git_commit"] is None


def test_versions_name_every_engine_and_the_commit(tmp_path, monkeypatch):
    found = host.versions()
    assert found["torch"]
    assert found["openai-whisper"]
    assert found["faster-whisper"]
    assert all(value is None or isinstance(value, str) for value in found.values())

    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(host, "PROJECT_ROOT", tmp_path)
    assert (host.versions()["git_commit"], host.versions()["git_dirty"]) == (None, None)
    git("init", "-q")
    write(tmp_path, {"harness/a.py": "1\n", "notes.txt": "1\n"})
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert len(host.versions()["git_commit"]) == 40
    assert host.versions()["git_dirty"] == "no"
    write(tmp_path, {"notes.txt": "changed\n", "more.txt": "new\n"})
    assert host.versions()["git_dirty"] == "no"
    write(tmp_path, {"harness/b.py": "new\n"})
    assert host.versions()["git_dirty"] == "yes"
