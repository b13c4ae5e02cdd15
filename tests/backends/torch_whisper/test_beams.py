"""The beam search ends as openai-whisper's does, on chances made for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asrgate.backends.torch_whisper.beams import Beams
from asrgate.backends.whisper_common.greedy import WindowRules

EOT, WORDS = 4, 5
RULES = WindowRules((), 0, (), (), False, None, EOT, 0, WORDS, 0, 9, 9, beam_size=2)


def logits(*rows: list[float]) -> torch.Tensor:
    """Log-probabilities of each beam's next token, from chances of five, of which the last ends a text."""
    return torch.tensor(np.log(np.array(rows) / np.sum(rows, 1, keepdims=True)), dtype=torch.float32)


def test_only_as_many_texts_end_as_there_are_beams() -> None:
    """In the last step more could: the likeliest of them are kept, not a shorter one with a higher mean."""
    beams = Beams(RULES, WORDS, "cpu")
    start = [0.5, 0.3, 0.1, 0.05, 0.05]
    assert beams.choose(logits(start, start), first=True) == [1, 1], "of equal texts the last is left"
    assert beams.choose(logits([0.1, 0.1, 0.1, 0.1, 0.6], [0.1, 0.1, 0.1, 0.6, 0.1])) == [1, 0]
    assert not beams.ended()
    assert beams.choose(logits([0.01, 0.01, 0.01, 0.07, 0.9], [0.01, 0.01, 0.01, 0.01, 0.96]))[0] == 0
    assert beams.ended()
    assert set(beams._search._finished) == {(0, EOT), (1, 3, EOT)}
    best = beams.window(0.25)
    assert (best.tokens, best.no_speech_prob) == ((1, 3), 0.25)
    assert best.sum_logprob == pytest.approx(np.log(0.3 * 0.6 * 0.9))


def test_too_few_ended_texts_are_joined_by_the_likeliest_that_have_not() -> None:
    beams = Beams(RULES, WORDS, "cpu")
    start = [0.5, 0.3, 0.1, 0.05, 0.05]
    beams.choose(logits(start, start), first=True)
    beams.choose(logits([0.1, 0.05, 0.05, 0.2, 0.6], [0.3, 0.3, 0.2, 0.1, 0.1]))
    best = beams.window(0.0)
    assert best.tokens == (0, 3), "it has the higher chance per token: 0.1 for two, beside 0.3 for one"
    assert best.sum_logprob == pytest.approx(np.log(0.5 * 0.2))
