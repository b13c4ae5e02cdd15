"""whisper.cpp through pywhispercpp's bindings, with a ggml file written from the same checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import AUTO, SAMPLE_RATE_HZ, BackendError, Checkpoint, Settings, Transcript
from asrgate.backends.checkpoints.conversions.ggml_model import ggml_file
from asrgate.backends.devices import require_package
from asrgate.backends.whisper_common.constants import (
    HOP_LENGTH,
    LARGE_V3_VOCAB,
    N_SAMPLES,
    N_SAMPLES_PER_TOKEN,
    num_languages,
)
from asrgate.backends.whisper_common.decoding import (
    require_honourable,
    suppressed_tokens,
    timed_word,
    to_decode_in,
)
from asrgate.backends.whisper_common.greedy import TRIM

SHORTEST_SAMPLES = SAMPLE_RATE_HZ // 5  # whisper.cpp drops audio shorter than 0.1 s
STEP_SECONDS = 0.01  # of whisper.cpp's times
NEVER_WITH_TIMESTAMPS = 2  # text layers; see `_require_timestamps`
NO_SPEECH = (  # https://github.com/ggml-org/whisper.cpp/pull/3945
    "whisper.cpp takes the probability of no speech from logits that it has not computed, so it is close to "
    "0 and no window is skipped as silent"
)


class WhisperCpp:
    """whisper_full() on the CPU: greedy, one temperature, full 30 s context unless the precision says +trim.

    Some of its rules differ from openai-whisper's and cannot be changed; `applied_settings` names them. It
    samples at most 220 tokens per window, not 224. In clips of up to 30 s it never samples timestamps, while
    openai-whisper only does not request them. In longer clips a window need not begin with a timestamp, and
    two successive timestamps may be equal. It never skips a window as silent: see NO_SPEECH.
    """

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("f16", "q8_0", "q5_1", "f16" + TRIM, "q8_0" + TRIM)
    }
    imports: ClassVar[Sequence[str]] = ("_pywhispercpp",)

    def __init__(
        self, library: Any, context: Any, checkpoint: Checkpoint, precision: str, settings: Settings
    ):
        self._library = library
        self._context = context
        self._checkpoint = checkpoint
        self._precision = precision
        self._settings = settings
        # whisper.cpp lists its languages in the order of their tokens
        known = [library.whisper_lang_str(number) for number in range(library.whisper_lang_max_id() + 1)]
        self._languages = tuple(known[: num_languages(checkpoint.dimensions["n_vocab"])])
        self._system = library.whisper_print_system_info()
        self._system = self._system.decode() if isinstance(self._system, bytes) else str(self._system)

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package is missing."""
        require_package("_pywhispercpp", "pywhispercpp")
        require_package("whisper", "openai-whisper")  # the conversion uses its tokens and mel filters

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> WhisperCpp:
        """Write the ggml file unless it is in the cache, and load it.

        Raises:
            BackendError: a setting or the checkpoint cannot be honoured, such as beams, or a list of
                suppressed tokens other than Whisper's own.
        """
        require_honourable(checkpoint, settings, detects_language=True)
        if settings.beam_size != 1:
            raise BackendError(
                "whisper.cpp's beam search is not openai-whisper's, so "
                f"beam_size {settings.beam_size} cannot be honoured; use 1, or whisper-cpu or faster-whisper"
            )
        if suppressed_tokens(settings, checkpoint) not in ([], [-1]):
            raise BackendError(
                "whisper.cpp suppresses either Whisper's own list of tokens or none, not "
                f"{settings.suppress_tokens!r}; set suppress_tokens to -1 or leave it empty"
            )
        path = ggml_file(checkpoint, precision.removesuffix(TRIM))
        import _pywhispercpp as library

        options = library.whisper_context_default_params()
        options.use_gpu = False  # a build with CUDA would use one by default
        context = library.whisper_init_from_file_with_params(str(path), options)
        if context is None:
            raise BackendError(
                f"whisper.cpp cannot load {path}; delete the file and it will be written again"
            )
        return cls(library, context, checkpoint, precision, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings passed to whisper_full, and how its own rules differ."""
        full = not self._precision.endswith(TRIM)
        return {
            **self._settings.as_dict(),
            "no_speech_threshold": None,
            "not_applied": {"no_speech_threshold": NO_SPEECH},
            "device": "cpu",
            "precision": self._precision,
            "weights": {"matrices": self._precision.removesuffix(TRIM), "convolutions": "f16"},
            "kv_cache": "f16",
            "flash_attention": True,
            "audio_context": "30 s" if full else "the clip's length, up to 30 s",
            "without_timestamps": "clips up to 30 s; timestamps are then suppressed",
            "max_tokens_per_window": self._checkpoint.dimensions["n_text_ctx"] // 2 - 4,
            "never_suppressed": "the first two bytes of a note sign, which openai-whisper suppresses",
            "first_timestamp": "may be missing",
            "unended_windows": "count as below the log-probability threshold",
            "padding": "silence before the log-mel spectrogram, where openai-whisper pads that with zeros",
            "prompt": "up to 224 tokens, none in the last 5 s"
            if self._settings.condition_on_previous_text
            else None,
            "temperature_inc": 0.0,
            "best_of": 1,
            "system_info": self._system.strip(),
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip with whisper_full; see asrgate.backends.base.Backend.

        Tokens of clips over 30 s are not reported: whisper.cpp drops the timestamps that open a segment.

        Raises:
            BackendError: the model has no such language, or cannot transcribe long clips.
        """
        named = to_decode_in(self._checkpoint, language, self._languages)
        is_long = len(audio) > N_SAMPLES
        if is_long:
            self._require_timestamps("clips over 30 s")
        if len(audio) < HOP_LENGTH:
            # no audio, as in openai-whisper; whisper.cpp would return the last clip's text
            return Transcript("", (), language="en" if named is None else None)
        library, context = self._library, self._context
        positions = -(-len(audio) // N_SAMPLES_PER_TOKEN)
        segments = self._decode(audio, self._parameters(named or AUTO, is_long, positions))
        text = b"".join(library.whisper_full_get_segment_text(context, index) for index in segments)
        detected = library.whisper_lang_str(library.whisper_full_lang_id(context)) if named is None else None
        return Transcript(
            text.decode("utf-8", "replace").strip(),
            None if is_long else self._tokens(segments),
            language=detected,
        )

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        """As `transcribe` with timestamps, each word a segment; whisper.cpp estimates where it is from them.

        It does so from the probabilities of timestamps and the loudness of the audio, not by attention. The
        text may differ from that of `transcribe`, which has no timestamps in clips of up to 30 s.

        Raises:
            BackendError: the model has no such language or no timestamps.
        """
        named = to_decode_in(self._checkpoint, language, self._languages)
        self._require_timestamps("word times")
        if len(audio) < HOP_LENGTH:
            return Transcript("", (), language="en" if named is None else None, words=())
        library, context = self._library, self._context
        parameters = self._parameters(named or AUTO, True, -(-len(audio) // N_SAMPLES_PER_TOKEN))
        parameters.token_timestamps = True
        parameters.max_len = 1  # characters of a segment, but
        parameters.split_on_word = True  # never less than a word
        segments = self._decode(audio, parameters)
        texts = [library.whisper_full_get_segment_text(context, index) for index in segments]
        times = [
            (library.whisper_full_get_segment_t0(context, n), library.whisper_full_get_segment_t1(context, n))
            for n in segments
        ]
        return Transcript(
            b"".join(texts).decode("utf-8", "replace").strip(),
            language=None if named else library.whisper_lang_str(library.whisper_full_lang_id(context)),
            words=[
                timed_word(text.decode("utf-8", "replace"), start * STEP_SECONDS, end * STEP_SECONDS)
                for text, (start, end) in zip(texts, times, strict=True)
                if text.strip()
            ],
        )

    def _decode(self, audio: np.ndarray, parameters: Any) -> range:
        """Have whisper_full decode a clip; return the numbers of its segments."""
        if len(audio) < SHORTEST_SAMPLES:
            # whisper.cpp itself appends 30 s of silence to the audio, so this does not change the result
            audio = np.pad(audio, (0, SHORTEST_SAMPLES - len(audio)))
        status = self._library.whisper_full(self._context, parameters, audio, audio.size)
        if status != 0:
            raise BackendError(f"whisper_full failed with status {status}; see the worker's log")
        return range(self._library.whisper_full_n_segments(self._context))

    def synchronize(self) -> None:
        """Nothing to wait for: whisper_full returns when its threads are done."""

    def _parameters(self, language: str, is_long: bool, positions: int) -> Any:
        library, settings = self._library, self._settings
        parameters = library.whisper_full_default_params(
            library.whisper_sampling_strategy.WHISPER_SAMPLING_GREEDY
        )
        parameters.n_threads = settings.threads
        parameters.translate = settings.task == "translate"
        parameters.language = language
        parameters.no_context = True  # takes no text from the last clip
        conditioned = settings.condition_on_previous_text
        parameters.n_max_text_ctx = self._checkpoint.dimensions["n_text_ctx"] // 2 if conditioned else 0
        parameters.no_timestamps = not is_long
        parameters.suppress_blank = settings.suppress_blank
        parameters.suppress_nst = settings.suppress_tokens == "-1"
        parameters.temperature = settings.temperature
        parameters.temperature_inc = 0.0  # no fallback, so no entropy threshold either
        parameters.greedy = {"best_of": 1}
        parameters.no_speech_thold = settings.no_speech_threshold
        parameters.logprob_thold = settings.logprob_threshold
        parameters.max_initial_ts = 1.0
        parameters.print_progress = False
        if self._precision.endswith(TRIM):
            parameters.audio_ctx = min(positions, self._checkpoint.dimensions["n_audio_ctx"])
        return parameters

    def _tokens(self, segments: range) -> tuple[int, ...]:
        library, context = self._library, self._context
        end = library.whisper_token_eot(context)
        tokens = (
            library.whisper_full_get_token_id(context, segment, index)
            for segment in segments
            for index in range(library.whisper_full_n_tokens(context, segment))
        )
        return tuple(token for token in tokens if token != end)

    def _require_timestamps(self, what: str) -> None:
        dimensions = self._checkpoint.dimensions
        if dimensions["n_text_layer"] == NEVER_WITH_TIMESTAMPS and dimensions["n_vocab"] != LARGE_V3_VOCAB:
            raise BackendError(
                "whisper.cpp treats a model with 2 decoder layers as a first-release Distil-Whisper and "
                f"never gives it timestamps, which {what} need; "
                f"{self._checkpoint.name} has 2 layers: use shorter clips without word times"
            )
