"""Compiled MAX graphs, cached under everything that they depend on."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import itertools
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrgate.backends.base import LOAD_LOG, BackendError
from asrgate.backends.checkpoints.cache import cache_dir, locked, replaced_whole

if TYPE_CHECKING:
    from asrgate.backends.max_graph.weights import Kinds

PACKAGE = Path(__file__).parent
LOG = logging.getLogger(LOAD_LOG)
_KEYS = itertools.count(1)  # one per captured graph
# Mojo's set-up changes these without `os.environ`, so that every child process would run another Python
LEAKED = ("PYTHONEXECUTABLE", "PYTHONPATH", "MOJO_PYTHON_LIBRARY")


@dataclass(frozen=True)
class Plan:
    """What a compilation needs.

    Attributes:
        builders: name -> function that builds the max.graph.Graph, with keywords to pass on to Graph.
        kinds: the tensors that the graphs take.
    """

    builders: Mapping[str, Callable[..., Any]]
    kinds: Kinds


@dataclass(frozen=True)
class Artefact:
    """The files of graphs compiled together; another MAX release, source, machine or size has other files.

    Attributes:
        code: the compiled graphs.
        facts: JSON: the `kinds` that the graphs take, and the `seconds` that the compilation took.
        same: a pattern that the facts of the same graphs match, compiled by any release from any source.
    """

    code: Path
    facts: Path
    same: str

    @classmethod
    def of(cls, names: Sequence[str], device: str, parts: Mapping[str, Any]) -> Artefact:
        """Name the files.

        Args:
            names: the graphs' names.
            device: "cpu" or "cuda".
            parts: JSON-ready facts that the graphs' code depends on, such as dimensions and precision.
        """
        kind = _digest({"names": list(names), "machine": machine(device), "device": device, **parts})
        release = _digest({"max": version("max"), "source": source_sha256()})
        stem = f"{'+'.join(names)}-{kind}"
        folder = cache_dir() / "max"
        return cls(folder / f"{stem}-{release}.mef", folder / f"{stem}-{release}.json", f"{stem}-*.json")

    def is_complete(self) -> bool:
        """Whether another load can use it; the facts are written first."""
        return self.code.exists() and self.facts.exists()

    def kinds(self) -> Kinds:
        """Return the tensors that the graphs take."""
        kinds = json.loads(self.facts.read_text(encoding="utf-8"))["kinds"]
        return {name: (dtype, tuple(shape)) for name, (dtype, shape) in kinds.items()}

    def write(self, model: Any, kinds: Kinds, seconds: float) -> None:
        """Keep a max.engine.CompiledModel."""
        with replaced_whole(self.facts) as partial:
            partial.write_text(json.dumps({"seconds": seconds, "kinds": kinds}), encoding="utf-8")
        with replaced_whole(self.code) as partial:
            model.export_mef(partial)

    def last_seconds(self) -> float | None:
        """Return what these graphs' latest compilation on this machine took; None if there was none."""
        known = sorted(self.facts.parent.glob(self.same), key=lambda path: path.stat().st_mtime)
        return json.loads(known[-1].read_text(encoding="utf-8"))["seconds"] if known else None


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def source_sha256() -> str:
    """Return a hash of this package's Python and Mojo files, so that a changed graph is compiled anew."""
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.mojo")]):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def machine(device: str) -> str:
    """Return what compiled code is made for: the CPU's model and instruction sets, or the GPU's name."""
    from max.driver import Accelerator

    if device != "cpu":
        accelerator = Accelerator()
        return f"{accelerator.api} {accelerator.architecture_name}"
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    relevant = {
        k.strip(): v.strip() for k, v in facts.items() if k.strip() in ("model name", "flags", "Features")
    }
    return json.dumps(relevant, sort_keys=True)


