"""The whole greedy loop of Whisper's decoder as one MAX graph on the CPU: cross K/V in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.graph import BufferType, DeviceRef, TensorType, TensorValue, ops

from asrgate.backends.max_graph import custom_ops
from asrgate.backends.max_graph.modules import MultiHeadAttention, Place, TextDecoder
from asrgate.backends.whisper_common.greedy import Window, WindowRules


def embedded(decoder: TextDecoder, token: TensorValue, position: TensorValue) -> TensorValue:
    """What the layers are given for a token at a position, int64 (1,) both: (1, n_state)."""
    x = decoder.token_embedding(token)
    return x + ops.gather(decoder.positional_embedding, position, axis=0)


def logits(
    decoder: TextDecoder,
    x: TensorValue,
    self_attention: Callable[[MultiHeadAttention, TensorValue, int], TensorValue],
    cross_attention: Callable[[TensorValue, int], TensorValue],
) -> TensorValue:
    """whisper.model.TextDecoder at one position.

    Args:
        decoder: the layers.
        x: `embedded`.
        self_attention: (the layer's attention, its normalised input, the layer's number) to what is mixed.
        cross_attention: (query, the layer's number) to the same.

    Returns:
        (n_vocab,).
    """
    for index, block in enumerate(decoder.blocks):
        x = block.attn.out(self_attention(block.attn, block.attn_ln(x), index), added=x)
        query = block.cross_attn.query(block.cross_attn_ln(x))
        x = block.feed_forward(block.cross_attn.out(cross_attention(query, index), added=x))
    return decoder.token_embedding.logits(decoder.ln(x))


def new_buffer(kind: TensorType | BufferType, driver: Any) -> Buffer:
    """Memory for a graph's input, with whatever it holds."""
    return Buffer(kind.dtype, [int(n) for n in kind.shape], device=driver)


def cross_type(dims: Any, place: Place) -> TensorType:
    """Keys, or values, of the audio: (layers, heads, n_audio_ctx, head size)."""
    size = dims.n_text_state // dims.n_text_head
    shape = (dims.n_text_layer, dims.n_text_head, dims.n_audio_ctx, size)
    return TensorType(place.cross_dtype, shape, device=place.device)


def cache_type(dims: Any, place: Place) -> BufferType:
    """Self-attention keys and values of one sequence: (layers, 2, n_text_ctx, n_state)."""
    shape = (dims.n_text_layer, 2, dims.n_text_ctx, dims.n_text_state)
    return BufferType(place.dtype, shape, device=place.device)


def greedy_types(dims: Any, place: Place) -> list:
    """Input types of `greedy`, in order."""
    return [
        cross_type(dims, place),
        cross_type(dims, place),
        cache_type(dims, place),
        BufferType(DType.int64, (dims.n_text_ctx,), device=DeviceRef.CPU()),
        TensorType(DType.int64, ("prompt",), device=DeviceRef.CPU()),
        TensorType(DType.int64, (7,), device=DeviceRef.CPU()),
        TensorType(DType.float32, (2, dims.n_vocab), device=place.device),
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


class LoopState(NamedTuple):
    """What one step of the loop hands to the next: scalars, int64 but for the two float32."""

    position: TensorValue  # the next one to compute
    token: TensorValue  # sampled last; the prompt goes before it
    written: TensorValue  # tokens sampled so far
    last_is_stamp: TensorValue  # 0 or 1: the last sampled token is a timestamp
    before_is_stamp: TensorValue  # the one before it, likewise; 1 where there is none
    stamp: TensorValue  # the last timestamp sampled
    logprob: TensorValue  # float32, sum over the sampled tokens
    no_speech: TensorValue  # float32, probability at the start of the transcript
    done: TensorValue  # 0 or 1


def greedy(decoder: TextDecoder, dims: Any) -> Callable[..., Any]:
    """The graph's function: see greedy_types for its inputs.

    The seven integers: sot_index, eot, timestamp_begin, no_speech, sample_limit, timestamps (0 or 1), and the
    position after which sampling stops. The sampled tokens are left in the int64 buffer.

    Returns (graph outputs): number of tokens before the end of text (int64), sum of log-probabilities
    (float32), no-speech probability (float32).
    """
    n_head = dims.n_text_head

    def forward(*inputs: Any) -> tuple[TensorValue, TensorValue, TensorValue]:
        cross_key, cross_value, cache, sampled, prompt, numbers, masks = inputs
        cache, sampled, prompt = cache.buffer, sampled.buffer, prompt.tensor
        rules = Rules(masks.tensor, *(numbers.tensor[i] for i in range(7)))
        n_prompt = ops.shape_to_tensor(prompt.shape)[0]
        one = _integer(1)

        def running(*values: TensorValue) -> TensorValue:
            return LoopState(*values).done == 0

        def step(*values: TensorValue) -> LoopState:
            state = LoopState(*values)
            position, written = state.position, state.written
            last, before, stamp = state.last_is_stamp, state.before_is_stamp, state.stamp
            index = ops.min(position, n_prompt - 1)
            given = ops.reshape(ops.gather(prompt, ops.reshape(index, (1,)), 0), ())
            fed = ops.where(position < n_prompt, given, state.token)
            at = ops.reshape(position, (1,))

            def attended(attn: MultiHeadAttention, x: TensorValue, layer: int) -> TensorValue:
                qkv = attn.query(x), attn.key(x), attn.value(x)
                return custom_ops.self_attention(*qkv, at, cache, layer, n_head)

            found = logits(
                decoder,
                embedded(decoder, ops.reshape(fed, (1,)), at),
                attended,
                lambda q, layer: custom_ops.cross_attention(q, cross_key.tensor, cross_value.tensor, layer),
            )

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
            chosen, gain, chance = _select(found, rules, text_start, stamp_start, written == 0, at_start)

            sampling = position >= n_prompt - 1
            no_speech = ops.where(at_start, chance, state.no_speech)
            logprob = ops.where(sampling, state.logprob + gain, state.logprob)
            ops.buffer_store_slice(sampled, ops.reshape(chosen, (1,)), [(slice(written, written + 1), 1)])
            ended = chosen == rules.eot
            stamped = chosen >= rules.timestamp_begin
            now_written = ops.where(sampling & ~ended, written + 1, written)
            before = ops.where(sampling, ops.where(written == 0, one, last), before)
            last = ops.where(sampling, ops.where(stamped, one, _integer(0)), last)
            stamp = ops.where(sampling & stamped, chosen, stamp)
            full = (now_written >= rules.sample_limit) | (position + 1 >= rules.last_position)
            done = ops.where(sampling & (ended | full), one, _integer(0))
            return LoopState(
                position=position + 1,
                token=chosen,
                written=now_written,
                last_is_stamp=last,
                before_is_stamp=before,
                stamp=stamp,
                logprob=logprob,
                no_speech=no_speech,
                done=done,
            )

        nothing, zero = _integer(0), ops.constant(0.0, DType.float32, device=DeviceRef.CPU())
        before_all = rules.timestamp_begin - 1
        start = LoopState(
            position=nothing,
            token=nothing,
            written=nothing,
            last_is_stamp=nothing,
            before_is_stamp=one,
            stamp=before_all,
            logprob=zero,
            no_speech=zero,
            done=nothing,
        )
        end = LoopState(*ops.while_loop(list(start), running, step))
        return end.written, end.logprob, end.no_speech

    return forward


def _integer(value: int) -> TensorValue:
    return ops.constant(value, DType.int64, device=DeviceRef.CPU())


def _select(
    logits: TensorValue,
    rules: Rules,
    text_start: TensorValue,
    stamp_start: TensorValue,
    is_first: TensorValue,
    at_start: TensorValue,
) -> tuple[TensorValue, ...]:
    """The token chosen, its log-probability and the no-speech probability at the start: scalars."""
    first = ops.where(is_first, _integer(1), _integer(0))
    no_speech = ops.where(at_start, rules.no_speech, _integer(-1))
    numbers = [text_start, rules.timestamp_begin, stamp_start, rules.timestamps, no_speech, first]
    found = custom_ops.select(logits, rules.masks, ops.stack(numbers))
    return tuple(ops.reshape(x, ()) for x in found)


class GraphLoop:
    """Runs `greedy` on one window after another."""

    how = "in the graph"

    def __init__(self, models: Mapping[str, Any], dims: Any, place: Place, driver: Any):
        """Allocate the buffers.

        Args:
            models: the compiled graphs by name.
            dims: a whisper.model.ModelDimensions.
            place: where the graph computes.
            driver: the max.driver.Device of `place`.
        """
        self._model = models["greedy"]
        self._cache = new_buffer(cache_type(dims, place), driver)
        self._sampled = Buffer(DType.int64, (dims.n_text_ctx,), device=CPU())

    def decode(self, cross_key: Any, cross_value: Any, masks: Any, rules: WindowRules) -> Window:
        """Decode one window.

        Args:
            cross_key, cross_value, masks: buffers as `greedy_types` has them.
            rules: what may be sampled.
        """
        count, sum_logprob, no_speech = self._model.execute(
            cross_key,
            cross_value,
            self._cache,
            self._sampled,
            Buffer.from_numpy(np.array(rules.prompt, np.int64)),
            Buffer.from_numpy(rule_numbers(rules)),
            masks,
        )
        tokens = self._sampled.to_numpy()[: count.item()].tolist()
        return Window(tokens, sum_logprob.item(), no_speech.item())


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
