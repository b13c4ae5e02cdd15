"""One step of Whisper's greedy decoding as a MAX graph that leaves everything on the device.

A GPU replays it token after token without waiting for the host, which checks only every few steps whether
the window is done. The CPU uses asrgate.backends.max_graph.decoder instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from max.graph import TensorValue, ops

from asrgate.backends.max_graph import device_ops
from asrgate.backends.max_graph.decoder import Loop, WindowState, logits
from asrgate.backends.max_graph.place import Place
from asrgate.backends.max_graph.session import Launch

if TYPE_CHECKING:
    from asrgate.backends.max_graph.modules import TextDecoder

POSITION, TOKEN = (WindowState._fields.index(name) for name in ("position", "token"))
STEPS_BETWEEN_CHECKS = 8  # whether the window is done


def step(decoder: TextDecoder, dims: Any) -> Callable[..., TensorValue]:
    """Return the graph's function: it feeds the state's token, samples the next one and advances the state.

    It returns the first layer's input (1, n_state) only because a graph must have an output.
    """

    def forward(*inputs: Any) -> TensorValue:
        cross_key, cross_value, cache, masks, state, sums, sampled, prompt, numbers = inputs
        cache, state = cache.buffer, state.buffer
        now = ops.buffer_load(state)
        x = embedded(decoder, now[TOKEN : TOKEN + 1], now[POSITION : POSITION + 1])
        step_logits = logits(
            decoder,
            x,
            lambda attn, x, layer: device_ops.self_attention(
                attn.qkv(x), cache, state, layer, dims.n_text_head
            ),
            lambda q, layer: device_ops.cross_attention(q, cross_key.tensor, cross_value.tensor, layer),
        )
        device_ops.choose(
            step_logits[0], masks.tensor, state, sums.buffer, sampled.buffer, prompt.tensor, numbers.tensor
        )
        return x

    return forward


def embedded(decoder: TextDecoder, token: TensorValue, position: TensorValue) -> TensorValue:
    """The first layer's input (1, n_state) for a token at a position, both int64 (1,)."""
    x = decoder.token_embedding(token)
    return x + ops.gather(decoder.positional_embedding, position, axis=0)


class StepLoop(Loop):
    """Runs `step` on one window after another."""

    def __init__(self, models: Mapping[str, Any], dims: Any, place: Place, driver: Any):
        """Allocate the buffers, and capture the step if MAX can; the arguments are those of GraphLoop."""
        super().__init__(dims, place, driver)
        # a step changes nothing once the window is done
        self._fill((self._state, WindowState(0, 0, 0, 0, 0, 0, done=1, failed=0)))
        self._launch = Launch(models["step"], self._buffers)
        self.how = f"a step at a time, {self._launch.how}"

    def _run(self, cross_key: Any, cross_value: Any, masks: Any, n_prompt: int) -> WindowState:
        given = cross_key, cross_value, masks
        for target, source in zip((*self._buffers[:2], self._buffers[3]), given, strict=True):
            target.inplace_copy_from(source)
        self._driver.synchronize()  # see _fill
        state = self._advance(n_prompt - 1)
        while not state.done:
            state = self._advance(STEPS_BETWEEN_CHECKS)
        return state

    def _advance(self, steps: int) -> WindowState:
        for _ in range(steps):
            self._launch()
        return WindowState(*self._read(self._state).tolist())