def load_all(
    session: Any,
    device: str,
    parts: Mapping[str, Any],
    names: Sequence[str],
    plan: Callable[[Sequence[str]], Plan],
    weights: Callable[[Kinds], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return graphs ready to run, from the cache or compiled all at once, as each compilation costs 11 s.

    Two processes that want the same graphs compile them once: the second one waits for the first.

    Args:
        session: a max.engine.InferenceSession.
        device: "cpu" or "cuda".
        parts: JSON-ready facts that the graphs depend on besides their names.
        names: the graphs' names.
        plan: called with the names, only if the cache lacks the graphs.
        weights: called with what the graphs take; returns the tensors by name.

    Returns:
        Graph name -> max.engine.Model.

    Raises:
        BackendError: MAX cannot compile the graphs, or the weights do not fit.
    """
    artefact = Artefact.of(names, device, parts)
    if not artefact.is_complete():
        with locked(artefact.code):
            if not artefact.is_complete():
                return _compile_and_load(session, artefact, plan(names), weights)
    from max.engine.api import read

    tensors = weights(artefact.kinds())
    return dict(session.init_all(read(artefact.code), weights_registry=tensors))


def _compile_and_load(
    session: Any, artefact: Artefact, plan: Plan, weights: Callable[[Kinds], Mapping[str, Any]]
) -> dict[str, Any]:
    tensors = weights(plan.kinds)  # what does not fit is refused before the long part
    listed, last = ", ".join(plan.builders), artefact.last_seconds()
    before = "" if last is None else f"; the last time, it took {last:.0f} s"
    LOG.info("MAX %s compiles %s, once for this machine%s", version("max"), listed, before)
    start = time.perf_counter()
    model = compiled(session, plan.builders)
    seconds = time.perf_counter() - start
    artefact.write(model, plan.kinds, seconds)
    LOG.info("compiled %s in %.0f s", listed, seconds)
    return dict(session.init_all(model, weights_registry=tensors))


class Launch:
    """A graph on buffers that keep their addresses: captured once and replayed, if MAX can do that.

    Attributes:
        how: "as one captured graph", or "kernel by kernel" and MAX's reason.
    """

    def __init__(self, model: Any, buffers: Sequence[Any]):
        self._model, self._buffers, self._key = model, list(buffers), next(_KEYS)
        model.execute(*self._buffers)  # a first run sets up things that cannot be captured
        try:
            self._outputs = model.capture(self._key, *self._buffers)
        except (RuntimeError, ValueError) as error:
            self._outputs = None
            self.how = f"kernel by kernel: {str(error).splitlines()[0]}"
        else:
            self.how = "as one captured graph"

    def __call__(self) -> Sequence[Any]:
        """Run the graph on the buffers' present contents; the next call may overwrite the outputs."""
        if self._outputs is None:
            return self._model.execute(*self._buffers)
        self._model.replay(self._key, *self._buffers)
        return self._outputs


def compiled(session: Any, graphs: Mapping[str, Callable[..., Any]]) -> Any:
    """Compile graphs into one max.engine.CompiledModel; see `load_all`."""
    from max.graph import KernelLibrary, Module

    from asrgate.backends.max_graph.custom_ops import KERNELS

    module, library = Module(), KernelLibrary()
    library.load_paths([KERNELS])
    try:
        for graph_name, build in graphs.items():
            build(name=graph_name, module=module, kernel_library=library)
        return session.compile(module, custom_extensions=library.library_paths())
    except RuntimeError as error:
        raise BackendError(f"MAX {version('max')} cannot compile {', '.join(graphs)}: {error}") from error
    finally:
        restore_environment()


def import_max_nn() -> None:
    """Import max.nn, and leave child processes this Python.

    At its first import after an installation, MAX 26.7 compiles a part of it into its own folder, in place.
    So one process at a time imports it: another would read half a file. A process that was stopped meanwhile
    leaves half a file behind, with which no later import works; it is removed and compiled again.

    Raises:
        ImportError: MAX is not installed, or cannot compile the part.
    """
    package = find_spec("max")
    if package is None:
        raise ImportError("the package max is not installed")
    folder = os.open(next(iter(package.submodule_search_locations or ())), os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no such locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            importlib.import_module("max.nn")
        except ImportError as error:
            half = Path(error.path or "")
            if half.parent.name != "__mojocache__":
                raise
            half.unlink()
            importlib.import_module("max.nn")
    finally:
        os.close(folder)
        restore_environment()


def restore_environment() -> None:
    """Give child processes the environment that `os.environ` shows, without what Mojo's set-up added."""
    for name in LEAKED:
        if name in os.environ:
            os.putenv(name, os.environ[name])
        else:
            os.unsetenv(name)


def try_out(device: str) -> str:
    """Compile and run a small graph on "cpu" or "cuda"; return MAX's release and the device's name.

    Raises:
        RuntimeError: MAX cannot compile for the device, or its results there are wrong.
        ValueError: there is no such device.
    """
    import numpy as np
    from max.driver import CPU, Accelerator, Buffer
    from max.dtype import DType
    from max.engine import InferenceSession
    from max.graph import DeviceRef, Graph, TensorType

    driver = CPU() if device == "cpu" else Accelerator()
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((8, 8), np.float32) for _ in range(2))
    kind = TensorType(DType.float32, a.shape, device=DeviceRef.from_device(driver))
    # without a product of matrices, which would take three times as long to compile
    graph = Graph("try_out", lambda a, b: a.tensor * b.tensor + a.tensor, input_types=[kind, kind])
    model = InferenceSession(devices=[driver]).load(graph)
    computed = model.execute(*(Buffer.from_numpy(x).to(driver) for x in (a, b)))[0].to(CPU()).to_numpy()
    if not np.allclose(computed, a * b + a, atol=1e-5):
        raise RuntimeError(f"a product and a sum are wrong by {np.abs(computed - a * b - a).max():.1e}")
    return f"MAX {version('max')} compiles and runs on {driver.label}"
