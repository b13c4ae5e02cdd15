"""The beam search of whisper.decoding (BeamSearchDecoder, MaximumLikelihoodRanker), for one window."""

from __future__ import annotations

from typing import Any

import numpy as np

from asrgate.backends.torch_whisper.selection import Selection
from asrgate.backends.whisper_common.greedy import Window, WindowRules


class Beams:
    """The likeliest beginnings of a window's text, and those of them that have ended.

    As with openai-whisper's defaults (no patience, no length penalty), the search ends when as many texts
    have ended as there are beams, and the best of them has the highest log-probability per token.

    Attributes:
        bias, first_bias: what to add to the logits, as Selection has it.
        token: the last token of each beam, torch.Tensor int64 (beams,).
    """

    def __init__(self, rules: WindowRules, n_vocab: int, device: Any):
        import torch

        self._torch = torch
        self._width, self._eot = rules.beam_size, rules.eot
        self._selection = Selection(rules, self._width, n_vocab, device)
        self.bias, self.first_bias = self._selection.bias, self._selection.first_bias
        self.token = self._selection.token
        self._texts: list[tuple[int, ...]] = [()] * self._width
        self._sums = torch.zeros(self._width, device=device)
        self._finished: dict[tuple[int, ...], float] = {}

    def choose(self, logits: Any, first: bool = False) -> list[int]:
        """Take one more token in every beam.

        Args:
            logits: float32 (beams, n_vocab), with this step's bias already added. They are overwritten.
            first: whether this is the window's first token; then all beams are alike.

        Returns:
            For each beam the one that it continues, whose keys and values it needs.
        """
        self._selection.restrict(logits, first)
        chances, tokens = logits.log_softmax(1).topk(self._width + 1)
        scores: dict[tuple[int, ...], float] = {}
        sources: dict[tuple[int, ...], int] = {}
        sums = (self._sums[:, None] + chances).tolist()
        for beam, (text, found) in enumerate(zip(self._texts, tokens.tolist(), strict=True)):
            for token, total in zip(found, sums[beam], strict=True):
                # equal beams give equal texts, of which one is left
                longer = (*text, token)
                scores[longer], sources[longer] = total, beam
        kept: list[tuple[int, ...]] = []
        for text in sorted(scores, key=lambda text: scores[text], reverse=True):
            if len(kept) == self._width:
                break
            if text[-1] != self._eot:
                kept.append(text)
            elif len(self._finished) < self._width:
                self._finished[text] = scores[text]
        self._texts = kept
        self._sums.copy_(self._torch.tensor([scores[text] for text in kept]))
        continued = [sources[text] for text in kept]
        self._selection.follow(continued, self._torch.tensor([text[-1] for text in kept]))
        return continued

    def ended(self) -> bool:
        """Return whether enough texts have ended."""
        return len(self._finished) >= self._width

    def window(self, no_speech_prob: float) -> Window:
        """Return the best text; if too few have ended, those that have not are candidates too."""
        found = dict(self._finished)
        sums = self._sums.cpu().numpy()
        for beam in np.argsort(sums)[::-1]:
            if len(found) >= self._width:
                break
            text = (*self._texts[beam], self._eot)
            found[text] = float(sums[beam])
        best = max(found, key=lambda text: found[text] / max(len(text) - 1, 1))
        return Window(best[:-1], found[best], no_speech_prob)
