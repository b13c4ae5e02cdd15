"""Greedy decoding around an engine of our own: openai-whisper's transcription, with the arithmetic replaced.

whisper.transcribe.transcribe runs unchanged, so windows, seeking, silence and long-form are openai-whisper's.
Instead of its model it gets an object whose `decode` passes each window to an Engine.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import numpy as np

from asrgate.backends.base import BackendError, Checkpoint, Settings, Transcript
from asrgate.backends.whisper_common.constants import FRAMES_PER_SECOND, N_SAMPLES, num_languages
from asrgate.backends.whisper_common.decoding import require_honourable, require_language
from asrgate.backends.whisper_common.stage_clock import StageClock

TRIM = "+trim"  # suffix of precisions whose encoder gets only the frames that `frames_to_encode` gives
SILENCE_ENCODED_SECONDS = 10.0  # after a clip; with less, a decoder may not find its end
TRIMMED = f"the clip and {SILENCE_ENCODED_SECONDS:g} s; behind it the encoding of silence, computed at load"


@dataclass(frozen=True)
class WindowRules:
    """What may be sampled in one window: the rules of whisper.decoding.DecodingTask as plain values.

    Attributes:
        prompt: tokens fed before the first sampled one.
        sot_index: position of the start-of-transcript token in `prompt`; the logits there give the no-speech
            probability.
        suppressed: ids that are never sampled, ascending.
        suppressed_first: ids that are also never sampled as the first token.
        timestamps: whether the rules of ApplyTimestampRules apply; if not, only the prompt's last token
            discourages timestamps, as in openai-whisper.
        max_initial_timestamp_index: the first timestamp is at most timestamp_begin plus this; None: no limit.
        sample_limit: the most tokens that are sampled.
        n_text_ctx: sampling also stops when prompt and sampled tokens exceed this together.
    """

    prompt: tuple[int, ...]
    sot_index: int
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]
    timestamps: bool
    max_initial_timestamp_index: int | None
    eot: int
    no_timestamps: int
    timestamp_begin: int
    no_speech: int
    sample_limit: int
    n_text_ctx: int

    def for_any_prompt(self) -> WindowRules:
        """A key that is the same for all windows of one kind: without the prompt and what depends on it."""
        return replace(self, prompt=(), sot_index=0, sample_limit=0)

    def logit_biases(self, n_vocab: int) -> np.ndarray:
        """What is added to the logits, 0 or -infinity, float32 (2, n_vocab): always; for the first token."""
        always = np.zeros(n_vocab, np.float32)
        always[list(self.suppressed)] = -np.inf
        if self.timestamps:
            always[self.no_timestamps] = -np.inf
        first = always.copy()
        first[list(self.suppressed_first)] = -np.inf
        if self.timestamps:
            first[: self.timestamp_begin] = -np.inf
            if self.max_initial_timestamp_index is not None:
                first[self.timestamp_begin + self.max_initial_timestamp_index + 1 :] = -np.inf
        return np.stack([always, first])


@dataclass(frozen=True)
class Window:
    """One decoded window.

    Attributes:
        tokens: sampled ids before the end of text.
        sum_logprob: sum of the sampled tokens' log-probabilities after the rules, including the end of text.
        no_speech_prob: probability of the no-speech token at the start of the transcript.
    """

    tokens: Sequence[int]
    sum_logprob: float
    no_speech_prob: float


class Engine(Protocol):
    """The arithmetic of Whisper in three stages."""

    dims: Any  # a whisper.model.ModelDimensions
    device: Any  # the torch.device of what log_mel returns and encode takes

    def log_mel(self, audio: np.ndarray) -> Any:
        """Log-mel spectrogram, equal to whisper.audio.log_mel_spectrogram(audio, n_mels, padding=N_SAMPLES).

        Args:
            audio: float32, shape (samples,), 16 kHz.

        Returns:
            torch.Tensor, float32, on `device`, shape (n_mels, samples // 160 + 3000).
        """
        ...

    def encode(self, mel: Any) -> Any:
        """Encode one window, torch.Tensor float32 (n_mels, 3000), into whatever `decode` takes."""
        ...

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """Decode one window greedily."""
        ...

    def applied(self) -> Mapping[str, Any]:
        """The settings with which the engine really runs, for the record."""
        ...


def frames_to_encode(mel: Any) -> int:
    """Return how many frames of a window a trimmed encoder computes: the clip's and SILENCE_ENCODED_SECONDS.

    Args:
        mel: torch.Tensor (n_mels, 3000), padded as in whisper.transcribe: with frames that are exactly zero.

    Returns:
        an even number, because two frames make a position.
    """
    filled = int((mel != 0).any(0).sum()) + round(SILENCE_ENCODED_SECONDS * FRAMES_PER_SECOND)
    return min(mel.shape[-1], filled + filled % 2)


class GreedyBackend:
    """A backend made of an Engine; a subclass defines it with `devices`, `check` and `build`."""

    devices: ClassVar[Mapping[str, Sequence[str]]]
    imports: ClassVar[Sequence[str]] = ("torch", "whisper")

    def __init__(
        self, engine: Engine, checkpoint: Checkpoint, device: str, precision: str, settings: Settings
    ):
        from whisper.tokenizer import LANGUAGES

        # the module, because the package's attribute of the same name is the function
        self._module: Any = importlib.import_module("whisper.transcribe")
        self._engine = engine
        self._checkpoint = checkpoint
        self._device = device
        self._precision = precision
        self._settings = settings
        self._clock = StageClock(self.synchronize)
        self._model = _Model(
            engine,
            self._clock.timed("encode", engine.encode),
            checkpoint.is_multilingual,
        )
        self._languages = tuple(LANGUAGES)[: self._model.num_languages]
        log_mel = self._clock.timed("log_mel", engine.log_mel)
        self._log_mel = lambda audio, n_mels, padding: log_mel(audio)
        self._options = {
            "task": settings.task,
            "temperature": settings.temperature,
            "condition_on_previous_text": settings.condition_on_previous_text,
            "no_speech_threshold": settings.no_speech_threshold,
            "logprob_threshold": settings.logprob_threshold,
            "compression_ratio_threshold": None,  # only triggers the fallback to other temperatures
            "suppress_blank": settings.suppress_blank,
            "suppress_tokens": settings.suppress_tokens,
        }

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> GreedyBackend:
        """Build the engine from the checkpoint.

        Raises:
            BackendUnavailable: the machine lacks something that is needed.
            BackendError: the weights do not fit, or a setting cannot be honoured, such as beams.
        """
        require_honourable(checkpoint, settings)
        if settings.beam_size != 1:
            raise BackendError(
                f"it only decodes greedily, so beam_size {settings.beam_size} cannot be honoured; use "
                "beam_size 1, or whisper-cpu or faster-whisper"
            )
        return cls(
            cls.build(checkpoint, device, precision, settings), checkpoint, device, precision, settings
        )

    @classmethod
    def build(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Engine:
        """Return the loaded engine; raises the same errors as `load`."""
        raise NotImplementedError

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings passed to whisper.transcribe, and those with which the engine really runs."""
        return {
            **self._settings.as_dict(),
            **self._options,
            "device": self._device,
            "precision": self._precision,
            "max_tokens_per_window": self._engine.dims.n_text_ctx // 2,
            "without_timestamps": "clips up to 30 s",
            "audio_context": "30 s",
            **self._engine.applied(),
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip with whisper.transcribe; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language.
        """
        require_language(self._checkpoint, language, self._languages)
        with self._clock.call(), self._instrumented():
            result = self._module.transcribe(
                self._model,
                audio,
                language=language,
                without_timestamps=len(audio) <= N_SAMPLES,
                fp16=False,
                **self._options,
            )
            tokens = tuple(token for segment in result["segments"] for token in segment["tokens"])
            # as whisper's own writers print it; result["text"] would also contain stray special tokens
            text = "".join(segment["text"] for segment in result["segments"]).strip()
        return Transcript(text, tokens, dict(self._clock.seconds))

    def synchronize(self) -> None:
        """Wait for the device; on the CPU, engines return only when they are done."""
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        original = self._module.log_mel_spectrogram
        self._module.log_mel_spectrogram = self._log_mel
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Performing inference on CPU when CUDA is available")
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                yield
        finally:
            self._module.log_mel_spectrogram = original


class _Model:
    """The parts of a whisper.model.Whisper that whisper.transcribe.transcribe needs."""

    def __init__(self, engine: Engine, encode: Any, is_multilingual: bool):
        self.dims = engine.dims
        self.device = engine.device  # where transcribe puts its windows
        self.is_multilingual = is_multilingual
        self.num_languages = num_languages(engine.dims.n_vocab)
        self.decoder = SimpleNamespace(blocks=())  # DecodingTask looks for modules to cache; it finds none
        self._encode = encode
        self._engine = engine

    def decode(self, mel: Any, options: Any) -> Any:
        """One window (n_mels, 3000) to a whisper.decoding.DecodingResult; see whisper.decoding.decode."""
        from whisper.decoding import DecodingResult
        from whisper.utils import compression_ratio

        rules, tokenizer = window_rules(self, options)
        encoded = self._encode(mel)
        window = self._engine.decode(encoded, rules)
        tokens = list(window.tokens)
        text = tokenizer.decode(tokens).strip()
        return DecodingResult(
            audio_features=None,
            language=options.language or "en",
            tokens=tokens,
            text=text,
            avg_logprob=window.sum_logprob / (len(tokens) + 1),
            no_speech_prob=window.no_speech_prob,
            temperature=options.temperature,
            compression_ratio=compression_ratio(text),
        )


def window_rules(model: Any, options: Any) -> tuple[WindowRules, Any]:
    """Take the rules from the DecodingTask that openai-whisper would run; also return its tokenizer.

    Args:
        model: has `dims`, `is_multilingual`, `num_languages` and `decoder.blocks`.
        options: a whisper.decoding.DecodingOptions for greedy decoding.
    """
    from whisper.decoding import ApplyTimestampRules, DecodingTask, SuppressBlank, SuppressTokens

    task = DecodingTask(model, options)
    tokenizer = task.tokenizer
    filters = {type(rule): rule for rule in task.logit_filters}
    timestamp_rules: Any = filters.get(ApplyTimestampRules)
    suppress: Any = filters.get(SuppressTokens)
    rules = WindowRules(
        prompt=tuple(task.initial_tokens),
        sot_index=task.sot_index,
        suppressed=tuple(suppress.suppress_tokens) if suppress else (),
        suppressed_first=(*tokenizer.encode(" "), tokenizer.eot) if SuppressBlank in filters else (),
        timestamps=timestamp_rules is not None,
        max_initial_timestamp_index=timestamp_rules and timestamp_rules.max_initial_timestamp_index,
        eot=tokenizer.eot,
        no_timestamps=tokenizer.no_timestamps,
        timestamp_begin=tokenizer.timestamp_begin,
        no_speech=tokenizer.no_speech,
        sample_limit=task.sample_len,
        n_text_ctx=task.n_ctx,
    )
    return rules, tokenizer
