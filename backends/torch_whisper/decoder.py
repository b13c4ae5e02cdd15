"""Whisper's text decoder in tuned PyTorch; what does not depend on tokens is computed only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from asrgate.backends.torch_whisper.beams import Beams
from asrgate.backends.torch_whisper.linear import linear
from asrgate.backends.torch_whisper.selection import Selection
from asrgate.backends.whisper_common.greedy import Window, WindowRules

STEPS_BETWEEN_STOP_CHECKS = {"cpu": 1, "cuda": 8}  # a GPU idles while it is asked whether all have ended


class _CapturedStep(NamedTuple):
    """A step as a CUDA graph, and the tensors that it reads and writes."""

    selection: Selection
    graph: Any  # a torch.cuda.CUDAGraph
    position: Any  # torch.Tensor int64 (1,)


class TorchDecoder:
    """whisper.model.TextDecoder with whisper.decoding's greedy search and beam search."""

    def __init__(
        self,
        weights: Mapping[str, Any],
        dims: Any,
        precision: str = "float32",
        device: str = "cpu",
        projects_audio: bool = True,
    ):
        """Prepare the weights.

        Args:
            weights: the checkpoint's tensors by whisper's names, "decoder.token_embedding.weight" and so on.
            dims: a whisper.model.ModelDimensions.
            precision: of weights and products: "float32", "bfloat16" or (CUDA) "float16". On the CPU,
                "bfloat16" applies only to the cross-attention's keys and values. A step is then float32, but
                its weights are kept in float16 if the checkpoint's are.
            device: "cpu" or "cuda".
            projects_audio: False if `decode` is given cross-attention keys and values, not features.
        """
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._n_state, self._n_head = dims.n_text_state, dims.n_text_head
        self._n_layer, self._n_ctx, self._n_vocab = dims.n_text_layer, dims.n_text_ctx, dims.n_vocab
        self._on_cpu = self._device.type == "cpu"
        self._dtype = getattr(torch, precision)
        # on a CPU, PyTorch's attention is 20 times slower for one bfloat16 row than for one float32 row
        self._step_dtype = torch.float32 if self._on_cpu else self._dtype

        def tensor(name: str) -> Any:
            return weights[f"decoder.{name}"].detach().to(self._device, torch.float32)

        self._embedding = tensor("token_embedding.weight")
        self._positions = tensor("positional_embedding")
        self._ln = self._norm(tensor, "ln")
        self._logits = self._linear(self._embedding, None)
        self._projects_audio = projects_audio
        self._layers = [self._layer(tensor, f"blocks.{index}") for index in range(self._n_layer)]
        cross = [
            (f"blocks.{index}.cross_attn.{part}.weight")
            for index in range(self._n_layer)
            for part in ("key", "value")
        ]
        if projects_audio:
            self._cross_weight = torch.cat([tensor(name) for name in cross]).to(self._dtype)
        self._silence: Any = None  # keys and values that complete features shorter than a window
        self._self_cache: Any = None
        self._cross_cache: Any = None
        self._numbers = torch.arange(self._n_ctx, device=self._device)
        self._graphs: dict[tuple[int, WindowRules], _CapturedStep] = {}

    def follow_with(self, features: Any) -> None:
        """Set the features that complete those shorter than a window.

        Args:
            features: those of a whole window, torch.Tensor (n_audio_ctx, n_state), any float type. They
                supply the missing positions of shorter ones passed to `decode` and `decode_batch`.
        """
        with self._torch.inference_mode():
            self._silence = self._projected(features.to(self._device)).to(self._step_dtype)

    def decode(self, audio_features: Any, rules: WindowRules) -> Window:
        """Decode one window.

        Args:
            audio_features: the encoder's output, torch.Tensor (n_audio_ctx, n_state), any float type.
            rules: what may be sampled.
        """
        return self.decode_batch([audio_features], rules)[0]

    def decode_projected(self, keys: Any, values: Any, rules: WindowRules) -> Window:
        """Decode one window from cross-attention keys and values, biases included.

        Args:
            keys, values: torch.Tensor (n_text_layer, n_head, n_audio_ctx, head size), any float type.
            rules: what may be sampled.
        """
        with self._torch.inference_mode():
            self._reserve(1, keys.shape[2], rules.beam_size)
            for part, projected in enumerate((keys.mT[:, None], values.mT[:, None])):
                if self._on_cpu and projected.dtype == self._step_dtype:
                    self._cross[part] = projected
                else:
                    self._cross[part].copy_(projected)
            return self._search(rules) if rules.beam_size > 1 else self._decode(1, rules)[0]

    def decode_projected_batch(self, keys: Any, values: Any, rules: WindowRules) -> list[Window]:
        """Decode windows together from cross-attention keys and values, biases included.

        Args:
            keys, values: torch.Tensor (windows, n_text_layer, n_head, n_audio_ctx, head size).
            rules: as `decode_batch` takes them.
        """
        if rules.beam_size > 1:
            return [self.decode_projected(*window, rules) for window in zip(keys, values, strict=True)]
        with self._torch.inference_mode():
            self._reserve(len(keys), keys.shape[3])
            self._cross = list(self._cross_cache.unbind(1))  # `decode_projected` puts its own tensors there
            for part, projected in zip(self._cross, (keys, values), strict=True):
                part[:, : len(keys)].copy_(projected.mT.transpose(0, 1))
            return self._decode(len(keys), rules)

    def decode_batch(self, features: Sequence[Any], rules: WindowRules) -> list[Window]:
        """Decode windows together, until the last of them has ended.

        Args:
            features: the encoder's outputs, each a torch.Tensor (n_audio_ctx, n_state), any float type. On
                the CPU, windows drop out as they end. Those at the end of the list do so at once, so the
                longest should come first.
            rules: what may be sampled; the same for all windows. With beams, one window follows another.
        """
        with self._torch.inference_mode():
            if rules.beam_size > 1:
                windows = []
                for window in features:
                    self._attend_to([window], rules.beam_size)
                    windows.append(self._search(rules))
                return windows
            self._attend_to(features)
            return self._decode(len(features), rules)

    def _search(self, rules: WindowRules) -> Window:
        """Decode the first window with beams, each of them a row of the same window.

        On a GPU the steps are not captured, as each waits for the choice.
        """
        torch = self._torch
        beams = Beams(rules, self._n_vocab, self._device)
        prompt = torch.tensor(rules.prompt, device=self._device)[None]
        states = self._states(prompt, 0)
        no_speech_prob = self._logits(states[:, rules.sot_index]).float().softmax(1)[0, rules.no_speech]
        logits = self._logits(states[:, -1]).float() + beams.first_bias
        beams.choose(logits.repeat(rules.beam_size, 1), first=True)
        length = prompt.shape[1]
        self._self_cache[:, :, 1 : rules.beam_size, :, :length] = self._self_cache[:, :, :1, :, :length]
        for _ in range(1, rules.most_tokens):
            if beams.ended():
                break
            states = self._states(beams.token[:, None], length, one_window=True)
            length += 1
            continued = beams.choose(self._logits(states[:, -1]).float() + beams.bias)
            moved = [beam for beam, source in enumerate(continued) if beam != source]
            if moved:
                so_far = self._self_cache[..., :length, :]
                so_far[:, :, moved] = so_far[:, :, [continued[beam] for beam in moved]]
        return beams.window(float(no_speech_prob))

    def _decode(self, batch: int, rules: WindowRules) -> list[Window]:
        torch = self._torch
        selection, step = self._step(rules, batch)
        prompt = torch.tensor(rules.prompt, device=self._device).expand(batch, -1)
        states = self._states(prompt, 0)
        no_speech_prob = self._logits(states[:, rules.sot_index]).float().softmax(1)[:, rules.no_speech]
        selection.choose(self._logits(states[:, -1]).float() + selection.first_bias, first=True)
        sampled = [selection.sampled()]
        every = STEPS_BETWEEN_STOP_CHECKS[self._device.type]
        for count in range(1, rules.most_tokens):
            if count % every == 0 and selection.ended():
                break
            step(prompt.shape[1] + count - 1)
            sampled.append(selection.sampled())
        return selection.windows(torch.stack(sampled, 1), no_speech_prob)

    def _step(self, rules: WindowRules, batch: int) -> tuple[Selection, Callable[[int], None]]:
        """Return a new selection, and a function that feeds its last tokens and samples the next ones."""
        if self._on_cpu:
            selection = Selection(rules, batch, self._n_vocab, self._device)

            def step(position: Any) -> None:
                running = selection.running()
                rows = running[-1] + 1
                # moving a window's keys and values takes as long as a few of its steps
                if 2 * len(running) <= rows:
                    for source, target in selection.close_ranks():
                        self._cross_cache[:, :, target] = self._cross_cache[:, :, source]
                        self._self_cache[:, :, target] = self._self_cache[:, :, source]
                    rows = len(running)
                states = self._states(selection.token[:rows, None], position)
                selection.choose(self._logits(states[:, -1]).add_(selection.bias))

            return selection, step
        key = batch, rules.for_any_prompt()
        if key not in self._graphs:
            self._graphs[key] = self._captured(rules, batch)
        captured = self._graphs[key]
        captured.selection.reset()

        def replay(position: int) -> None:
            captured.position.fill_(position)
            captured.graph.replay()

        return captured.selection, replay

    def _captured(self, rules: WindowRules, batch: int) -> _CapturedStep:
        """Capture one step as a CUDA graph, which launches thousands of small kernels as one."""
        torch = self._torch
        selection = Selection(rules, batch, self._n_vocab, self._device)
        position = torch.zeros(1, dtype=torch.int64, device=self._device)

        def step() -> None:
            states = self._states(selection.token[:, None], position)
            selection.choose(self._logits(states[:, -1]).float() + selection.bias)

        stream = torch.cuda.Stream()  # libraries initialise things at their first call, which no graph may do
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return _CapturedStep(selection, graph, position)

    def _attend_to(self, features: Sequence[Any], beams: int = 1) -> None:
        """Compute all layers' keys and values of the audio, with one product per window."""
        whole = max(map(len, features)) if self._silence is None else self._silence.shape[-1]
        self._reserve(len(features), whole, beams)
        for index, window in enumerate(features):
            cache = self._cross_cache[:, :, index]
            cache[..., : len(window)] = self._projected(window.to(self._device))
            if len(window) < whole:
                cache[..., len(window) :] = self._silence[..., len(window) :]

    def _projected(self, features: Any) -> Any:
        """Turn (positions, n_state) into keys and values of the cross-attention.

        Returns:
            torch.Tensor (layers, 2, heads, head size, positions).
        """
        # time runs along the rows, so that the product itself lays out one matrix per head
        product = self._torch.matmul(self._cross_weight, features.to(self._dtype).mT)
        return product.view(self._n_layer, 2, self._n_head, -1, len(features))

    def _reserve(self, batch: int, length: int, beams: int = 1) -> None:
        """Allocate caches for `batch` windows of `length` audio positions, unless they exist.

        Beams, for which there is one window, have a cache of their own each, and the audio together.
        """
        torch = self._torch
        cache = self._cross_cache
        if (
            cache is None
            or cache.shape[2] < batch
            or cache.shape[-1] != length
            or self._self_cache.shape[2] < beams
        ):
            width = self._n_state // self._n_head
            options = {"dtype": self._step_dtype, "device": self._device}
            layers, rows = (self._n_layer, 2), max(batch, beams)
            self._cross_cache = torch.empty(*layers, batch, self._n_head, width, length, **options)
            self._self_cache = torch.zeros(*layers, rows, self._n_head, self._n_ctx, width, **options)
            self._graphs = {}  # they use the addresses of the old caches
            # keys and values, each (layers, batch, heads, head size, positions)
            self._cross = list(self._cross_cache.unbind(1))

    def _states(self, tokens: Any, position: Any, one_window: bool = False) -> Any:
        """Run the layers.

        Args:
            tokens: int64 (batch, n).
            position: the position of the first token. For a single token it may be a tensor (1,). Then no
                shape depends on it, so the step can be captured.
            one_window: whether all rows, of one token each, hear the first window.

        Returns:
            torch.Tensor float32 (batch, n, n_state), after `ln`.
        """
        torch, functional = self._torch, self._torch.nn.functional
        batch, count = tokens.shape
        captured = isinstance(position, torch.Tensor)
        now = position if captured else slice(position, position + count)
        so_far = slice(None) if captured else slice(position + count)
        mask = (self._numbers <= position)[None] if captured else None
        heads = (batch, count, self._n_head, -1)
        x = functional.embedding(tokens, self._embedding) + self._positions[now]
        for index, layer in enumerate(self._layers):
            q, k, v = self._split(layer.qkv(layer.attn_ln(x)), heads)
            keys, values = self._self_cache[index, :, :batch].unbind(0)
            keys[:, :, now] = k
            values[:, :, now] = v
            attended = functional.scaled_dot_product_attention(
                q, keys[:, :, so_far], values[:, :, so_far], attn_mask=mask, is_causal=count > 1
            )
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            q = layer.cross_q(layer.cross_ln(x)).to(self._step_dtype).view(heads).transpose(1, 2)
            attended = self._heard(index, q, one_window)
            x = x + layer.cross_out(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp_2(layer.mlp_1(layer.mlp_ln(x)))
        return self._ln(x)

    def _heard(self, index: int, query: Any, one_window: bool) -> Any:
        """Attend to the audio with (batch, heads, positions, width); see `_states`."""
        if one_window:
            query = query.transpose(0, 2)  # as positions of one row, which reads the audio only once
        rows = slice(len(query))
        weights = self._torch.matmul(query, self._cross[0][index, rows]).softmax(-1)
        attended = self._torch.matmul(weights, self._cross[1][index, rows].mT)
        return attended.transpose(0, 2) if one_window else attended

    def _split(self, qkv: Any, heads: tuple[int, ...]) -> list[Any]:
        """Split into query, key and value, each (batch, heads, positions, width)."""
        return [part.view(heads).transpose(1, 2) for part in qkv.to(self._step_dtype).chunk(3, -1)]

    def _layer(self, tensor: Any, block: str) -> Any:
        """Prepare one whisper.model.ResidualAttentionBlock; products with the same input are fused."""
        torch = self._torch

        def weight(name: str) -> Any:
            return tensor(f"{block}.{name}.weight")

        def bias(name: str) -> Any:
            return tensor(f"{block}.{name}.bias")

        parts = ("attn.query", "attn.key", "attn.value")
        no_bias = torch.zeros(self._n_state, device=self._device)
        scale = (self._n_state // self._n_head) ** -0.5
        cross_bias = bias("cross_attn.out")
        if self._projects_audio:
            # attention weights sum to one, so the bias of the values can be added afterwards
            cross_bias = cross_bias + weight("cross_attn.out") @ bias("cross_attn.value")
        return SimpleNamespace(
            attn_ln=self._norm(tensor, f"{block}.attn_ln"),
            qkv=self._linear(
                torch.cat([weight(part) for part in parts]),
                torch.cat([bias("attn.query"), no_bias, bias("attn.value")]),
            ),
            out=self._linear(weight("attn.out"), bias("attn.out")),
            # scaled before the product, so that its weights remain values that float16 can hold
            cross_ln=self._norm(tensor, f"{block}.cross_attn_ln", scale),
            cross_q=self._linear(weight("cross_attn.query"), bias("cross_attn.query") * scale),
            cross_out=self._linear(weight("cross_attn.out"), cross_bias),
            mlp_ln=self._norm(tensor, f"{block}.mlp_ln"),
            mlp_1=self._linear(weight("mlp.0"), bias("mlp.0"), gelu=True),
            mlp_2=self._linear(weight("mlp.2"), bias("mlp.2")),
        )

    def _linear(self, weight: Any, bias: Any, gelu: bool = False) -> Any:
        dtype = self._step_dtype
        apply = linear(weight.to(dtype), None if bias is None else bias.to(dtype), gelu)
        return apply if dtype == self._torch.float32 else lambda x: apply(x.to(dtype))

    def _norm(self, tensor: Any, name: str, scale: float = 1.0) -> Any:
        weight, bias = tensor(f"{name}.weight") * scale, tensor(f"{name}.bias") * scale
        norm = self._torch.nn.functional.layer_norm
        return lambda x: norm(x, (self._n_state,), weight, bias)
