"""Calls of our Mojo kernels for GPUs; they also run on a CPU, so that they can be tested there.

A graph that uses one needs `Graph(..., custom_extensions=[custom_ops.KERNELS])`.
"""

from __future__ import annotations

from max.graph import BufferValue, TensorType, TensorValue, ops


def log_mel(hops: TensorValue, tables: TensorValue, filters: TensorValue) -> TensorValue:
    """custom_ops.log_mel without its mirroring: log10 of the mel-filtered power of every 10 ms, at least -10.

    Args:
        hops: float32 (hops, 160), audio of 16 kHz; frame i is samples 160 i to 160 i + 399.
        tables: float32 (2, 400), the window and one period of the cosine.
        filters: float32 (n_mels, 201), as whisper.audio.mel_filters has them.

    Returns:
        float32 (n_mels, hops - 2).
    """
    return ops.custom(
        "asr_device_log_mel",
        hops.device,
        [hops, tables, filters],
        [TensorType(hops.dtype, (filters.shape[0], hops.shape[0] - 2), hops.device)],
        {},
    )[0].tensor


def self_attention(
    qkv: TensorValue, cache: BufferValue, state: BufferValue, layer: int, n_head: int
) -> TensorValue:
    """Put a new position's key and value into the cache, and attend to this position and all before it.

    Args:
        qkv: query, key and value side by side, (1, 3 n_state).
        cache: (layers, 2, n_text_ctx, n_state) of the same type, changed in place.
        state: the decoder.WindowState, of which only the position is used.
        layer: the layer's number.
        n_head: the number of heads, which lie side by side in n_state.

    Returns:
        (1, n_state), softmax(q kT / sqrt(head size)) v, summed in float32.
    """
    n_state = int(qkv.shape[1]) // 3
    return ops.inplace_custom(
        "asr_device_self_attention",
        qkv.device,
        [qkv, cache, state],
        [TensorType(qkv.dtype, (1, n_state), qkv.device)],
        {"size": n_state // n_head, "layer": layer, "room": int(cache.shape[2])},
    )[0].tensor


def cross_attention(query: TensorValue, keys: TensorValue, values: TensorValue, layer: int) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v of one new position over the audio's positions, summed in float32.

    Args:
        query: (1, n_state).
        keys, values: (layers, heads, positions, head size) of the same type.
        layer: the layer's number.

    Returns:
        (1, n_state).
    """
    return ops.custom(
        "asr_device_cross_attention",
        query.device,
        [query, keys, values],
        [TensorType(query.dtype, query.shape, query.device)],
        {"size": int(keys.shape[3]), "layer": layer, "room": int(keys.shape[2])},
    )[0].tensor


def choose(
    logits: TensorValue,
    masks: TensorValue,
    state: BufferValue,
    sums: BufferValue,
    sampled: BufferValue,
    prompt: TensorValue,
    numbers: TensorValue,
) -> None:
    """Take the likeliest allowed token, as custom_ops.select does, and advance to the next position.

    Nothing changes once the window is done.

    Args:
        logits: float32 (n_vocab,).
        masks: float32 (2, n_vocab), added to the logits: the first row always, the second for the first
            sampled token.
        state: the decoder.WindowState, changed in place.
        sums: float32 (2,): the sum of log-probabilities and the no-speech probability.
        sampled: int64 (n_text_ctx,), to which the tokens are written.
        prompt: int64 (n_text_ctx,), the tokens fed before any token is sampled.
        numbers: int64 (8,), asrgate.backends.max_graph.decoder.rule_numbers.
    """
    ops.inplace_custom(
        "asr_device_choice",
        logits.device,
        [logits, masks, state, sums, sampled, prompt, numbers],
        [],
    )
