"""Compiles the MAX graphs for a GPU that need not be there, and prints the size of what came out.

    python tests/gpu_compile.py sm_90a float16 log_mel encoder step layers
    python tests/gpu_compile.py sm_90a float16 kernels

Any of these; "kernels" are our own alone. A minute a graph in float16, several in bfloat16.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from max import driver
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, TensorType
from whisper.model import ModelDimensions

from asrgate.backends.max_graph import device_ops, log_mel, session
from asrgate.backends.max_graph.graphs import WhisperGraphs
from asrgate.backends.max_graph.place import place

# one layer of the tiny size: what more there would be is the same code again
DIMS = ModelDimensions(80, 1500, 384, 6, 1, 51_864, 448, 384, 6, 1)


def builders(device: DeviceRef, precision: str) -> dict[str, Callable[..., Graph]]:
    """All graphs of a GPU by name."""
    graphs = WhisperGraphs(DIMS, place(device, precision, halves=True), "mojo")
    return graphs.builders(["log_mel", "encoder", "step", "layers"])


def kernels(device: DeviceRef) -> dict[str, Callable[..., Graph]]:
    """Our own kernels in all precisions, without a product."""
    dtypes = DType.float16, DType.bfloat16, DType.float32
    return {
        **{f"attention_{x.name}": lambda x=x, **shared: attention(device, x, shared) for x in dtypes},
        "log_mel": lambda **shared: log_mel_kernel(device, shared),
        "choice": lambda **shared: choice(device, shared),
    }


def attention(device: DeviceRef, dtype: DType, shared: Any) -> Graph:
    n, heads, positions = DIMS.n_text_state, DIMS.n_text_head, DIMS.n_text_ctx

    def forward(qkv: Any, cache: Any, audio: Any, state: Any) -> Any:
        query = device_ops.self_attention(qkv.tensor, cache.buffer, state.buffer, 0, heads)
        return device_ops.cross_attention(query, audio.tensor, audio.tensor, 0)

    return Graph(
        forward=forward,
        input_types=[
            TensorType(dtype, (1, 3 * n), device=device),
            BufferType(dtype, (1, 2, positions, n), device=device),
            TensorType(dtype, (1, heads, DIMS.n_audio_ctx, n // heads), device=device),
            BufferType(DType.int64, (8,), device=device),
        ],
        **shared,
    )


def log_mel_kernel(device: DeviceRef, shared: Any) -> Graph:
    shapes = ("hops", log_mel.HOP_LENGTH), (2, log_mel.N_FFT), (DIMS.n_mels, log_mel.BINS)
    return Graph(
        forward=lambda *given: device_ops.log_mel(*(x.tensor for x in given)),
        input_types=[TensorType(DType.float32, shape, device=device) for shape in shapes],
        **shared,
    )


def choice(device: DeviceRef, shared: Any) -> Graph:
    def forward(
        logits: Any, masks: Any, state: Any, sums: Any, sampled: Any, prompt: Any, numbers: Any
    ) -> Any:
        buffers = state.buffer, sums.buffer, sampled.buffer
        device_ops.choose(logits.tensor, masks.tensor, *buffers, prompt.tensor, numbers.tensor)
        return numbers

    return Graph(
        forward=forward,
        input_types=[
            TensorType(DType.float32, (DIMS.n_vocab,), device=device),
            TensorType(DType.float32, (2, DIMS.n_vocab), device=device),
            BufferType(DType.int64, (8,), device=device),
            BufferType(DType.float32, (2,), device=device),
            BufferType(DType.int64, (DIMS.n_text_ctx,), device=device),
            TensorType(DType.int64, (DIMS.n_text_ctx,), device=device),
            TensorType(DType.int64, (8,), device=device),
        ],
        **shared,
    )


def main(architecture: str, precision: str, *names: str) -> None:
    driver.set_virtual_device_api("cuda")
    driver.set_virtual_device_target_arch(architecture)
    driver.set_virtual_device_count(1)
    gpu = driver.Accelerator(0)
    device = DeviceRef.from_device(gpu)
    found = builders(device, precision)
    wanted = kernels(device) if names == ("kernels",) else {name: found[name] for name in names}
    compiled = session.compiled(InferenceSession(devices=[driver.CPU(), gpu]), wanted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graphs.mef"
        compiled.export_mef(path)
        print(path.stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
