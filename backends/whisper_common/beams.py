"""The beam search of whisper.decoding (BeamSearchDecoder, MaximumLikelihoodRanker), for one window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asrgate.backends.whisper_common.greedy import Window, WindowRules


class BeamSearch:
    """The likeliest beginnings of a window's text, and those of them that have ended.

    As with openai-whisper's defaults (no patience, no length penalty), the search ends when as many texts
    have ended as there are beams, and the best of them has the highest log-probability per token.

    Attributes:
        width: the number of beams.
        texts: the tokens of each beam; none if every text has ended.
    """

    def __init__(self, rules: WindowRules):
        self.width, self._eot = rules.beam_size, rules.eot
        self.texts: list[tuple[int, ...]] = [()] * self.width
        self._sums = np.zeros(self.width, np.float32)
        self._finished: dict[tuple[int, ...], float] = {}

    def take(self, tokens: Sequence[Sequence[int]], chances: np.ndarray) -> list[int]:
        """Take one more token in every beam.

        Args:
            tokens: the likeliest next tokens of each beam, one more than there are beams.
            chances: their log-probabilities, float32 (beams, beams + 1); minus infinity: there is none.

        Returns:
            For each beam the one that it continues, whose keys and values it needs.
        """
        scores: dict[tuple[int, ...], float] = {}
        sources: dict[tuple[int, ...], int] = {}
        sums = (self._sums[:, None] + chances).tolist()
        for beam, (text, found) in enumerate(zip(self.texts, tokens, strict=True)):
            for token, total in zip(found, sums[beam], strict=True):
                if total > -np.inf:
                    # equal beams give equal texts, of which one is left
                    longer = (*text, token)
                    scores[longer], sources[longer] = total, beam
        kept: list[tuple[int, ...]] = []
        for text in sorted(scores, key=lambda text: scores[text], reverse=True):
            if len(kept) == self.width:
                break
            if text[-1] != self._eot:
                kept.append(text)
            elif len(self._finished) < self.width:
                self._finished[text] = scores[text]
        kept += kept[-1:] * (self.width - len(kept))  # the rules allowed fewer
        self.texts = kept
        self._sums = np.array([scores[text] for text in kept], np.float32)
        return [sources[text] for text in kept]

    def ended(self) -> bool:
        """Return whether enough texts have ended."""
        return len(self._finished) >= self.width or not self.texts

    def window(self, no_speech_prob: float) -> Window:
        """Return the best text; if too few have ended, those that have not are candidates too."""
        found = dict(self._finished)
        for beam in np.argsort(self._sums)[::-1]:
            if len(found) >= self.width:
                break
            text = (*self.texts[beam], self._eot)
            found[text] = float(self._sums[beam])
        best = max(found, key=lambda text: found[text] / max(len(text) - 1, 1))
        return Window(best[:-1], found[best], no_speech_prob)
