"""Beam search on logits in PyTorch, for one window."""

from __future__ import annotations

from typing import Any

from asrgate.backends.torch_whisper.selection import Selection
from asrgate.backends.whisper_common.beams import BeamSearch
from asrgate.backends.whisper_common.greedy import Window, WindowRules


class Beams:
    """The beams of a window as rows of tensors.

    Attributes:
        bias, first_bias: what to add to the logits, as Selection has it.
        token: the last token of each beam, torch.Tensor int64 (beams,).
    """

    def __init__(self, rules: WindowRules, n_vocab: int, device: Any):
        import torch

        self._torch = torch
        self._search = BeamSearch(rules)
        self._selection = Selection(rules, rules.beam_size, n_vocab, device)
        self.bias, self.first_bias = self._selection.bias, self._selection.first_bias
        self.token = self._selection.token

    def choose(self, logits: Any, first: bool = False) -> list[int]:
        """Take one more token in every beam.

        Args:
            logits: float32 (beams, n_vocab), with this step's bias already added. They are overwritten.
            first: whether this is the window's first token; then all beams are alike.

        Returns:
            For each beam the one that it continues, whose keys and values it needs; none if every text has
            ended.
        """
        self._selection.restrict(logits, first)
        chances, tokens = logits.log_softmax(1).topk(self._search.width + 1)
        continued = self._search.take(tokens.tolist(), chances.cpu().numpy())
        if continued:
            self._selection.follow(continued, self._torch.tensor([text[-1] for text in self._search.texts]))
        return continued

    def ended(self) -> bool:
        """Return whether enough texts have ended."""
        return self._search.ended()

    def window(self, no_speech_prob: float) -> Window:
        """Return the best text; see BeamSearch."""
        return self._search.window(no_speech_prob)
