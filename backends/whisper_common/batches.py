"""Clips transcribed together by an engine of our own: their windows are encoded and decoded as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from asrgate.backends.base import Transcript
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_FRAMES, N_SAMPLES
from asrgate.backends.whisper_common.decoding import require_language
from asrgate.backends.whisper_common.greedy import Engine, GreedyBackend, Window, WindowRules, window_rules


class BatchEngine(Engine, Protocol):
    """An Engine that takes several windows at once."""

    def encode_batch(self, mels: Sequence[Any]) -> Any:
        """Encode windows, each a torch.Tensor float32 (n_mels, 3000), into what `decode_batch` takes."""
        ...

    def decode_batch(self, encoded: Any, rules: WindowRules) -> list[Window]:
        """Decode windows together, as `decode` does each; the rules are those of all."""
        ...


class BatchBackend(GreedyBackend):
    """A backend made of a BatchEngine."""

    _engine: BatchEngine

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        """Transcribe clips together: their windows are encoded and decoded as one batch.

        For a clip of up to 30 s the result is that of `transcribe`, up to rounding. A longer clip is cut
        every 30 s and its parts are decoded as separate clips, so words at the cuts may be lost;
        `applied_settings` says "chunked".

        Args:
            audios: float32 arrays as `transcribe` takes them.
            language: the language of all of them.

        Raises:
            BackendError: the model has no such language.
        """
        require_language(self._checkpoint, language, self._languages)
        clips = [
            [audio[start : start + N_SAMPLES] for start in range(0, len(audio), N_SAMPLES)] or [audio]
            for audio in audios
        ]
        chunks = [chunk for clip in clips for chunk in clip]
        # the longest end last, and those after them drop out earlier
        order = sorted(range(len(chunks)), key=lambda index: -len(chunks[index]))
        rules, _ = self._rules(language)
        transcripts = {}
        decoded = self._decoded([chunks[index] for index in order], rules)
        for index, ready in zip(order, decoded, strict=True):
            self._model.ready = ready
            transcripts[index] = self.transcribe(chunks[index], language)
        results, position = [], 0
        for clip in clips:
            results.append(joined([transcripts[index] for index in range(position, position + len(clip))]))
            position += len(clip)
        return results

    def _rules(self, language: str) -> tuple[WindowRules, Any]:
        """Return the rules of a clip's only window, and the tokenizer."""
        from whisper.decoding import DecodingOptions

        passed_on = ("task", "temperature", "beam_size", "suppress_blank", "suppress_tokens")
        options = DecodingOptions(
            language=language,
            without_timestamps=True,
            prompt=[],
            fp16=False,
            **{name: self._options[name] for name in passed_on},
        )
        return window_rules(self._model, options)

    def _decoded(self, chunks: Sequence[np.ndarray], rules: WindowRules) -> list[tuple[Any, Window] | None]:
        """Return log-mel and window of clips of up to 30 s, decoded together; None if one has no frame."""
        from whisper.audio import pad_or_trim

        mels = [self._engine.log_mel(chunk) for chunk in chunks if len(chunk) >= HOP_LENGTH]
        if not mels:
            return [None] * len(chunks)
        encoded = self._engine.encode_batch([pad_or_trim(mel[:, :-N_FRAMES], N_FRAMES) for mel in mels])
        done = zip(mels, self._engine.decode_batch(encoded, rules), strict=True)
        return [next(done) if len(chunk) >= HOP_LENGTH else None for chunk in chunks]


def joined(parts: Sequence[Transcript]) -> Transcript:
    """Return one Transcript of windows that follow each other."""
    text = " ".join(part.text for part in parts if part.text)
    return Transcript(text, tuple(token for part in parts for token in part.tokens or ()))
