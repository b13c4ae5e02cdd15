"""What a GPU would run, on a machine that need not have one: its graphs are built, its kernels compiled.

test_max_backends computes with both on the CPU. The products are MAX's own and take minutes to compile for a
GPU: tests/gpu_compile.py does that by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("max.engine", reason="needs the package max")

from gpu_compile import builders
from max.graph import BufferType, DeviceRef, KernelLibrary, Module, TensorType

from backends.max_graph import engine, session
from backends.max_graph.custom_ops import KERNELS
from backends.max_whisper import MaxWhisper

COMPILE = Path(__file__).with_name("gpu_compile.py")


@pytest.mark.parametrize("precision", MaxWhisper.devices["cuda"])
def test_graphs_keep_to_the_gpu(precision: str) -> None:
    """What a step or an encoding reads and leaves is on the GPU, else it could not be captured."""
    module, library = Module(), KernelLibrary()
    library.load_paths([KERNELS])
    session.restore_environment()
    gpu = DeviceRef.GPU()
    for name, build in builders(gpu, precision).items():
        graph = build(name=name, module=module, kernel_library=library)
        kinds = [*(x.type for x in graph.inputs), *graph.output_types]
        assert all(isinstance(x, (TensorType, BufferType)) for x in kinds)
        assert {str(x.device) for x in kinds} == {str(gpu)}, name
    place = engine.place(gpu, precision, halves=True)
    assert {place.dtype.name, place.encoder_dtype.name, place.step_dtype.name, place.cross_dtype.name} == {
        precision
    }


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
