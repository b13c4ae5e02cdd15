"""faster-whisper's batched pipeline: windows of one recording, or many clips, decoded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asrgate.backends.base import AUTO, SAMPLE_RATE_HZ, BackendError, Checkpoint, Settings, Transcript, Word
from asrgate.backends.faster_whisper import FasterWhisper
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_SAMPLES
from asrgate.backends.whisper_common.decoding import require_language, timed_word

BATCH_SIZE = 8  # BatchedInferencePipeline.transcribe's own default
GRID_FRAMES = 10  # windows begin on a grid: the pipeline rounds a first frame down, sometimes by one too many
GRID_SAMPLES = GRID_FRAMES * HOP_LENGTH


class FasterWhisperBatched(FasterWhisper):
    """faster_whisper.BatchedInferencePipeline with explicit windows, and so without its voice filter.

    A recording is cut every 30 s, even within a word, and its windows are decoded together and without
    timestamps. This is chunked long-form, not the sequential long-form of the other engines, and it costs
    quality. The pipeline ignores the two silence thresholds; they are applied here to what it reports.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        from faster_whisper import BatchedInferencePipeline

        super().__init__(model, checkpoint, device, precision, settings)
        self._pipeline = BatchedInferencePipeline(model)
        self._batched = {**self._options, "max_initial_timestamp": None}

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings
    ) -> FasterWhisperBatched:
        """As FasterWhisper.load.

        Raises:
            BackendError: a setting cannot be honoured. condition_on_previous_text and AUTO are two, because
                all windows are decoded at once.
        """
        if settings.condition_on_previous_text:
            raise BackendError(
                "windows that are decoded together cannot be conditioned on each other's text; set "
                "condition_on_previous_text to false, or use faster-whisper"
            )
        if settings.language == AUTO:
            raise BackendError(
                "its windows and clips are decoded together in one language, so it cannot detect one for "
                "each; name a language, or use faster-whisper"
            )
        loaded = super().load(checkpoint, device, precision, settings)
        assert isinstance(loaded, cls)
        return loaded

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings of FasterWhisper, and how recordings are cut."""
        return {
            **super().applied_settings,
            "max_initial_timestamp": None,
            "without_timestamps": True,
            "long_form": "chunked: cut every 30 s; windows decoded together, each with its own maximum",
            "batch_size": BATCH_SIZE,
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip, its windows in batches of 8; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language.
        """
        windows = [audio[start : start + N_SAMPLES] for start in range(0, len(audio), N_SAMPLES)]
        with self._clock.call():
            decoded = self._decode(windows, language, BATCH_SIZE)
        text = "".join(text for text, _, _ in decoded).strip()
        tokens = tuple(token for _, tokens, _ in decoded for token in tokens)
        return Transcript(text, tokens, dict(self._clock.seconds))

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        """As `transcribe`, and align each window's tokens with its audio by the decoder's attention."""
        windows = [audio[start : start + N_SAMPLES] for start in range(0, len(audio), N_SAMPLES)]
        with self._clock.call():
            decoded = self._decode(windows, language, BATCH_SIZE, with_words=True)
        text = "".join(text for text, _, _ in decoded).strip()
        tokens = tuple(token for _, tokens, _ in decoded for token in tokens)
        # windows of 30 s are whole steps of the grid, so times in what is decoded are those of the audio
        words = [word for _, _, words in decoded for word in words]
        return Transcript(text, tokens, dict(self._clock.seconds), words=words)

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        """Transcribe clips of one language, all of them in one batch.

        Args:
            audios: each float32, shape (samples,), mono, 16 kHz, at most 30 s. They are not modified.
            language: ISO 639-1 code of all of them.

        Returns:
            One Transcript per clip, in order, without stage seconds, because a batch shares its stages.

        Raises:
            BackendError: a clip is longer than 30 s, or the model has no such language.
        """
        longest = max((len(audio) for audio in audios), default=0)
        if longest > N_SAMPLES:
            raise BackendError(
                f"a clip of {longest / SAMPLE_RATE_HZ:.1f} s is longer than the 30 s that fit a batch; "
                "transcribe it alone"
            )
        decoded = self._decode(audios, language, max(len(audios), 1))
        return [Transcript(text.strip(), tokens) for text, tokens, _ in decoded]

    def _decode(
        self, windows: Sequence[np.ndarray], language: str, batch_size: int, with_words: bool = False
    ) -> list[tuple[str, tuple[int, ...], tuple[Word, ...]]]:
        require_language(self._checkpoint, language, self._languages)
        # All windows become one recording, each on a grid: the pipeline identifies a window by its start.
        lengths = [-(-len(window) // GRID_SAMPLES) * GRID_SAMPLES for window in windows]
        starts = np.cumsum([0, *lengths]).tolist()
        recording = np.zeros(starts[-1], np.float32)
        by_start = {}  # window's start, in steps of the grid -> its index
        for index, window in enumerate(windows):
            if len(window) >= HOP_LENGTH:  # less than a frame counts as no audio, as in openai-whisper
                recording[starts[index] : starts[index] + len(window)] = window
                by_start[starts[index] // GRID_SAMPLES] = index
        decoded: list[tuple[str, tuple[int, ...], tuple[Word, ...]]] = [("", (), ())] * len(windows)
        if not by_start:
            return decoded
        segments, _ = self._pipeline.transcribe(
            recording,
            language=language,
            without_timestamps=True,
            word_timestamps=with_words,
            batch_size=batch_size,
            clip_timestamps=[
                {"start": _seconds(starts[index]), "end": _seconds(starts[index] + len(windows[index]))}
                for index in by_start.values()
            ],
            **self._batched,
        )
        for segment in segments:
            index = by_start[round(segment.seek / GRID_FRAMES)]
            if segment.text.strip() and not self._is_silent(segment):
                text, tokens, words = decoded[index]
                timed = (timed_word(w.word, w.start, w.end) for w in segment.words or ())
                decoded[index] = (text + segment.text, (*tokens, *segment.tokens), (*words, *timed))
        return decoded

    def _is_silent(self, segment: Any) -> bool:
        # whisper.transcribe.transcribe skips a window by the same rule
        settings = self._settings
        return (
            segment.no_speech_prob > settings.no_speech_threshold
            and segment.avg_logprob <= settings.logprob_threshold
        )


def _seconds(samples: int) -> float:
    # the pipeline takes int(seconds * 16000), which must not round down to the sample before
    return (samples + 0.5) / SAMPLE_RATE_HZ
