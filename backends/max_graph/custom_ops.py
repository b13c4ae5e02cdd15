"""Calls of our Mojo kernels in a MAX graph: one function per operation, all for the CPU.

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

    It reads each row of the matrix once for up to eight rows of x, and sums in float32 whatever the matrix's
    type. For a matrix of up to 16 MiB it stays on the calling thread: see ONE_THREAD_BYTES in linear.mojo.

    Args:
        x: float32 (batch, k); up to 8 rows are best.
        weight: float32, float16, bfloat16 or int8 (n, k), with the rows of torch.nn.Linear.
        scale: float32 (n,), one factor per row of an int8 matrix; see `quantize_rows`.
        bias: float32 (n,), added before the activation.
        added: float32 (batch, n), the residual, added after the activation.
        gelu: whether the activation is the exact, erf-based GELU; without it there is none.

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


def cross_attention(
    query: TensorValue, keys: TensorValue, values: TensorValue, state: BufferValue, layer: int
) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v of one new position of each window over its audio's positions.

    Args:
        query: float32 (windows, n_state).
        keys, values: float32 or bfloat16 (windows, layers, heads, positions, head size), or (1, ...) if all
            windows have the same audio.
        state: a decoder.WindowState for each window, of which only `done` is used.
        layer: the layer's number.

    Returns:
        float32 (windows, n_state); what it holds for a window that is done is not defined.
    """
    cpu = DeviceRef.CPU()
    return ops.inplace_custom(
        "asr_step_cross_attention",
        cpu,
        [query, keys, values, state],
        [TensorType(DType.float32, query.shape, cpu)],
        {"size": int(keys.shape[4]), "layer": layer},
    )[0].tensor


