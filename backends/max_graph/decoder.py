"""The whole greedy loop of Whisper's decoder as one MAX graph: cross K/V in, tokens out."""

from __future__ import annotations

from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import BufferType, BufferValue, DeviceRef, TensorType, TensorValue, ops

from backends.greedy import WindowRules
from backends.max_graph import custom_ops
from backends.max_graph.modules import Place, TextDecoder

NEVER = -np.inf


class Stepper:
    """whisper.model.TextDecoder, one position at a time over key/value caches."""

    def __init__(self, decoder: TextDecoder, dims: Any):
        self.decoder = decoder
        self.dims = dims

    def __call__(self, token, position, cache: BufferValue, cross_key, cross_value) -> TensorValue:
        """Logits (n_vocab,) after `token` at `position`, both int64 scalars; its K/V go into `cache`.

        cache: (layers, 2, n_text_ctx, n_state).
        cross_key, cross_value: (layers, heads, n_audio_ctx, head size).
        """
        dims = self.dims
        x = self.decoder.token_embedding(ops.reshape(token, (1,)))
        x = x + ops.gather(self.decoder.positional_embedding, ops.reshape(position, (1,)), axis=0)
        for index, block in enumerate(self.decoder.blocks):
            h = block.attn_ln(x)
            qkv = block.attn.query(h), block.attn.key(h), block.attn.value(h)
            if x.device.is_cpu():
                at = ops.reshape(position, (1,))
                mixed = custom_ops.self_attention(*qkv, at, cache, index, dims.n_text_head)
            else:
                mixed = self._self_attention(*qkv, position, cache, index)
            x = block.attn.out(mixed, added=x)
            q = block.cross_attn.query(block.cross_attn_ln(x))
            if x.device.is_cpu():
                mixed = custom_ops.cross_attention(q, cross_key, cross_value, index)
            else:
                mixed = self._attend(q, cross_key[index], cross_value[index], None)
            x = block.feed_forward(block.cross_attn.out(mixed, added=x))
        return self.decoder.token_embedding.logits(self.decoder.ln(x))

    def _self_attention(self, query, key, value, position, cache: BufferValue, layer: int) -> TensorValue:
        """custom_ops.self_attention in MAX's own operations: all of the cache is read, and masked."""
        for part, projected in enumerate((key, value)):
            ops.buffer_store_slice(
                cache,
                ops.reshape(ops.cast(projected, DType.float32), (1, 1, 1, self.dims.n_text_state)),
                [
                    slice(layer, layer + 1),
                    slice(part, part + 1),
                    (slice(position, position + 1), 1),
                    slice(None),
                ],
            )
        loaded = ops.buffer_load(cache)
        keys, values = (split_heads(loaded[layer, part], self.dims.n_text_head) for part in range(2))
        steps = ops.range(0, self.dims.n_text_ctx, 1, dtype=DType.int64, device=query.device)
        future = ops.where(
            steps > position,
            ops.constant(NEVER, DType.float32, device=query.device),
            ops.constant(0.0, DType.float32, device=query.device),
        )
        return self._attend(query, keys, values, future)

    def _attend(self, query, keys, values, mask) -> TensorValue:
        """One position over (heads, positions, head size) of keys and values: (1, n_state)."""
        heads = self.dims.n_text_head
        size = self.dims.n_text_state // heads
        scores = (ops.reshape(query, (heads, 1, size)) @ keys.transpose(1, 2)) * (size**-0.5)
        if mask is not None:
            scores = scores + mask
        return ops.reshape(ops.softmax(scores) @ values, (1, heads * size))


