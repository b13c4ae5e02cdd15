"""Calls of our Mojo kernels for many rows at once: the encoder's products and attention on the CPU.

A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorType, TensorValue, ops

PANEL = 32  # columns per packed panel; kernels/matrix.mojo and matrix_bf16.mojo have the same number


def whole_panels(weight: Any) -> np.ndarray:
    """Return a weight as a float32 matrix (n, k) whose rows are padded with zeros to a multiple of 32.

    Args:
        weight: (n, k), with the rows of torch.nn.Linear; or a convolution's kernel (n, channels, width),
            which becomes the matrix (n, width channels).
    """
    array = np.asarray(weight, np.float32)
    if array.ndim == 3:
        array = array.transpose(0, 2, 1).reshape(len(array), -1)
    n, k = array.shape
    padded = np.zeros((-(-n // PANEL) * PANEL, k), np.float32)
    padded[:n] = array
    return padded


def panels(weight: Any) -> np.ndarray:
    """Return a weight as `product` reads it: float32 (n / 32, k, 32); see `whole_panels`."""
    padded = whole_panels(weight)
    return np.ascontiguousarray(padded.reshape(-1, PANEL, padded.shape[1]).transpose(0, 2, 1))


def product(
    x: TensorValue,
    weight: TensorValue,
    *,
    rows: Dim | int | None = None,
    step: int | None = None,
    bias: TensorValue | None = None,
    added: TensorValue | None = None,
    gelu: bool = False,
    out_dtype: DType = DType.float32,
) -> TensorValue:
    """act(x weightT + bias) + added, in float32.

    With `rows` and `step`, x is read as one line of numbers, and row i of the left factor is its k numbers
    from i * step on. The rows overlap, which makes a product of a convolution (or of a windowed DFT).

    Args:
        x: float32 (m, k), or any shape of rank 2 with `rows` and `step`.
        weight: float32 (n / 32, k, 32), see `panels`.
        rows: the number of rows of the left factor, m; x's own by default.
        step: the distance between the beginnings of two rows; k by default.
        bias: float32 (n,), added before the activation.
        added: float32 (m, n), the residual, added after the activation.
        gelu: whether the activation is the exact, erf-based GELU; without it there is none.
        out_dtype: float32.

    Returns:
        float32 (m, n).
    """
    step = int(weight.shape[1]) if step is None else step
    return product_of("asr_product", [x, weight], rows, out_dtype, bias, added, gelu, step=step)


def product_of(
    kernel: str,
    factors: list[TensorValue],
    rows: Dim | int | None,
    out_dtype: DType,
    bias: TensorValue | None,
    added: TensorValue | None,
    gelu: bool,
    **parameters: Any,
) -> TensorValue:
    """Call a kernel that computes `product`.

    Args:
        kernel: its name.
        factors: x, the weight in panels, and what else the kernel takes before the bias.
        rows, out_dtype, bias, added, gelu: as for `product`.
        parameters: what the kernel has besides.
    """
    cpu = DeviceRef.CPU()
    vector = ops.constant(np.zeros(1, np.float32), DType.float32, cpu)
    matrix = ops.constant(np.zeros((1, 1), np.float32), DType.float32, cpu)
    x, weight = factors[:2]
    shape = (
        x.shape[0] if rows is None else rows,
        int(weight.shape[-4 if len(weight.shape) > 3 else 0]) * PANEL,
    )
    return ops.custom(
        kernel,
        cpu,
        [*factors, vector if bias is None else bias, matrix if added is None else added],
        [TensorType(out_dtype, shape, cpu)],
        {"biased": bias is not None, "residual": added is not None, "gelu": gelu, **parameters},
    )[0].tensor


def attention(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v over all positions.

    Args:
        query, key, value: float32 (positions, n_state).
        n_head: the number of heads, which lie side by side in n_state.

    Returns:
        (positions, n_state), of the query's type.
    """
    return attention_of("asr_attention", query, key, value, n_head)


def attention_of(
    kernel: str, query: TensorValue, key: TensorValue, value: TensorValue, n_head: int, **parameters: Any
) -> TensorValue:
    """Call a kernel that computes `attention`; `parameters` are what it has besides."""
    return ops.custom(
        kernel,
        DeviceRef.CPU(),
        [query, key, value],
        [TensorType(query.dtype, query.shape, DeviceRef.CPU())],
        {"size": int(query.shape[1]) // n_head, **parameters},
    )[0].tensor


def padded(x: TensorValue, *, turned: bool = False) -> TensorValue:
    """Put a row of zeros before and one behind: float32 (rows, n), or turned (n, rows), to (rows + 2, n)."""
    rows, n = (x.shape[1], x.shape[0]) if turned else (x.shape[0], x.shape[1])
    cpu = DeviceRef.CPU()
    kind = TensorType(DType.float32, (rows + 2, n), cpu)
    return ops.custom("asr_padded", cpu, [x], [kind], {"turned": turned})[0].tensor


def sum_of_rows(x: TensorValue, added: TensorValue) -> TensorValue:
    """x plus the first of `added`'s rows: float32 (rows, n), (rows or more, n) to (rows, n)."""
    return ops.custom("asr_sum_of_rows", DeviceRef.CPU(), [x, added], [x.type], {})[0].tensor


def heads(x: TensorValue, layers: int, n_head: int, dtype: DType) -> tuple[TensorValue, TensorValue]:
    """Take keys and values apart.

    Args:
        x: float32 (positions, 2 layers n_state): each layer's keys and values, side by side.
        layers, n_head: the numbers of layers and of heads.
        dtype: the type of the results.

    Returns:
        Keys and values, (layers, heads, positions, head size) each.
    """
    cpu = DeviceRef.CPU()
    kind = TensorType(dtype, (layers, n_head, x.shape[0], int(x.shape[1]) // (2 * layers * n_head)), cpu)
    keys, values = ops.custom("asr_heads", cpu, [x], [kind, kind], {})
    return keys.tensor, values.tensor