def self_attention(
    qkv: TensorValue, state: BufferValue, cache: BufferValue, layer: int, n_head: int
) -> TensorValue:
    """Put a new position's key and value into each window's cache; attend to this position and all before it.

    Args:
        qkv: query, key and value side by side, float32 (windows, 3 n_state).
        state: a decoder.WindowState for each window, of which the position and `done` are used.
        cache: float32 (windows, layers, 2, n_text_ctx, n_state), changed in place.
        layer: the layer's number.
        n_head: the number of heads, which lie side by side in n_state.

    Returns:
        float32 (windows, n_state); what it holds for a window that is done is not defined.
    """
    cpu = DeviceRef.CPU()
    n_state = int(qkv.shape[1]) // 3
    return ops.inplace_custom(
        "asr_step_self_attention",
        cpu,
        [qkv, state, cache],
        [TensorType(DType.float32, (qkv.shape[0], n_state), cpu)],
        {"size": n_state // n_head, "layer": layer},
    )[0].tensor


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a float matrix (n, k) as int8 (n, k) and float32 (n,): each row is its int8 times its scale."""
    scale = np.abs(weight).max(axis=1) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def layer_norm(
    x: TensorValue, weight: TensorValue, bias: TensorValue, out_dtype: DType = DType.float32
) -> TensorValue:
    """torch.nn.LayerNorm over rows: float32 (rows, n), (n,) and (n,) to (rows, n) of `out_dtype`."""
    cpu = DeviceRef.CPU()
    kind = TensorType(out_dtype, x.shape, cpu)
    return ops.custom("asr_layer_norm", cpu, [x, weight, bias], [kind], {})[0].tensor


def embedded(
    weight: TensorValue, scale: TensorValue | None, positions: TensorValue, state: BufferValue
) -> TensorValue:
    """The first layer's input for each window's token and position.

    Args:
        weight: float32, float16, bfloat16 or int8 (n_vocab, n_state).
        scale: float32 (n_vocab,), one factor per row of an int8 matrix; see `quantize_rows`.
        positions: float32 (n_text_ctx, n_state).
        state: a decoder.WindowState for each window.

    Returns:
        float32 (windows, n_state). The graph stops with an error if there is no such token or position.
    """
    cpu = DeviceRef.CPU()
    factors = ops.constant(np.zeros(1, np.float32), DType.float32, cpu) if scale is None else scale
    return ops.inplace_custom(
        "asr_embedded",
        cpu,
        [weight, factors, positions, state],
        [TensorType(DType.float32, (state.shape[0], weight.shape[1]), cpu)],
        {"scaled": scale is not None},
    )[0].tensor


def log_mel(
    audio: TensorValue, filters: TensorValue, frames: Dim | int, *, reflect: bool = True
) -> tuple[TensorValue, TensorValue]:
    """Whisper's log-mel: scaled, and cut off 8 decades below the loudest band.

    Each frame takes one FFT of 400 samples under a periodic Hann window. The filters' zeros are skipped.

    Args:
        audio: float32 (samples,), 16 kHz.
        filters: float32 (n_mels, 201), from whisper.audio.mel_filters.
        frames: the number of frames; at most samples // 160 + 1, of which whisper drops the last.
        reflect: whether to mirror the audio by 200 samples at both ends, as whisper does, so that frame i is
            centred on sample 160 i. If not, frame i is samples 160 i to 160 i + 399, which must all exist.

    Returns:
        float32 (n_mels, frames), and the value (1, 1) of a frame of digital silence, which depends on the
        loudest band. The graph stops with an error if the audio is too short.
    """
    cpu = DeviceRef.CPU()
    shapes = (filters.shape[0], frames), (1, 1)
    mel, silence = ops.custom(
        "asr_log_mel",
        cpu,
        [audio, filters],
        [TensorType(DType.float32, shape, cpu) for shape in shapes],
        {"reflect": reflect},
    )
    return mel.tensor, silence.tensor


def select(
    logits: TensorValue,
    masks: TensorValue,
    rules: TensorValue,
    candidates: BufferValue,
    chances: BufferValue,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """Select each window's likeliest token that whisper.decoding's suppression and timestamp rules allow.

    If the rules ask for it, text is forbidden when all timestamps together are likelier than the likeliest
    text token. Of equally likely tokens, the first one wins.

    Args:
        logits: float32 (windows, n_vocab).
        masks: float32 (masks, n_vocab), one of which is added to the logits: minus infinity forbids a token,
            0 allows it.
        rules: int64 (windows, 6): the first allowed text token, the first timestamp token, the first allowed
            timestamp, whether to weigh timestamps against text (1 or 0), the no-speech token or -1, and the
            mask's number, or -1 if nothing is to be selected.
        candidates: int64 (windows, n). If n is above 1, the likeliest allowed tokens are put there, in
            descending order.
        chances: float32 (windows, n): their log-probabilities, minus infinity where there are fewer.

    Returns:
        The tokens, int64 (windows,); their log-probabilities among the allowed tokens, float32 (windows,);
        and the probability of the no-speech token among all tokens, unmasked, float32 (windows,), or 0 if it
        was not requested. The graph stops with an error if no token is allowed or a rule is out of range.
    """
    cpu = DeviceRef.CPU()
    windows = logits.shape[0]
    one = TensorType(DType.float32, (windows,), cpu)
    chosen, logprob, quiet = ops.inplace_custom(
        "asr_select",
        cpu,
        [logits, masks, rules, candidates, chances],
        [TensorType(DType.int64, (windows,), cpu), one, one],
        {},
    )
    return chosen.tensor, logprob.tensor, quiet.tensor


def rules(window: list[BufferValue | TensorValue], n_vocab: int) -> TensorValue:
    """Return what `select` takes, int64 (windows, 6): the rules for the next token of each window.

    Args:
        window: the state, sums, sampled, prompt and numbers of device_ops.choose, each of all windows.
        n_vocab: the number of tokens.
    """
    cpu = DeviceRef.CPU()
    kind = TensorType(DType.int64, (window[0].shape[0], 6), cpu)
    return ops.inplace_custom("asr_rules", cpu, window, [kind], {"size": n_vocab})[0].tensor


def advance(
    window: list[BufferValue | TensorValue],
    candidates: BufferValue,
    token: TensorValue,
    logprob: TensorValue,
    quiet: TensorValue,
) -> TensorValue:
    """Go to each window's next position, with the token selected there unless the prompt has one.

    Nothing changes in a window that is done. With several candidates, a window is done after its prompt.

    Args:
        window: the state, sums and sampled of device_ops.choose, changed in place; its prompt and numbers;
            each of all windows.
        candidates: as `select` takes them; only their number counts.
        token, logprob, quiet: as `select` returns them.

    Returns:
        bool (), whether more than half of the windows go on.
    """
    cpu = DeviceRef.CPU()
    kind = TensorType(DType.bool, (1,), cpu)
    running = ops.inplace_custom("asr_advance", cpu, [*window, candidates, token, logprob, quiet], [kind])[0]
    return ops.reshape(running.tensor, ())
