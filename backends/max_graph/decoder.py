"""Whisper's whole greedy decoding loop as one MAX graph on the CPU: from cross-attention K/V to tokens."""

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
    """The first layer's input (1, n_state) for a token at a position, both int64 (1,)."""
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
        x: the result of `embedded`.
        self_attention: called with the layer's attention, its normalised input and the layer's number;
            returns the values weighted by attention.
        cross_attention: called with the query and the layer's number; returns the same.

    Returns:
        (n_vocab,).
    """
    for index, block in enumerate(decoder.blocks):
        x = block.attn.out(self_attention(block.attn, block.attn_ln(x), index), added=x)
        query = block.cross_attn.query(block.cross_attn_ln(x))
        x = block.feed_forward(block.cross_attn.out(cross_attention(query, index), added=x))
    return decoder.token_embedding.logits(decoder.ln(x))


def new_buffer(kind: TensorType | BufferType, driver: Any) -> Buffer:
    """Allocate memory for a graph's input, uninitialised."""
    return Buffer(kind.dtype, [int(n) for n in kind.shape], device=driver)


def cross_type(dims: Any, place: Place) -> TensorType:
    """The type of the audio's keys or values: (layers, heads, n_audio_ctx, head size)."""
    size = dims.n_text_state // dims.n_text_head
    shape = (dims.n_text_layer, dims.n_text_head, dims.n_audio_ctx, size)
    return TensorType(place.cross_dtype, shape, device=place.device)


def cache_type(dims: Any, place: Place) -> BufferType:
    """The type of one sequence's self-attention keys and values: (layers, 2, n_text_ctx, n_state)."""
    shape = (dims.n_text_layer, 2, dims.n_text_ctx, dims.n_text_state)
    return BufferType(place.dtype, shape, device=place.device)


def greedy_types(dims: Any, place: Place) -> list:
    """The types of the inputs of `greedy`, in order."""
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
    """The rules for one window, as inputs of the graph: scalars on the CPU, except for the masks.

    `masks` (2, n_vocab) are added to the logits: the first one always, the second one for the first token.
    """

    masks: TensorValue
    sot_index: TensorValue
    eot: TensorValue
    timestamp_begin: TensorValue
    no_speech: TensorValue
    sample_limit: TensorValue
    timestamps: TensorValue
    last_position: TensorValue


class LoopState(NamedTuple):
    """What one step of the loop passes to the next: scalars, int64 unless stated otherwise."""

    position: TensorValue  # the next position to compute
    token: TensorValue  # the token sampled last; tokens of the prompt take precedence
    written: TensorValue  # tokens sampled so far
    last_is_stamp: TensorValue  # 1 if the last sampled token is a timestamp, else 0
    before_is_stamp: TensorValue  # the same for the token before it; 1 if there is none
    stamp: TensorValue  # the last timestamp sampled
    logprob: TensorValue  # float32, sum over the sampled tokens
    no_speech: TensorValue  # float32, probability at the start of the transcript
    done: TensorValue  # 0 or 1


class Choice(NamedTuple):
    """What the selection makes of one step's logits: scalars."""

    token: TensorValue
    logprob: TensorValue  # of the token, among those allowed
    no_speech: TensorValue  # probability; 0 except at the start of the transcript


def greedy(decoder: TextDecoder, dims: Any) -> Callable[..., Any]:
    """Return the graph's function; `greedy_types` describes its inputs.

    The seven integers are sot_index, eot, timestamp_begin, no_speech, sample_limit, timestamps (0 or 1), and
    the position after which sampling stops. The sampled tokens are left in the int64 buffer.

    The graph's outputs are the number of tokens before the end of text (int64), the sum of log-probabilities
    (float32) and the no-speech probability (float32).
    """

    def forward(*inputs: Any) -> tuple[TensorValue, TensorValue, TensorValue]:
        loop = _Loop(decoder, dims, *inputs)

        def running(*values: TensorValue) -> TensorValue:
            return LoopState(*values).done == 0

        def step(*values: TensorValue) -> LoopState:
            return loop.step(LoopState(*values))

        end = LoopState(*ops.while_loop(list(loop.start()), running, step))
        return end.written, end.logprob, end.no_speech

    return forward


