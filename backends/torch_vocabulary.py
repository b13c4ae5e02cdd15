"""The product with the vocabulary, two thirds of all weights a token reads, without reading most of them."""

from __future__ import annotations

from typing import Any

from backends.torch_linear import quantize_rows

ROUNDING = 2**-8  # of bfloat16, relative
WIDEST_SCREENED_BATCH = 16  # beyond it one float32 product serves all rows faster than their candidates do


class ScreenedVocabulary:
    """Logits on the CPU: all in 8 bits, then in float32 those of every token that could be the greatest.

    By Cauchy-Schwarz a logit is off by at most |state| times the norm of its row's rounding error, plus the
    rounding of state and result to bfloat16; what lies further than twice the largest such error below the
    best cannot win. So the greatest is the one of the float32 product, always.
    """

    def __init__(self, embedding: Any, exact: bool):
        """Quantise the rows.

        Args:
            embedding: float32 (n_vocab, n_state), on the CPU.
            exact: whether log-probabilities matter to 1e-4 too: then all tokens down to 10 nats below the
                best are computed in float32, otherwise those down to 4.
        """
        import torch

        self._torch = torch
        self._embedding = embedding
        self._rows, self._scale = quantize_rows(embedding)
        n_vocab = embedding.shape[0]
        error = embedding - self._rows[:n_vocab].float() * self._scale.float()[:n_vocab, None]
        largest = float(embedding.norm(dim=1).max())
        # 1.05 covers the products of two roundings and the sums in float32
        self._bound = 2 * 1.05 * (float(error.norm(dim=1).max()) + 2 * ROUNDING * largest)
        self._exact, self._nats = exact, 10.0 if exact else 4.0

    def logits(self, states: Any, bias: Any, exact_from: int | None = None) -> Any:
        """The logits, with the bias added.

        Args:
            states: float32 (batch, n_state).
            bias: float32 (n_vocab,), 0 or -infinity.
            exact_from: all tokens from this one on are computed in float32 too, and the others are compared
                among themselves; for the rules of timestamps, which compare the two groups.

        Returns:
            torch.Tensor float32 (batch, n_vocab), free to overwrite.
        """
        torch = self._torch
        if self._exact and states.shape[0] > WIDEST_SCREENED_BATCH:
            return torch.nn.functional.linear(states, self._embedding).add_(bias)
        rough = torch._weight_int8pack_mm(states.bfloat16(), self._rows, self._scale)
        logits = rough[:, : bias.shape[0]] + bias  # float32
        screened = logits[:, :exact_from]
        margin = (states.norm(dim=1) * self._bound).clamp(min=self._nats)
        token = (screened > (screened.amax(1) - margin)[:, None]).any(0).nonzero()[:, 0]
        candidates = self._embedding.index_select(0, token)
        if states.shape[0] == 1:
            screened[0, token] = candidates.mv(states[0]).add_(bias[token])
        else:
            screened[:, token] = torch.nn.functional.linear(states, candidates).add_(bias[token])
        if exact_from is not None:
            exactly = torch.nn.functional.linear(states, self._embedding[exact_from:])
            logits[:, exact_from:] = exactly.add_(bias[exact_from:])
        return logits

    def probability(self, states: Any, token: int) -> Any:
        """The probability of one token for each row of states, float32 (batch,)."""
        bias = self._torch.zeros(self._embedding.shape[0])
        return ((states @ self._embedding[token]) - self.logits(states, bias).logsumexp(1)).exp()


class PlainVocabulary:
    """Logits by one product in the weights' precision, as openai-whisper computes them; see above."""

    def __init__(self, embedding: Any):
        """`embedding`: (n_vocab, n_state), in the precision and on the device of the product."""
        import torch

        self._torch = torch
        self._embedding = embedding

    def logits(self, states: Any, bias: Any, exact_from: int | None = None) -> Any:
        """The logits, with the bias added; float32 (batch, n_vocab), free to overwrite."""
        linear = self._torch.nn.functional.linear
        return linear(states.to(self._embedding.dtype), self._embedding).float() + bias

    def probability(self, states: Any, token: int) -> Any:
        """The probability of one token for each row of states, float32 (batch,)."""
        return self.logits(states, 0.0).softmax(1)[:, token]
