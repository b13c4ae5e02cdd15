"""What a run's figures depend on besides the engine: machine, limits, system and versions.

No host name, user name, address or path is recorded. Unknown values are None; nothing here raises an error.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from asrgate import old_names
from asrgate.backends.installation import PROJECT_ROOT
from asrgate.harness.worker.meters import load_nvml

# What a result depends on. Changes elsewhere in the checkout do not make it dirty.
VERSIONED_PATHS = ("backends", "harness", "weights", "audio_samples", "pyproject.toml")

DISTRIBUTIONS = (
    "asrgate",
    # engines and what they run on
    "openai-whisper",
    "faster-whisper",
    "torch",
    "ctranslate2",
    "modular",
    "max",
    "onnxruntime",
    "tiktoken",
    "tokenizers",
    "triton",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    # decoding and scoring
    "numpy",
    "soundfile",
    "soxr",
    "av",
    "jiwer",
    "text2num",
)
VECTOR_INSTRUCTIONS = (  # as Linux names them
    *("avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
GIB = 1 << 30
UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63


def describe(root: Path = Path("/"), nvml: Any = None) -> dict[str, Any]:
    """Return the machine as a JSON-ready dict.

    `host_class` is the same string on machines whose speeds may be compared: CPU model, usable cores, GPU
    models and memory in GiB. Clouds give processors of several generations one model name, so the class also
    says if AVX-512 is missing.

    Args:
        root: the folder in which to look for /proc, /sys and /run.
        nvml: a replacement for the pynvml module.
    """
    limits = _quietly(lambda: _container(root)) or {}
    host: dict[str, Any] = {
        "cpu": _quietly(lambda: _cpu_model(root)),
        "cpu_generation": _quietly(lambda: _cpu_generation(root)),
        "cpu_instructions": _quietly(lambda: _cpu_instructions(root)),
        "physical_cores": _quietly(lambda: psutil.cpu_count(logical=False)),
        "logical_cores": _quietly(psutil.cpu_count),
        "usable_cores": _quietly(lambda: len(os.sched_getaffinity(0))),
        "affinity": _quietly(lambda: "cores " + _ranges(sorted(os.sched_getaffinity(0)))),
        "governor": _quietly(lambda: _governor(root)),
        "min_frequency_hz": _quietly(lambda: _frequency_hz("min")),
        "max_frequency_hz": _quietly(lambda: _frequency_hz("max")),
        "memory_bytes": _quietly(lambda: psutil.virtual_memory().total),
        **_gpus(nvml or load_nvml()),
        "os": _quietly(_system),
        "kernel": _quietly(platform.release),
        "architecture": _quietly(platform.machine),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "container": limits.get("runtime"),
        "cpu_limit_cores": limits.get("cpu_limit_cores"),
        "memory_limit_bytes": limits.get("memory_limit_bytes"),
    }
    host["host_class"] = _host_class(host)
    return host


def versions() -> dict[str, str | None]:
    """Return distribution -> version (None if not installed), and the checkout's commit.

    `git_dirty` is "yes" or "no"; both git entries are None outside a checkout.
    """
    names = [*DISTRIBUTIONS, *(_quietly(_plugin_distributions) or [])]
    found: dict[str, str | None] = {name: _quietly(partial(metadata.version, name)) for name in names}
    commit = changes = None
    if (PROJECT_ROOT / ".git").exists():
        commit = _quietly(lambda: _git("rev-parse", "HEAD"))
        changes = _quietly(
            lambda: _git("status", "--porcelain", "--untracked-files=all", "--", *VERSIONED_PATHS)
        )
    found["git_commit"] = commit or None
    found["git_dirty"] = None if changes is None else "yes" if changes else "no"
    return found


def _host_class(host: dict[str, Any]) -> str:
    cores = host["usable_cores"] or host["logical_cores"]
    if cores is not None and host["cpu_limit_cores"] is not None:
        cores = min(cores, math.ceil(host["cpu_limit_cores"]))
    memory = min(
        (size for size in (host["memory_bytes"], host["memory_limit_bytes"]) if size is not None),
        default=None,
    )
    gpus = sorted({gpu["name"] for gpu in host["gpus"] or [] if gpu["name"]})
    instructions = host["cpu_instructions"]
    lacks = "" if instructions is None or "avx512f" in instructions else " without AVX-512"
    return ", ".join(
        (
            (host["cpu"] or "unknown CPU") + lacks,
            "unknown cores" if cores is None else f"{cores} cores",
            " + ".join(gpus) or "no GPU",
            "unknown memory" if memory is None else f"{round(memory / GIB)} GiB",
        )
    )


def _cpu_model(root: Path) -> str | None:
    if sys.platform == "darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string")
    text = (root / "proc/cpuinfo").read_text()
    # x86 has "model name"; some ARM kernels have "Model" or "Hardware", most only a part number
    for name in ("model name", "Model", "Hardware"):
        if found := re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE):
            return " ".join(found[1].split())
    part = re.search(r"^CPU part\s*:\s*(\w+)", text, re.MULTILINE)
    return f"{platform.machine()} part {part[1]}" if part else platform.processor() or None


def _cpu_generation(root: Path) -> str | None:
    """Return the family and model number of an x86 processor, which tell generations of one name apart."""
    text = (root / "proc/cpuinfo").read_text()
    found = [re.search(rf"^{name}\s*:\s*(\d+)$", text, re.MULTILINE) for name in ("cpu family", "model")]
    family, model = (None if number is None else number[1] for number in found)
    return None if family is None or model is None else f"family {family}, model {model}"


def _cpu_instructions(root: Path) -> list[str] | None:
    """Return the vector instructions of an x86 processor by which engines choose their kernels."""
    found = re.search(r"^flags\s*:\s*(.+)$", (root / "proc/cpuinfo").read_text(), re.MULTILINE)
    if found is None:
        return None
    flags = set(found[1].split())
    return [name for name in VECTOR_INSTRUCTIONS if name in flags]


def _governor(root: Path) -> str | None:
    paths = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return " + ".join(sorted({path.read_text().strip() for path in paths})) or None


def _frequency_hz(limit: str) -> int | None:
    frequency = psutil.cpu_freq()
    megahertz = getattr(frequency, limit) if frequency else 0
    return round(megahertz * 1e6) or None  # virtual machines report 0


def _gpus(nvml: Any) -> dict[str, Any]:
    """Return what NVML knows; `gpus` is [] if it counts none and None if there is no NVML."""
    unknown: dict[str, Any] = {"gpus": None, "gpu_driver": None, "cuda_driver_version": None}
    if nvml is None:
        return unknown

    def gpu(index: int) -> dict[str, Any]:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        return {
            "name": _quietly(lambda: _text(nvml.nvmlDeviceGetName(handle))),
            "memory_bytes": _quietly(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        }

    def cuda_version() -> str:
        number = nvml.nvmlSystemGetCudaDriverVersion()
        return f"{number // 1000}.{number % 1000 // 10}"

    return {
        "gpus": _quietly(lambda: [gpu(index) for index in range(nvml.nvmlDeviceGetCount())]),
        "gpu_driver": _quietly(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
        "cuda_driver_version": _quietly(cuda_version),
    }


def _container(root: Path) -> dict[str, Any]:
    runtime = None
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        runtime = "kubernetes"
    elif (root / "run/.containerenv").exists():
        runtime = "podman"
    elif (root / ".dockerenv").exists():
        runtime = "docker"
    folders = list(_cgroup_folders(root))
    return {
        "runtime": runtime,
        "cpu_limit_cores": min(filter(None, map(_cpu_limit, folders)), default=None),
        "memory_limit_bytes": min(filter(None, map(_memory_limit, folders)), default=None),
    }


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the cgroups of this process, up to the root; the tightest limit applies."""
    base = root / "sys/fs/cgroup"
    for line in (_quietly((root / "proc/self/cgroup").read_text) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        # version 2 has one tree, version 1 one per controller
        top = base / controllers if controllers else base
        folder = top / path.lstrip("/")
        while folder.is_relative_to(top):
            yield folder
            folder = folder.parent


def _cpu_limit(folder: Path) -> float | None:
    quota_path, period_path = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text().split()
    elif quota_path.exists():
        quota, period = quota_path.read_text().strip(), period_path.read_text().strip()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (folder / name).exists():
            text = (folder / name).read_text().strip()
            return int(text) if text != "max" and int(text) < UNLIMITED_BYTES else None
    return None


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _plugin_distributions() -> list[str]:
    points = old_names.points("asrgate.backends")
    return sorted(
        {point.dist.name for point in points.values() if point.dist is not None} - set(DISTRIBUTIONS)
    )


def _git(*arguments: str) -> str:
    # otherwise status locks the index, and a commit made at the same time would fail
    return _run("git", "--no-optional-locks", "-C", str(PROJECT_ROOT), *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _ranges(numbers: list[int]) -> str:
    """Write [0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _quietly(ask: Callable[[], Any]) -> Any:
    """Return what `ask` returns, or None if it raises: a missing fact must not stop a run."""
    try:
        return ask()
    except Exception:
        return None