class _Loop:
    """The steps of `greedy` on the inputs of one graph."""

    def __init__(
        self,
        decoder: TextDecoder,
        dims: Any,
        cross_key: Any,
        cross_value: Any,
        cache: Any,
        sampled: Any,
        prompt: Any,
        numbers: Any,
        masks: Any,
    ):
        self._decoder, self._dims = decoder, dims
        self._cross_key, self._cross_value = cross_key, cross_value
        self._cache, self._sampled, self._prompt = cache.buffer, sampled.buffer, prompt.tensor
        self._rules = Rules(masks.tensor, *(numbers.tensor[i] for i in range(7)))
        self._n_prompt = ops.shape_to_tensor(self._prompt.shape)[0]
        self._one = _integer(1)

    def start(self) -> LoopState:
        """The state before the first step."""
        nothing, zero = _integer(0), ops.constant(0.0, DType.float32, device=DeviceRef.CPU())
        return LoopState(
            position=nothing,
            token=nothing,
            written=nothing,
            last_is_stamp=nothing,
            before_is_stamp=self._one,
            stamp=self._rules.timestamp_begin - 1,
            logprob=zero,
            no_speech=zero,
            done=nothing,
        )

    def step(self, state: LoopState) -> LoopState:
        """Feed one token, of the prompt or sampled; sample the next one after the prompt's last."""
        step_logits = self._logits(state)
        text_start, stamp_start = self._first_allowed(state)
        at_start = state.position == self._rules.sot_index
        choice = self._choose(step_logits, text_start, stamp_start, state.written == 0, at_start)
        return self._advanced(state, choice, at_start)

    def _logits(self, state: LoopState) -> TensorValue:
        index = ops.min(state.position, self._n_prompt - 1)
        from_prompt = ops.reshape(ops.gather(self._prompt, ops.reshape(index, (1,)), 0), ())
        token = ops.where(state.position < self._n_prompt, from_prompt, state.token)
        position = ops.reshape(state.position, (1,))

        def self_attention(attn: MultiHeadAttention, x: TensorValue, layer: int) -> TensorValue:
            qkv = attn.query(x), attn.key(x), attn.value(x)
            return custom_ops.self_attention(*qkv, position, self._cache, layer, self._dims.n_text_head)

        def cross_attention(query: TensorValue, layer: int) -> TensorValue:
            return custom_ops.cross_attention(query, self._cross_key.tensor, self._cross_value.tensor, layer)

        x = embedded(self._decoder, ops.reshape(token, (1,)), position)
        return logits(self._decoder, x, self_attention, cross_attention)

    def _first_allowed(self, state: LoopState) -> tuple[TensorValue, TensorValue]:
        """Return the first text token and the first timestamp that the timestamp rules allow."""
        last, before = state.last_is_stamp, state.before_is_stamp
        # the last token ended a segment, so only a timestamp or the end of text may follow
        pair_open = (last == 1) & (before == 0)
        text_start = ops.where(pair_open, self._rules.eot, _integer(0))
        stamp_start = ops.where(
            (last == 1) & (before == 1),
            _integer(self._dims.n_vocab),
            ops.where(pair_open, state.stamp, state.stamp + 1),
        )
        has_timestamps = self._rules.timestamps == 1
        text_start = ops.where(has_timestamps, text_start, _integer(0))
        return text_start, ops.where(has_timestamps, stamp_start, self._rules.timestamp_begin)

    def _choose(
        self,
        step_logits: TensorValue,
        text_start: TensorValue,
        stamp_start: TensorValue,
        is_first: TensorValue,
        at_start: TensorValue,
    ) -> Choice:
        rules = self._rules
        first = ops.where(is_first, _integer(1), _integer(0))
        no_speech = ops.where(at_start, rules.no_speech, _integer(-1))
        numbers = [text_start, rules.timestamp_begin, stamp_start, rules.timestamps, no_speech, first]
        results = custom_ops.select(step_logits, rules.masks, ops.stack(numbers))
        return Choice(*(ops.reshape(x, ()) for x in results))

    def _advanced(self, state: LoopState, choice: Choice, at_start: TensorValue) -> LoopState:
        """Store the token, and return the state at the next position."""
        rules, one, position, written = self._rules, self._one, state.position, state.written
        last, before = state.last_is_stamp, state.before_is_stamp
        sampling = position >= self._n_prompt - 1
        no_speech = ops.where(at_start, choice.no_speech, state.no_speech)
        logprob = ops.where(sampling, state.logprob + choice.logprob, state.logprob)
        # what is chosen during the prompt is stored too, and so is the end of text; `written` counts neither
        ops.buffer_store_slice(
            self._sampled, ops.reshape(choice.token, (1,)), [(slice(written, written + 1), 1)]
        )
        has_ended = choice.token == rules.eot
        is_stamp = choice.token >= rules.timestamp_begin
        now_written = ops.where(sampling & ~has_ended, written + 1, written)
        before = ops.where(sampling, ops.where(written == 0, one, last), before)
        last = ops.where(sampling, ops.where(is_stamp, one, _integer(0)), last)
        stamp = ops.where(sampling & is_stamp, choice.token, state.stamp)
        is_full = (now_written >= rules.sample_limit) | (position + 1 >= rules.last_position)
        done = ops.where(sampling & (has_ended | is_full), one, _integer(0))
        return LoopState(
            position=position + 1,
            token=choice.token,
            written=now_written,
            last_is_stamp=last,
            before_is_stamp=before,
            stamp=stamp,
            logprob=logprob,
            no_speech=no_speech,
            done=done,
        )


def _integer(value: int) -> TensorValue:
    return ops.constant(value, DType.int64, device=DeviceRef.CPU())


class GraphLoop:
    """Runs `greedy` on one window after another."""

    how = "in the graph"

    def __init__(self, models: Mapping[str, Any], dims: Any, place: Place, driver: Any):
        """Allocate the buffers.

        Args:
            models: the compiled graphs by name.
            dims: a whisper.model.ModelDimensions.
            place: where and how the graph computes.
            driver: the max.driver.Device of `place`.
        """
        self._model = models["greedy"]
        self._cache = new_buffer(cache_type(dims, place), driver)
        self._sampled = Buffer(DType.int64, (dims.n_text_ctx,), device=CPU())

    def decode(self, cross_key: Any, cross_value: Any, masks: Any, rules: WindowRules) -> Window:
        """Decode one window.

        Args:
            cross_key, cross_value, masks: buffers of the types that `greedy_types` gives.
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
    """Return the seven integers of `greedy`, int64 (7,)."""
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
