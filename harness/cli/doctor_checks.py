"""The checks of `asrgate doctor`: each yields lines of (status, finding, remedy).

To add a check, write a function here and add its line to CHECKS at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import soundfile

from asrgate import backends
from asrgate.backends import temporary
from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError, BackendUnavailable
from asrgate.backends.checkpoints import catalog
from asrgate.backends.checkpoints.cache import cache_dir, user_cache_dir
from asrgate.backends.description import Description
from asrgate.harness import corpus
from asrgate.harness.corpus import audio
from asrgate.harness.worker import environment, meters, sandbox
from asrgate.harness.worker.environment import GIB, PROJECT_ROOT

OK, WARN, FAIL = "ok", "warn", "fail"  # fail: the default benchmark cannot run

OLDEST_PYTHON = (3, 10)
SMALL_MEMORY_BYTES = 4 * GIB  # enough for the two default engines side by side, on the smallest models
SMALL_DISK_BYTES = GIB
BUSY_SHARE = 0.25  # of the cores, by the load average; above it, timings suffer
IMPORT_SECONDS = 120  # torch takes 2 s on a fast disk and a minute on a cold network one
COMPILE_SECONDS = 300  # a small MAX graph takes 10 s on two idle cores
CODECS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")

# Status, finding and, if there is one, the remedy. Checks take the folder for results.
Line = tuple[str, str] | tuple[str, str, str | None]
Check = Callable[[Path], Iterator[Line]]


def _python(results: Path) -> Iterator[Line]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield FAIL, f"{found} is too old", f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    else:
        yield OK, found


def _machine(results: Path) -> Iterator[Line]:
    found = environment.describe()
    yield OK, found["host_class"]
    if found["governor"] not in (None, "performance"):
        yield (
            WARN,
            f"the CPU frequency governor is {found['governor']}: timings will drift",
            "sudo cpupower frequency-set -g performance",
        )
    memory = min(filter(None, (found["memory_bytes"], found["memory_limit_bytes"])), default=None)
    if memory is not None and memory < SMALL_MEMORY_BYTES:
        yield (
            WARN,
            f"{memory / GIB:.1f} GiB of memory: engines may not fit side by side",
            "name fewer of them with --backends",
        )
    cores = found["logical_cores"]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if cores and load > BUSY_SHARE * cores:
        yield WARN, f"other programs keep {load:.1f} of {cores} cores busy", "stop them before measuring"


def _gpu(results: Path) -> Iterator[Line]:
    found = environment.describe()
    if not found["gpus"]:
        yield OK, "no NVIDIA GPU found: CPU variants only"
        return
    names = ", ".join(f"{gpu['name']} ({(gpu['memory_bytes'] or 0) / GIB:.0f} GiB)" for gpu in found["gpus"])
    yield OK, f"{names}, driver {found['gpu_driver']}, CUDA {found['cuda_driver_version']}"
    if others := meters.foreign_gpu_pids([os.getpid()]):
        yield (
            WARN,
            f"other processes use the GPU: {', '.join(map(str, others))}",
            "stop them before measuring",
        )


def _engines(results: Path) -> Iterator[Line]:
    reasons: dict[str, BackendUnavailable] = {}
    imports: dict[str, tuple[str, ...]] = {}
    for name, described in backends.describe_all(backends.names()).items():
        reason = described if isinstance(described, BackendUnavailable) else _why_not(described)
        if reason is not None:
            reasons[name] = reason
        elif isinstance(described, Description):
            imports[name] = described.imports
    modules = sorted(set(imports.values()))
    with ThreadPoolExecutor() as pool:
        broken = dict(zip(modules, pool.map(_import_trouble, modules), strict=True))
    for name, needed in imports.items():
        if trouble := broken[needed]:
            yield WARN, f"{name}: {trouble}", f"reinstall {_packages(needed) or 'its package'}"
        else:
            yield OK, f"{name}: {_packages(needed) or 'imports'}"
    for name, reason in reasons.items():
        yield WARN, f"{name}: {reason.reason}", reason.remedy
    if all(broken[needed] for needed in imports.values()):
        yield FAIL, "no engine can run here", "pip install openai-whisper faster-whisper"


def _why_not(backend: Description) -> BackendUnavailable | None:
    """Return why no variant of the backend can run here, or None if one can."""
    reason = None
    for device, precisions in backend.devices.items():
        for precision in precisions:
            try:
                backend.check(device, precision)
            except BackendUnavailable as error:
                reason = reason or error
            else:
                return None
    return reason or BackendUnavailable("its class names no device")


def _import_trouble(modules: Sequence[str]) -> str | None:
    """Import modules in a separate process, which may hang or crash; return what went wrong."""
    code = "import " + ", ".join(modules) if modules else "pass"
    return _in_process(code, IMPORT_SECONDS)[0]


def _in_process(code: str, timeout_seconds: float) -> tuple[str | None, list[str]]:
    """Run Python code in a separate process; return what went wrong and the lines that it printed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT_ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"`{code}` took more than {timeout_seconds} s", []
    if done.returncode == 0:
        return None, done.stdout.splitlines()
    if done.returncode < 0:
        return f"`{code}` was killed by {signal.Signals(-done.returncode).name}", []
    said = done.stderr.strip().splitlines()
    return f"`{code}` failed: {said[-1] if said else f'exit status {done.returncode}'}", []


