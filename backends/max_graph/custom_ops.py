"""Calls of our Mojo kernels in a MAX graph: one function an operation, all for the CPU.

A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Dim, TensorType, TensorValue, ops

KERNELS = Path(__file__).parent / "kernels"


def linear(
    x: TensorValue,
    weight: TensorValue,
    *,
    scale: TensorValue | None = None,
    bias: TensorValue | None = None,
    added: TensorValue | None = None,
    gelu: bool = False,
) -> TensorValue:
    """act(scale * (x weightT) + bias) + added, for a few rows of x: the decoder's products.

    Reads each row of the matrix once for up to eight rows of x, sums in float32 whatever the matrix
    holds, and stays on the calling thread up to 16 MiB of matrix: see ONE_THREAD_BYTES in linear.mojo.

    Args:
        x: float32 (batch, k); best up to 8 rows.
        weight: float32, float16, bfloat16 or int8 (n, k), rows as torch.nn.Linear has them.
        scale: float32 (n,), one factor a row of an int8 matrix; see `quantize_rows`.
        bias: float32 (n,), before the activation.
        added: float32 (batch, n), after the activation: the residual.
        gelu: the exact, erf-based GELU.

    Returns:
        float32 (batch, n).
    """
    cpu = DeviceRef.CPU()
    vector = ops.constant(np.zeros(1, np.float32), DType.float32, cpu)
    matrix = ops.constant(np.zeros((1, 1), np.float32), DType.float32, cpu)
    operands = [
        x,
        weight,
        vector if scale is None else scale,
        vector if bias is None else bias,
        matrix if added is None else added,
    ]
    return ops.custom(
        "asr_linear",
        cpu,
        operands,
        [TensorType(DType.float32, (x.shape[0], weight.shape[0]), cpu)],
        {
            "scaled": scale is not None,
            "biased": bias is not None,
            "residual": added is not None,
            "gelu": gelu,
        },
    )[0].tensor


def cross_attention(query: TensorValue, keys: TensorValue, values: TensorValue, layer: int) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v of one new position over the audio.

    Args:
        query: float32 (1, n_state).
        keys, values: float32 or bfloat16 (layers, heads, positions, head size).
        layer: which of the layers.

    Returns:
        float32 (1, n_state).
    """
    cpu = DeviceRef.CPU()
    return ops.custom(
        "asr_step_cross_attention",
        cpu,
        [query, keys, values],
        [TensorType(DType.float32, query.shape, cpu)],
        {"size": int(keys.shape[3]), "layer": layer},
    )[0].tensor


def self_attention(
    query: TensorValue,
    key: TensorValue,
    value: TensorValue,
    position: TensorValue,
    cache: BufferValue,
    layer: int,
    n_head: int,
) -> TensorValue:
    """Put a new position's key and value into the cache, and attend to it and all before it.

    Args:
        query, key, value: float32 (1, n_state).
        position: int64 (1,).
        cache: float32 (layers, 2, n_text_ctx, n_state), changed in place.
        layer: which of the layers.
        n_head: heads side by side in n_state.

    Returns:
        float32 (1, n_state).
    """
    cpu = DeviceRef.CPU()
    return ops.inplace_custom(
        "asr_step_self_attention",
        cpu,
        [query, key, value, position, cache],
        [TensorType(DType.float32, query.shape, cpu)],
        {"size": int(query.shape[1]) // n_head, "layer": layer},
    )[0].tensor


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float matrix (n, k) as int8 (n, k) and float32 scales (n,): weight = int8 * scale, row by row."""
    scale = np.abs(weight).max(axis=1) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def log_mel(
    audio: TensorValue, filters: TensorValue, frames: Dim | int, *, reflect: bool = True
) -> TensorValue:
    """log10 of the mel-filtered power of each 10 ms, at least -10: Whisper's before its clamp and scaling.

    One FFT of 400 samples under a periodic Hann window a frame; the zeros of the filters are skipped.

    Args:
        audio: float32 (samples,) of 16 kHz.
        filters: float32 (n_mels, 201), as whisper.audio.mel_filters has them.
        frames: how many; at most samples // 160 + 1, of which whisper drops the last.
        reflect: mirror the audio by 200 samples at both ends, as whisper does, so that frame i is centred
            on sample 160 i. Without, frame i is samples 160 i to 160 i + 399 and all must be there.

    Returns:
        float32 (n_mels, frames). The graph stops with an error on audio too short.
    """
    cpu = DeviceRef.CPU()
    return ops.custom(
        "asr_log_mel",
        cpu,
        [audio, filters],
        [TensorType(DType.float32, (filters.shape[0], frames), cpu)],
        {"reflect": reflect},
    )[0].tensor


def select(
    logits: TensorValue, masks: TensorValue, rules: TensorValue
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """The likeliest allowed token, under whisper.decoding's suppression and timestamp rules.

    If the last rule asks for it, text is forbidden where all timestamps together are likelier than the
    likeliest text token. The first of equals wins.

    Args:
        logits: float32 (n_vocab,).
        masks: float32 (masks, n_vocab), one is added to the logits: minus infinity forbids, 0 does not.
        rules: int64 (6,): first text token allowed, first timestamp token, first timestamp allowed,
            whether to weigh timestamps against text (1 or 0), the no-speech token or -1, and which mask.

    Returns:
        The token, int64 (1,); its log-probability among the allowed, float32 (1,); the probability of the
        no-speech token among all, unmasked, float32 (1,), or 0 if that was not asked for. The graph stops
        with an error if nothing is allowed or a rule is out of range.
    """
    cpu = DeviceRef.CPU()
    one = TensorType(DType.float32, (1,), cpu)
    chosen, logprob, quiet = ops.custom(
        "asr_select",
        cpu,
        [logits, masks, rules],
        [TensorType(DType.int64, (1,), cpu), one, one],
        {},
    )
    return chosen.tensor, logprob.tensor, quiet.tensor
