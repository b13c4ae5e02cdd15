"""Decoding with an engine of our own: openai-whisper's transcription with its arithmetic replaced.

whisper.transcribe.transcribe runs unchanged, so windows, seeking, silence and long-form are openai-whisper's.
In place of a model it gets an object whose `decode` passes each window to an Engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import numpy as np

from asrgate.backends.base import BackendError, Checkpoint, Settings
from asrgate.backends.whisper_common.constants import FRAMES_PER_SECOND, num_languages
from asrgate.backends.whisper_common.decoding import require_honourable
from asrgate.backends.whisper_common.transcription import OpenAiTranscription

TRIM = "+trim"  # suffix of precisions whose encoder computes only `frames_to_encode` of each window
SILENCE_ENCODED_SECONDS = 10.0  # after a clip; with less, a decoder may not find its end
TRIMMED = f"the clip and {SILENCE_ENCODED_SECONDS:g} s; behind it the encoding of silence, computed at load"


@dataclass(frozen=True)
class WindowRules:
    """What may be sampled in one window: the rules of whisper.decoding.DecodingTask as plain values.

    Attributes:
        prompt: tokens fed before the first sampled one.
        sot_index: the position of the start-of-transcript token in `prompt`. The logits there give the
            no-speech probability.
        suppressed: ids that are never sampled, in ascending order.
        suppressed_first: ids that are also never sampled as the first token.
        timestamps: whether the rules of ApplyTimestampRules apply. If not, only the prompt's last token
            discourages timestamps, as in openai-whisper.
        max_initial_timestamp_index: the first timestamp is at most timestamp_begin plus this. None means no
            limit.
        eot, no_timestamps, timestamp_begin, no_speech: ids of special tokens, as in whisper.tokenizer.
        sample_limit: the largest number of tokens to sample.
        n_text_ctx: sampling also stops when prompt and sampled tokens together exceed this number.
        beam_size: how many texts whisper.decoding's beam search keeps; 1 decodes greedily.
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
    beam_size: int = 1

    @property
    def most_tokens(self) -> int:
        """How many tokens are sampled at most.

        As in whisper.decoding._main_loop: the last one, which is not fed back, may exceed the context.
        """
        return min(self.sample_limit, self.n_text_ctx - len(self.prompt) + 1)

    def for_any_prompt(self) -> WindowRules:
        """Return the rules without the prompt and what depends on it: a key for windows of the same kind."""
        return replace(self, prompt=(), sot_index=0, sample_limit=0)

    def logit_biases(self, n_vocab: int) -> np.ndarray:
        """Return what to add to the logits: always, and for the first token; 0 or -infinity, (2, n_vocab)."""
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
        tokens: the sampled ids before the end of text.
        sum_logprob: the sum of the sampled tokens' log-probabilities under the rules, including the end of
            text.
        no_speech_prob: the probability of the no-speech token at the start of the transcript.
    """

    tokens: Sequence[int]
    sum_logprob: float
    no_speech_prob: float


class Engine(Protocol):
    """The arithmetic of Whisper in three stages."""

    dims: Any  # a whisper.model.ModelDimensions
    device: Any  # a torch.device: log_mel returns tensors on it, and encode takes them

    def log_mel(self, audio: np.ndarray) -> Any:
        """Return what whisper.audio.log_mel_spectrogram(audio, n_mels, padding=N_SAMPLES) returns.

        Args:
            audio: float32, shape (samples,), 16 kHz.

        Returns:
            torch.Tensor, float32, on `device`, shape (n_mels, samples // 160 + 3000).
        """
        ...

    def encode(self, mel: Any) -> Any:
        """Encode one window, torch.Tensor float32 (n_mels, 3000), into the form that `decode` takes."""
        ...

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """Decode one window, greedily unless the rules have beams and the backend says that it has them."""
        ...

    def applied(self) -> Mapping[str, Any]:
        """Return the settings with which the engine really runs, for the record."""
        ...


def frames_to_encode(mel: Any) -> int:
    """Return how many frames of a window a trimmed encoder computes: the clip's and SILENCE_ENCODED_SECONDS.

    Args:
        mel: torch.Tensor (n_mels, 3000), padded as in whisper.transcribe, with frames that are exactly zero.

    Returns:
        An even number, because two frames make one position.
    """
    filled = int((mel != 0).any(0).sum()) + round(SILENCE_ENCODED_SECONDS * FRAMES_PER_SECOND)
    return min(mel.shape[-1], filled + filled % 2)


class GreedyBackend(OpenAiTranscription):
    """A backend made of an Engine; a subclass defines it with `devices`, `check` and `build`.

    Attributes:
        beam_devices: where the engine decodes with beams too.
    """

    beam_devices: ClassVar[Sequence[str]] = ()
    devices: ClassVar[Mapping[str, Sequence[str]]]
    imports: ClassVar[Sequence[str]] = ("torch", "whisper")

    def __init__(
        self, engine: Engine, checkpoint: Checkpoint, device: str, precision: str, settings: Settings
    ):
        model = _Model(engine, checkpoint.is_multilingual)
        super().__init__(
            model,
            lambda audio, n_mels, padding: model.ready[0] if model.ready else engine.log_mel(audio),
            checkpoint,
            device,
            precision,
            settings,
        )
        model.encode = self._clock.timed("encode", engine.encode)
        self._engine = engine

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> GreedyBackend:
        """Build the engine from the checkpoint.

        Raises:
            BackendUnavailable: the machine lacks something that is needed.
            BackendError: the weights do not fit, or a setting cannot be honoured, such as beams.
        """
        require_honourable(checkpoint, settings, detects_language=True)
        if settings.beam_size != 1 and device not in cls.beam_devices:
            raise BackendError(
                f"on {device} it only decodes greedily, so beam_size {settings.beam_size} cannot be "
                "honoured; use beam_size 1, or torch-fast, max-hybrid or faster-whisper"
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
        return {**super().applied_settings, "audio_context": "30 s", **self._engine.applied()}


class _Model:
    """The parts of a whisper.model.Whisper that whisper.transcribe.transcribe uses.

    Attributes:
        ready: log-mel and first window of the next clip, if they are computed already: see batches.py.
    """

    def __init__(self, engine: Engine, is_multilingual: bool):
        self.dims = engine.dims
        self.device = engine.device  # transcribe puts its windows there
        self.is_multilingual = is_multilingual
        self.num_languages = num_languages(engine.dims.n_vocab)
        self.decoder = SimpleNamespace(blocks=())  # DecodingTask looks here for modules to cache
        self.encode = engine.encode
        self.ready: tuple[Any, Window] | None = None
        self._engine = engine

    def detect_language(self, mel: Any) -> tuple[int, dict[str, float]]:
        """Find the language of a window (n_mels, 3000), as whisper.decoding.detect_language.

        Returns:
            The likeliest language's token, and its probability among all languages, by its code.
        """
        codes, rules = self._detection
        window = self._engine.decode(self.encode(mel), rules)
        (token,) = window.tokens
        return token, {codes[token]: math.exp(window.sum_logprob)}

    @cached_property
    def _detection(self) -> tuple[dict[int, str], WindowRules]:
        """Each language's token and code, and the rules by which one of them alone may be sampled."""
        from whisper.tokenizer import get_tokenizer

        tokenizer = get_tokenizer(True, num_languages=self.num_languages)
        codes = dict(zip(tokenizer.all_language_tokens, tokenizer.all_language_codes, strict=True))
        return codes, WindowRules(
            prompt=(tokenizer.sot,),
            sot_index=0,
            suppressed=tuple(token for token in range(self.dims.n_vocab) if token not in codes),
            suppressed_first=(),
            timestamps=False,
            max_initial_timestamp_index=None,
            eot=tokenizer.eot,
            no_timestamps=tokenizer.no_timestamps,
            timestamp_begin=tokenizer.timestamp_begin,
            no_speech=tokenizer.no_speech,
            sample_limit=1,
            n_text_ctx=self.dims.n_text_ctx,
        )

    def decode(self, mel: Any, options: Any) -> Any:
        """Decode one window (n_mels, 3000), as whisper.decoding.decode; return a DecodingResult."""
        from whisper.decoding import DecodingResult
        from whisper.utils import compression_ratio

        rules, tokenizer = window_rules(self, options)
        ready, self.ready = self.ready, None
        window = ready[1] if ready else self._engine.decode(self.encode(mel), rules)
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
        model: an object with `dims`, `is_multilingual`, `num_languages` and `decoder.blocks`.
        options: a whisper.decoding.DecodingOptions without patience or length penalty.
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
        beam_size=options.beam_size or 1,
    )
    return rules, tokenizer