def _packages(modules: Sequence[str]) -> str:
    owners = metadata.packages_distributions()
    names = dict.fromkeys(name for module in modules for name in owners.get(module.partition(".")[0], []))
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _max(results: Path) -> Iterator[Line]:
    if "max" not in backends.names() or _why_not(backends.describe("max")):
        yield OK, "not tested: the max backend cannot run here"
        return
    for device in ["cpu", *(["cuda"] if environment.describe()["gpus"] else [])]:
        code = f"from asrgate.backends.max_graph import session; print(session.try_out({device!r}))"
        trouble, said = _in_process(code, COMPILE_SECONDS)
        if trouble:
            yield WARN, f"MAX on {device}: {trouble}", "reinstall max, or leave the max backends out"
        else:
            yield OK, said[-1]


def _codecs(results: Path) -> Iterator[Line]:
    good = []
    with temporary.folder() as folder:
        for codec in CODECS:
            path = folder / f"tone.{codec}"
            try:
                _write_tone(path)
            except (av.FFmpegError, soundfile.SoundFileError, ValueError) as error:
                yield WARN, f"{codec} cannot be tested: nothing here writes it ({error})"
                continue
            try:
                samples = audio.decode(path)
            except AsrgateError as error:
                yield (
                    FAIL,
                    f"{codec} cannot be decoded: {error}",
                    "pip install --force-reinstall soundfile av",
                )
                continue
            seconds, loudness = len(samples) / SAMPLE_RATE_HZ, float(np.sqrt(np.mean(samples**2)))
            if abs(seconds - 1.0) > 0.15 or not 0.1 < loudness < 0.2:
                yield FAIL, f"{codec} decodes wrongly", "pip install --force-reinstall soundfile av"
            else:
                good.append(codec)
    if good:
        yield OK, f"{', '.join(good)} can be decoded"


def _write_tone(path: Path, rate_hz: int = 48_000) -> None:
    """Write one second of a tone of 0.14 RMS in the format the file's extension names."""
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)).astype(np.float32)
    if path.suffix == ".opus":
        soundfile.write(path, tone, rate_hz, format="OGG", subtype="OPUS")
    elif path.suffix != ".m4a":
        soundfile.write(path, tone, rate_hz)
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=rate_hz, layout="mono")
            frame = av.AudioFrame.from_ndarray(tone[None, :], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)


def _isolation(results: Path) -> Iterator[Line]:
    found = sandbox.available()
    if found.files and found.signals and found.memory:
        yield OK, f"engines are shut in (Landlock, version {found.abi})"
    else:
        yield (
            WARN,
            f"engines are not shut in, or only in part: {found.why}",
            "measure engines that you do not trust as a user, or in a container, of their own",
        )


def _checkpoints(results: Path) -> Iterator[Line]:
    entries = catalog.catalogue()
    paths = {name: catalog.find(entry) for name, entry in entries.items()}
    names = [name for name, entry in entries.items() if entry.archive is not None or paths[name] is not None]
    own = [path.stem for path in catalog.own_files() if path not in paths.values()]
    verified = 0
    for name in dict.fromkeys([*names, *own]):
        try:
            found = catalog.resolve(name)
        except AsrgateError as error:
            # a run without --model uses this one if its file exists, and stops if the file is bad
            yield FAIL if name == catalog.DEFAULT_MODEL else WARN, f"{name}: {error}"
            continue
        verified += 1
        note = f" ({found.note})" if found.note else ""
        yield OK, f"{name}: tensors {found.tensors_sha256:.12}…, {found.path}{note}"
    if not verified:
        yield (
            FAIL,
            "no checkpoint is on this machine",
            f"asrgate weights fetch {catalog.DEFAULT_MODEL}, or set ASRGATE_WEIGHTS to its folder",
        )


def _clips(results: Path) -> Iterator[Line]:
    clips = corpus.load_clips()
    yield (
        OK,
        f"{len(clips)} bundled clips, {sum(clip.audio_seconds for clip in clips):.0f} s, all can be decoded",
    )


def _caches(results: Path) -> Iterator[Line]:
    for folder in (cache_dir(), user_cache_dir() / "whisper"):
        yield OK, f"{folder}: {_size_bytes(folder) / GIB:.2f} GiB"
    yield from _writable(cache_dir(), WARN, "set ASRGATE_CACHE to a writable folder")


def _results(results: Path) -> Iterator[Line]:
    yield from _writable(results, FAIL, f"make {results} writable, or pass --results FOLDER")


def _writable(folder: Path, bad: str, remedy: str) -> Iterator[Line]:
    """Try to write to the folder or, if it does not exist yet, to the one it would be created in."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        yield bad, f"{folder} is not writable: {error.strerror}", remedy
        return
    if free < SMALL_DISK_BYTES:
        yield WARN, f"{folder} is writable, but only {free / GIB:.2f} GiB are free", "free some space"
    else:
        yield OK, f"{folder} is writable, {free / GIB:.0f} GiB free"


def _size_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may delete a file after it was listed
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total


CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", _python),
    ("machine", _machine),
    ("gpu", _gpu),
    ("engines", _engines),
    ("max", _max),
    ("codecs", _codecs),
    ("checkpoints", _checkpoints),
    ("clips", _clips),
    ("caches", _caches),
    ("isolation", _isolation),
    ("results", _results),
)
