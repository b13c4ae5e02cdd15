"""The whole greedy loop of Whisper's decoder as one MAX graph: cross K/V in, tokens out."""

from __future__ import annotations

from dataclasses import dataclass
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
    return [
        cross,
        cross,
        cache_type(dims, device),
        BufferType(DType.int64, (dims.n_text_ctx,), device=DeviceRef.CPU()),
        TensorType(DType.int64, ("prompt",), device=DeviceRef.CPU()),
        TensorType(DType.int64, (7,), device=DeviceRef.CPU()),
        TensorType(DType.float32, (2, dims.n_vocab), device=device),
    ]


@dataclass(frozen=True)
class Rules:
    """What a window is decoded under: `masks` (2, n_vocab), always and at first, and scalars on the CPU."""

    masks: TensorValue
    sot_index: TensorValue
    eot: TensorValue
    timestamp_begin: TensorValue
    no_speech: TensorValue
    sample_limit: TensorValue
    timestamps: TensorValue
    last_position: TensorValue


def greedy(decoder: TextDecoder, dims: Any):
    """The graph's function: see greedy_types for its inputs.

    The seven integers: sot_index, eot, timestamp_begin, no_speech, sample_limit, timestamps (0 or 1), and the
    position after which sampling stops. The sampled tokens are left in the int64 buffer.

    Returns (graph outputs): number of tokens before the end of text (int64), sum of log-probabilities
    (float32), no-speech probability (float32).
    """
    stepper = Stepper(decoder, dims)

    def forward(cross_key, cross_value, cache, sampled, prompt, numbers, masks):
        cache, sampled, prompt = cache.buffer, sampled.buffer, prompt.tensor
        rules = Rules(masks.tensor, *(numbers.tensor[i] for i in range(7)))
        n_prompt = ops.shape_to_tensor(prompt.shape)[0]
        select = _select_by_kernel if rules.masks.device.is_cpu() else _select_by_ops
        one = _integer(1)

        def running(position, token, count, last, before, stamp, logprob, quiet, done):
            return done == 0

        def step(position, token, count, last, before, stamp, logprob, quiet, done):
            index = ops.min(position, n_prompt - 1)
            given = ops.reshape(ops.gather(prompt, ops.reshape(index, (1,)), 0), ())
            fed = ops.where(position < n_prompt, given, token)
            logits = stepper(fed, position, cache, cross_key.tensor, cross_value.tensor)

            pair_open = (last == 1) & (before == 0)  # an end without the next start: no text may follow
            text_start = ops.where(pair_open, rules.eot, _integer(0))
            stamp_start = ops.where(
                (last == 1) & (before == 1),
                _integer(dims.n_vocab),
                ops.where(pair_open, stamp, stamp + 1),
            )
            timed = rules.timestamps == 1
            text_start = ops.where(timed, text_start, _integer(0))
            stamp_start = ops.where(timed, stamp_start, rules.timestamp_begin)
            at_start = position == rules.sot_index
            chosen, gain, chance = select(logits, rules, text_start, stamp_start, count == 0, at_start)

            sampling = position >= n_prompt - 1
            quiet = ops.where(at_start, chance, quiet)
            logprob = ops.where(sampling, logprob + gain, logprob)
            ops.buffer_store_slice(sampled, ops.reshape(chosen, (1,)), [(slice(count, count + 1), 1)])
            ended = chosen == rules.eot
            stamped = chosen >= rules.timestamp_begin
            next_count = ops.where(sampling & ~ended, count + 1, count)
            before = ops.where(sampling, ops.where(count == 0, one, last), before)
            last = ops.where(sampling, ops.where(stamped, one, _integer(0)), last)
            stamp = ops.where(sampling & stamped, chosen, stamp)
            full = (next_count >= rules.sample_limit) | (position + 1 >= rules.last_position)
            done = ops.where(sampling & (ended | full), one, _integer(0))
            return position + 1, chosen, next_count, last, before, stamp, logprob, quiet, done

        nothing, zero = _integer(0), ops.constant(0.0, DType.float32, device=DeviceRef.CPU())
        before_all = rules.timestamp_begin - 1
        start = [nothing, nothing, nothing, nothing, one, before_all, zero, zero, nothing]
        end = ops.while_loop(start, running, step)
        return end[2], end[6], end[7]

    return forward


def _integer(value: int) -> TensorValue:
    return ops.constant(value, DType.int64, device=DeviceRef.CPU())


def _select_by_kernel(logits, rules: Rules, text_start, stamp_start, is_first, at_start):
    """The token chosen, its log-probability and the no-speech probability at the start: scalars."""
    first = ops.where(is_first, _integer(1), _integer(0))
    no_speech = ops.where(at_start, rules.no_speech, _integer(-1))
    numbers = [text_start, rules.timestamp_begin, stamp_start, rules.timestamps, no_speech, first]
    found = custom_ops.select(logits, rules.masks, ops.stack(numbers))
    return tuple(ops.reshape(x, ()) for x in found)


def _select_by_ops(logits, rules: Rules, text_start, stamp_start, is_first, at_start):
    """_select_by_kernel in MAX's own operations, for devices the kernel is not written for."""
    begin, device = rules.timestamp_begin, logits.device
    never = ops.constant(NEVER, DType.float32, device=device)
    zero = ops.constant(0.0, DType.float32, device=device)
    ids = ops.range(0, int(logits.shape[0]), 1, dtype=DType.int64, device=device)
    top = ops.reshape(ops.max(logits), ())
    chance = ops.exp(logits[rules.no_speech] - top) / ops.reshape(ops.sum(ops.exp(logits - top)), ())
    logits = logits + ops.where(is_first, rules.masks[1], rules.masks[0])
    logits = ops.where((ids < text_start) | ((ids >= begin) & (ids < stamp_start)), never, logits)
    top = ops.reshape(ops.max(logits), ())
    is_stamp = ids >= begin
    weights = ops.exp(logits - top)
    stamps = ops.reshape(ops.sum(ops.where(is_stamp, weights, zero)), ())
    text = ops.reshape(ops.max(ops.where(is_stamp, zero, weights)), ())
    stamps_only = (rules.timestamps == 1) & (stamps > text)
    logits = ops.where(stamps_only & (ids < begin), never, logits)
    chosen = ops.reshape(ops.cast(ops.argmax(logits), DType.int64), ())
    total = ops.where(stamps_only, stamps, ops.reshape(ops.sum(weights), ()))
    return chosen, ops.reshape(logits[chosen], ()) - top - ops.log(total), ops.reshape(chance, ())


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
) -> np.ndarray:
    """What is added to the logits, float32 (2, n_vocab): always, and at the first sampled token."""
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
    return np.stack([always, first])
