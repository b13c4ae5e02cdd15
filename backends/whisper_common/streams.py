"""Clips transcribed while they are spoken, by LocalAgreement: what two texts in a row begin with is kept.

Macháček et al. 2023, "Turning Whisper into Real-Time Transcription System", https://arxiv.org/abs/2307.14743,
do so with the texts of whole calls. Here the tokens that are kept also are the beginning of every later text,
so that they are not decoded again: when the clip ends, only what was not agreed on is left to decode.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
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

        What is shown is what is agreed on, in whole words. A pass over the window begins when as much audio
        has come as the last pass took time. A clip of more than 30 s is divided in its pauses.

        Raises:
            BackendError: the model has no such language.
        """
        require_language(self._checkpoint, language, self._languages)
        agreement = Agreement(*self._rules(language))
        finished: list[Transcript] = []
        audio, shown = np.zeros(0, np.float32), ""
        waiting = pass_seconds = 0.0
        heard = None
        for chunk in chunks:
            audio, heard = np.concatenate([audio, chunk]), None
            waiting += len(chunk) / SAMPLE_RATE_HZ
            while len(audio) > N_SAMPLES:
                end = pause(audio[:N_SAMPLES])
                agreement.forget()  # some of it may be said after the pause
                finished.append(self._said(audio[:end], None, agreement, language))
                agreement.forget()
                audio = audio[end:]
            if waiting < pass_seconds or len(audio) < HOP_LENGTH:
                continue
            began = time.perf_counter()
            heard = self._heard(audio, agreement)
            so_far = agreement.keep(heard[1].tokens)
            waiting, pass_seconds = 0.0, time.perf_counter() - began
            if (text := joined([*finished, Transcript(so_far)]).text) != shown:
                shown = text
                yield Transcript(text)
        # only now is it known that there is no more; mostly the last pass has heard all of it
        yield joined([*finished, self._said(audio, heard, agreement, language)])

    def _heard(self, audio: np.ndarray, agreement: Agreement) -> tuple[Any, Window]:
        """Return log-mel and window of up to 30 s, which begins with the tokens that are kept."""
        from whisper.audio import pad_or_trim

        mel = self._engine.log_mel(audio)
        encoded = self._engine.encode(pad_or_trim(mel[:, :-N_FRAMES], N_FRAMES))
        found = self._engine.decode(encoded, agreement.rules())
        return mel, replace(found, tokens=(*agreement.kept, *found.tokens))

    def _said(
        self, audio: np.ndarray, heard: tuple[Any, Window] | None, agreement: Agreement, language: str
    ) -> Transcript:
        """Return what `transcribe` makes of a window's tokens, by its rules for silence.

        Args:
            heard: what `_heard` returned for this audio, or None if it was not called.
        """
        if len(audio) >= HOP_LENGTH:
            self._model.ready = heard or self._heard(audio, agreement)
        return self.transcribe(audio, language)


class Agreement:
    """What is agreed on of the window that is being spoken.

    Attributes:
        kept: its first tokens.
    """

    def __init__(self, rules: WindowRules, tokenizer: Any):
        """Take the rules of a window, and a whisper.tokenizer.Tokenizer."""
        self._rules, self._tokenizer = rules, tokenizer
        self.forget()

    def forget(self) -> None:
        """Begin a window."""
        self.kept: tuple[int, ...] = ()
        self._last: tuple[int, ...] = ()

    def rules(self) -> WindowRules:
        """Return the rules for what follows the tokens that are kept; an end may follow them."""
        if not self.kept:
            return self._rules
        left = max(self._rules.sample_limit - len(self.kept), 1)
        prompt = (*self._rules.prompt, *self.kept)
        return replace(self._rules, prompt=prompt, sample_limit=left, suppressed_first=())

    def keep(self, tokens: Sequence[int]) -> str:
        """Keep the whole words that these tokens and the last ones have in common; return their text."""
        same = 0
        while same < min(len(tokens), len(self._last)) and tokens[same] == self._last[same]:
            same += 1
        whole = len(self.kept)
        position = 0
        for word in self._tokenizer.split_to_word_tokens(list(tokens))[1]:
            position += len(word)
            if position <= same:
                whole = max(whole, position)
        self.kept, self._last = tuple(tokens[:whole]), tuple(tokens)
        return str(self._tokenizer.decode(list(self.kept))).strip()


def pause(audio: np.ndarray) -> int:
    """Return the middle of the quietest PAUSE_SECONDS of the last SEARCHED_SECONDS, a number of samples."""
    width = int(PAUSE_SECONDS * SAMPLE_RATE_HZ)
    start = len(audio) - int(SEARCHED_SECONDS * SAMPLE_RATE_HZ)
    energy = np.cumsum(np.square(audio[start:], dtype=np.float64))
    return start + int(np.argmin(energy[width:] - energy[:-width])) + width // 2
