"""Compiled MAX graphs, cached under everything that they depend on."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asrgate.backends.base import LOAD_LOG, BackendError
from asrgate.backends.checkpoints.cache import cache_dir, locked, temporary_beside

PACKAGE = Path(__file__).parent
LOG = logging.getLogger(LOAD_LOG)
_KEYS = itertools.count(1)  # one per captured graph
# Mojo's set-up changes these without `os.environ`, so that every child process would run another Python
LEAKED = ("PYTHONEXECUTABLE", "PYTHONPATH", "MOJO_PYTHON_LIBRARY")


def artefact_path(name: str, device: str, parts: Mapping[str, Any]) -> Path:
    """Return the file of a compiled graph: another MAX release, source, machine or size gives another file.

    Args:
        name: the graph's name.
        device: "cpu" or "cuda".
        parts: JSON-ready facts that the graph's code depends on, such as dimensions and precision.
    """
    key = {
        "name": name,
        "max": version("max"),
        "source": source_sha256(),
        "machine": machine(device),
        "device": device,
        **parts,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "max" / f"{name}-{digest[:32]}.mef"


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
    graphs: Mapping[str, Callable[..., Any]],
    weights: Mapping[str, Any],
) -> dict[str, Any]:
    """Return graphs ready to run, from the cache or compiled all at once, as each compilation costs 11 s.

    Args:
        session: a max.engine.InferenceSession.
        device: "cpu" or "cuda".
        parts: JSON-ready facts that the graphs depend on besides their names.
        graphs: name -> function that builds the max.graph.Graph. It is called only if the cache lacks the
            graphs, with keywords to pass on to Graph.
        weights: name -> tensor, for all graphs.

    Returns:
        Graph name -> max.engine.Model.

    Raises:
        BackendError: MAX cannot compile the graphs.
    """
    from max.engine.api import read

    target, names = artefact_path("+".join(graphs), device, parts), ", ".join(graphs)
    with locked(target):
        if target.exists():
            return dict(session.init_all(read(target), weights_registry=weights))
        LOG.info("MAX %s compiles %s, once for this machine", version("max"), names)
        start = time.perf_counter()
        model = compiled(session, graphs)
        partial = temporary_beside(target)
        model.export_mef(partial)
        partial.replace(target)
        LOG.info("compiled %s in %.0f s", names, time.perf_counter() - start)
        return dict(session.init_all(model, weights_registry=weights))


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
