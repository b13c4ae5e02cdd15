"""One step of Whisper's greedy decoding as a MAX graph that leaves everything on the device.

A GPU replays it, token after token, without waiting for the host, which looks only every few steps whether
the window is done. asrgate.backends.max_graph.decoder is what the CPU takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.graph import BufferType, TensorType, TensorValue, ops

from asrgate.backends.base import BackendError
from asrgate.backends.max_graph import device_ops
from asrgate.backends.max_graph.decoder import (
    cache_type,
    cross_type,
    embedded,
    logits,
    new_buffer,
    rule_numbers,
)
from asrgate.backends.max_graph.modules import Place, TextDecoder
from asrgate.backends.max_graph.session import Launch
from asrgate.backends.whisper_common.greedy import Window, WindowRules

POSITION, TOKEN, COUNT, DONE, FAILED = 0, 1, 2, 6, 7  # in the state; see device_ops
STEPS_BETWEEN_LOOKS = 8


def step_types(dims: Any, place: Place) -> list:
    """Input types of `step`, in order; device_ops.choose describes the last six."""
    device = place.device
    return [
        cross_type(dims, place),
        cross_type(dims, place),
        cache_type(dims, place),
        TensorType(DType.float32, (2, dims.n_vocab), device=device),
        BufferType(DType.int64, (8,), device=device),
        BufferType(DType.float32, (2,), device=device),
        BufferType(DType.int64, (dims.n_text_ctx,), device=device),
        TensorType(DType.int64, (dims.n_text_ctx,), device=device),
        TensorType(DType.int64, (8,), device=device),
    ]


def step(decoder: TextDecoder, dims: Any) -> Callable[..., TensorValue]:
    """The graph's function: feed the token that the state names, sample the next one, advance the state.

    Its output, what the layers are given (1, n_state), only makes it a graph with one.
    """

    def forward(*inputs: Any) -> TensorValue:
        cross_key, cross_value, cache, masks, state, sums, sampled, prompt, numbers = inputs
        cache, state = cache.buffer, state.buffer
        fed = ops.buffer_load(state)
        x = embedded(decoder, fed[TOKEN : TOKEN + 1], fed[POSITION : POSITION + 1])
        found = logits(
            decoder,
            x,
            lambda attn, x, layer: device_ops.self_attention(
                attn.qkv(x), cache, state, layer, dims.n_text_head
            ),
            lambda q, layer: device_ops.cross_attention(q, cross_key.tensor, cross_value.tensor, layer),
        )
        device_ops.choose(
            found, masks.tensor, state, sums.buffer, sampled.buffer, prompt.tensor, numbers.tensor
        )
        return x

    return forward


class StepLoop:
    """Runs `step` on one window after another."""

    def __init__(self, models: Mapping[str, Any], dims: Any, place: Place, driver: Any):
        """Allocate the buffers, and capture the step where MAX can; the arguments are GraphLoop's."""
        self._n_text_ctx, self._driver = dims.n_text_ctx, driver
        buffers = [new_buffer(kind, driver) for kind in step_types(dims, place)]
        self._cross_key, self._cross_value, _, self._masks, self._state, *rest = buffers
        self._sums, self._sampled, self._prompt, self._numbers = rest
        # done: a step changes nothing
        self._fill((self._state, _numbers(self._state, [0, 0, 0, 0, 0, 0, 1, 0])))
        self._launch = Launch(models["step"], buffers)
        self.how = f"a step at a time, {self._launch.how}"

    def decode(self, cross_key: Any, cross_value: Any, masks: Any, rules: WindowRules) -> Window:
        """Decode one window.

        Args:
            cross_key, cross_value, masks: buffers as `step_types` has them.
            rules: what may be sampled.

        Raises:
            BackendError: no token was allowed, or the logits were not numbers.
        """
        prompt = np.zeros(self._n_text_ctx)
        prompt[: len(rules.prompt)] = rules.prompt
        start = [0, rules.prompt[0], 0, 0, 1, rules.timestamp_begin - 1, 0, 0]
        self._fill(
            (self._cross_key, cross_key),
            (self._cross_value, cross_value),
            (self._masks, masks),
            (self._state, _numbers(self._state, start)),
            (self._sums, _numbers(self._sums, [0, 0])),
            (self._prompt, _numbers(self._prompt, prompt)),
            (self._numbers, _numbers(self._numbers, [*rule_numbers(rules), len(rules.prompt)])),
        )
        state = self._advance(len(rules.prompt) - 1)
        while not state[DONE]:
            state = self._advance(STEPS_BETWEEN_LOOKS)
        if state[FAILED]:
            raise BackendError("no token is allowed, or the logits are not numbers")
        sum_logprob, no_speech = self._read(self._sums).tolist()
        return Window(self._read(self._sampled)[: state[COUNT]].tolist(), sum_logprob, no_speech)

    def _advance(self, steps: int) -> np.ndarray:
        for _ in range(steps):
            self._launch()
        return self._read(self._state)

    def _fill(self, *pairs: tuple[Buffer, Buffer]) -> None:
        for held, given in pairs:
            held.inplace_copy_from(given)
        # MAX 26.7 copies while Python goes on: a source could be gone, or a step begin, too soon
        self._driver.synchronize()

    @staticmethod
    def _read(held: Any) -> np.ndarray:
        return held.to(CPU()).to_numpy()


def _numbers(like: Buffer, values: Any) -> Buffer:
    """On the host, of another buffer's type."""
    return Buffer.from_numpy(np.array(values, like.dtype.to_numpy()))
