"""Clips transcribed while they are spoken, by LocalAgreement: what two texts in a row begin with is shown.

Macháček et al. 2023, "Turning Whisper into Real-Time Transcription System", https://arxiv.org/abs/2307.14743.
There, what was agreed on is never decoded again. That is quicker, but costs words, so here every pass decodes
the whole window, and the last one has the text of `transcribe`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ, Transcript
from asrgate.backends.whisper_common.batches import BatchBackend, joined
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_FRAMES, N_SAMPLES
from asrgate.backends.whisper_common.decoding import require_language
from asrgate.backends.whisper_common.greedy import Window, WindowRules

SEARCHED_SECONDS = 5.0  # at the end of a window that is full, for a pause to divide it from the next
PAUSE_SECONDS = 0.1


class StreamBackend(BatchBackend):
    """A backend that hears a clip while it is spoken."""

    def stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        """Transcribe a clip while it is being spoken; see asrgate.backends.base.Streams.

        A pass over the window begins when as much audio has come as the last pass took time. A clip of more
        than 30 s is divided in its pauses.

        Raises:
            BackendError: the model has no such language.
        """
        require_language(self._checkpoint, language, self._languages)
        rules, tokenizer = self._rules(language)
        finished: list[Transcript] = []
        audio, shown = np.zeros(0, np.float32), ""
        waiting = pass_seconds = 0.0
        before: Sequence[int] = ()
        heard = None
        for chunk in chunks:
            audio, heard = np.concatenate([audio, chunk]), None
            waiting += len(chunk) / SAMPLE_RATE_HZ
            while len(audio) > N_SAMPLES:
                end = pause(audio[:N_SAMPLES])
                finished.append(self.transcribe(audio[:end], language))
                audio, before = audio[end:], ()
            if waiting < pass_seconds or len(audio) < HOP_LENGTH:
                continue
            began = time.perf_counter()
            heard = self._heard(audio, rules)
            tokens = heard[1].tokens
            agreed = agreed_words(before, tokens, tokenizer)
            before = tokens
            waiting, pass_seconds = 0.0, time.perf_counter() - began
            if (text := joined([*finished, Transcript(agreed)]).text) != shown:
                shown = text
                yield Transcript(text)
        # only now is it known that there is no more; mostly the last pass has heard all of it
        self._model.ready = heard
        yield joined([*finished, self.transcribe(audio, language)])

    def _heard(self, audio: np.ndarray, rules: WindowRules) -> tuple[Any, Window]:
        """Return log-mel and window of up to 30 s."""
        from whisper.audio import pad_or_trim

        mel = self._engine.log_mel(audio)
        encoded = self._engine.encode(pad_or_trim(mel[:, :-N_FRAMES], N_FRAMES))
        return mel, self._engine.decode(encoded, rules)


def agreed_words(before: Sequence[int], tokens: Sequence[int], tokenizer: Any) -> str:
    """Return the text of the whole words with which both begin.

    Args:
        before, tokens: the last pass's tokens and this one's.
        tokenizer: a whisper.tokenizer.Tokenizer.
    """
    same = 0
    while same < min(len(tokens), len(before)) and tokens[same] == before[same]:
        same += 1
    whole = position = 0
    for word in tokenizer.split_to_word_tokens(list(tokens))[1]:
        position += len(word)
        if position <= same:
            whole = position
    return str(tokenizer.decode(list(tokens[:whole]))).strip()


def pause(audio: np.ndarray) -> int:
    """Return the middle of the quietest PAUSE_SECONDS of the last SEARCHED_SECONDS, a number of samples."""
    width = int(PAUSE_SECONDS * SAMPLE_RATE_HZ)
    start = len(audio) - int(SEARCHED_SECONDS * SAMPLE_RATE_HZ)
    energy = np.cumsum(np.square(audio[start:], dtype=np.float64))
    return start + int(np.argmin(energy[width:] - energy[:-width])) + width // 2