def split_heads(x: TensorValue, n_head: int) -> TensorValue:
    """(positions, n_state) to (heads, positions, head size)."""
    positions, n_state = x.shape
    return ops.reshape(x, (positions, n_head, int(n_state) // n_head)).transpose(0, 1)


def cache_type(dims: Any, device: DeviceRef) -> BufferType:
    """Self-attention keys and values of one sequence: (layers, 2, n_text_ctx, n_state)."""
    return BufferType(
        DType.float32, (dims.n_text_layer, 2, dims.n_text_ctx, dims.n_text_state), device=device
    )


def greedy_types(dims: Any, place: Place) -> list:
    """Input types of `greedy`, in order."""
    heads, device = dims.n_text_head, place.device
    cross = TensorType(
        place.cross_dtype,
        (dims.n_text_layer, heads, dims.n_audio_ctx, dims.n_text_state // heads),
        device=device,
    )
    mask = TensorType(DType.float32, (dims.n_vocab,), device=device)
    return [
        cross,
        cross,
        cache_type(dims, device),
        BufferType(DType.int64, (dims.n_text_ctx,), device=DeviceRef.CPU()),
        TensorType(DType.int64, ("prompt",), device=DeviceRef.CPU()),
        TensorType(DType.int64, (7,), device=DeviceRef.CPU()),
        mask,
        mask,
    ]


def greedy(decoder: TextDecoder, dims: Any):  # noqa: PLR0915 - the loop reads best in one piece
    """The graph's function: see greedy_types for its inputs.

    The seven integers: sot_index, eot, timestamp_begin, no_speech, sample_limit, timestamps (0 or 1), and the
    position after which sampling stops. The sampled tokens are left in the int64 buffer.

    Returns (graph outputs): number of tokens before the end of text (int64), sum of log-probabilities
    (float32), no-speech probability (float32).
    """

    stepper = Stepper(decoder, dims)

    def forward(cross_key, cross_value, cache, sampled, prompt, numbers, mask, mask_first):
        cross_key, cross_value = cross_key.tensor, cross_value.tensor
        cache, sampled = cache.buffer, sampled.buffer
        prompt, numbers = prompt.tensor, numbers.tensor
        mask, mask_first = mask.tensor, mask_first.tensor
        cpu = DeviceRef.CPU()

        def integer(value: int) -> TensorValue:
            return ops.constant(value, DType.int64, device=cpu)

        sot_index, eot, timestamp_begin, no_speech, sample_limit, timestamps, last_position = (
            numbers[i] for i in range(7)
        )
        n_prompt = ops.shape_to_tensor(prompt.shape)[0]
        zero = ops.constant(0.0, DType.float32, device=cpu)
        ids = ops.range(0, dims.n_vocab, 1, dtype=DType.int64, device=mask.device)
        never = ops.constant(NEVER, DType.float32, device=mask.device)

        def running(position, token, count, last, before, stamp, logprob, quiet, done):
            return done == 0

        def step(position, token, count, last, before, stamp, logprob, quiet, done):
            in_prompt = position < n_prompt
            index = ops.min(position, n_prompt - 1)
            fed = ops.where(
                in_prompt, ops.reshape(ops.gather(prompt, ops.reshape(index, (1,)), 0), ()), token
            )
            logits = stepper(fed, position, cache, cross_key, cross_value)
            top = ops.reshape(ops.max(logits), ())
            chance = ops.exp(logits[no_speech] - top) / ops.reshape(ops.sum(ops.exp(logits - top)), ())
            quiet = ops.where(position == sot_index, ops.reshape(chance, ()), quiet)

            sampling = position >= n_prompt - 1
            logits = logits + ops.where(count == 0, mask_first, mask)
            pair_open = (last == 1) & (before == 0)  # an end without the next start: no text may follow
            text_end = ops.where(pair_open, eot, integer(0))
            stamp_end = ops.where(
                (last == 1) & (before == 1),
                integer(dims.n_vocab),
                ops.where(pair_open, stamp, stamp + 1),
            )
            forbidden = (timestamps == 1) & (
                (ids < text_end) | ((ids >= timestamp_begin) & (ids < stamp_end))
            )
            logits = ops.where(forbidden, never, logits)
            top = ops.reshape(ops.max(logits), ())
            is_stamp = ids >= timestamp_begin
            weights = ops.exp(logits - top)
            stamps = ops.reshape(ops.sum(ops.where(is_stamp, weights, zero)), ())
            text = ops.reshape(ops.max(ops.where(is_stamp, zero, weights)), ())
            stamps_only = (timestamps == 1) & (stamps > text)
            logits = ops.where(stamps_only & (ids < timestamp_begin), never, logits)
            chosen = ops.reshape(ops.cast(ops.argmax(logits), DType.int64), ())
            total = ops.where(stamps_only, stamps, ops.reshape(ops.sum(weights), ()))
            gain = ops.reshape(logits[chosen], ()) - top - ops.log(total)

            ended = chosen == eot
            logprob = ops.where(sampling, logprob + gain, logprob)
            ops.buffer_store_slice(sampled, ops.reshape(chosen, (1,)), [(slice(count, count + 1), 1)])
            stamped = chosen >= timestamp_begin
            next_count = ops.where(sampling & ~ended, count + 1, count)
            one = integer(1)
            before = ops.where(sampling, ops.where(count == 0, one, last), before)
            last = ops.where(sampling, ops.where(stamped, one, integer(0)), last)
            stamp = ops.where(sampling & stamped, chosen, stamp)
            full = (next_count >= sample_limit) | (position + 1 >= last_position)
            done = ops.where(sampling & (ended | full), one, integer(0))
            return position + 1, chosen, next_count, last, before, stamp, logprob, quiet, done

        start = [integer(0), integer(0), integer(0), integer(0), integer(1), timestamp_begin - 1, zero, zero]
        end = ops.while_loop([*start, integer(0)], running, step)
        return end[2], end[6], end[7]

    return forward


def rule_numbers(rules: WindowRules) -> np.ndarray:
    """The seven integers of `greedy`, int64 (7,)."""
    return np.array(
        [
            rules.sot_index,
            rules.eot,
            rules.timestamp_begin,
            rules.no_speech,
            rules.sample_limit,
            rules.timestamps,
            rules.n_text_ctx,
        ],
        np.int64,
    )


def masks(
    n_vocab: int,
    suppressed: tuple[int, ...],
    suppressed_first: tuple[int, ...],
    timestamps: bool,
    max_initial_timestamp_index: int | None,
    no_timestamps: int,
    timestamp_begin: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What is added to the logits, float32 (n_vocab,): always, and at the first sampled token."""
    always = np.zeros(n_vocab, np.float32)
    always[list(suppressed)] = NEVER
    if timestamps:
        always[no_timestamps] = NEVER
    first = always.copy()
    first[list(suppressed_first)] = NEVER
    if timestamps:
        first[:timestamp_begin] = NEVER
        if max_initial_timestamp_index is not None:
            first[timestamp_begin + max_initial_timestamp_index + 1 :] = NEVER
    return always, first
