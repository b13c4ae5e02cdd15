"""What a GPU would run, on a machine that need not have one: its graphs are built, its kernels compiled.

test_max_backends computes with both on the CPU. The products are MAX's own and take minutes to compile for a
GPU: tests/gpu_compile.py does that by hand.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from paths import SUPPORT

pytest.importorskip("max.engine", reason="needs the package max")

from gpu_compile import builders
from max.graph import BufferType, DeviceRef, KernelLibrary, Module, TensorType

from asrgate.backends.max_graph import place as places
from asrgate.backends.max_graph import session
from asrgate.backends.max_graph.custom_ops import KERNELS
from asrgate.backends.max_whisper import MaxWhisper

pytestmark = pytest.mark.slow

COMPILE = SUPPORT / "gpu_compile.py"


@pytest.mark.parametrize("precision", MaxWhisper.devices["cuda"])
def test_graphs_keep_to_the_gpu(precision: str) -> None:
    """What a step or an encoding reads and leaves is on the GPU, else it could not be captured."""
    module, library = Module(), KernelLibrary()
    library.load_paths([KERNELS])
    gpu = DeviceRef.GPU()
    for name, build in builders(gpu, precision).items():
        graph = build(name=name, module=module, kernel_library=library)
        kinds = [*(x.type for x in graph.inputs), *graph.output_types]
        assert all(isinstance(x, (TensorType, BufferType)) for x in kinds)
        assert {str(x.device) for x in kinds} == {str(gpu)}, name
    place = places.place(gpu, precision, halves=True)
    assert {place.dtype.name, place.encoder_dtype.name, place.step_dtype.name, place.cross_dtype.name} == {
        precision
    }


class Model:
    """Says what was asked of it; `buffers` hold what a run reads."""

    def __init__(self, captures: bool):
        self.captures, self.asked = captures, []

    def execute(self, *buffers: list[int]) -> list[int]:
        self.asked.append("execute")
        return [buffers[0][0]]

    def capture(self, key: int, *buffers: list[int]) -> list[int]:
        if not self.captures:
            raise RuntimeError("no graph capture\nat all")
        self.asked.append(f"capture {key}")
        self.outputs = [0]
        return self.outputs

    def replay(self, key: int, *buffers: list[int]) -> None:
        self.asked.append(f"replay {key}")
        self.outputs[0] = buffers[0][0]


def test_children_of_what_builds_graphs_run_this_python() -> None:
    """In a process of its own: importing max.nn once is enough to lead them elsewhere."""
    code = (
        "import subprocess, sys; import gpu_compile;"
        "subprocess.run([sys.executable, '-c', 'import sys, rich; print(sys.executable)'], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=COMPILE.parent
    )
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable), done.stderr


def test_a_graph_is_captured_once_and_replayed() -> None:
    model, buffer = Model(captures=True), [0]
    launch = session.Launch(model, [buffer])
    for value in (5, 6):
        buffer[0] = value
        assert launch() == [value]
    _, key = model.asked[1].split()
    assert model.asked == ["execute", f"capture {key}", f"replay {key}", f"replay {key}"]
    assert launch.how == "as one captured graph"
    other = Model(captures=True)
    session.Launch(other, [buffer])
    assert other.asked[1] != model.asked[1], "two graphs under one key"


def test_a_graph_that_cannot_be_captured_is_launched_anew() -> None:
    model, buffer = Model(captures=False), [0]
    launch = session.Launch(model, [buffer])
    buffer[0] = 5
    assert launch() == [5]
    assert model.asked == ["execute", "execute"]
    assert launch.how == "kernel by kernel: no graph capture"


@pytest.mark.timeout(300)
def test_kernels_compile_for_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, str(COMPILE), "sm_90a", "float32", "kernels"],
        check=False,
        capture_output=True,
        text=True,
        cwd=COMPILE.parents[1],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10_000
