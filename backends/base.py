"""The interface between the harness and an engine: what a backend is given and what it must return."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

SAMPLE_RATE_HZ = 16_000
MULTILINGUAL_VOCAB = 51_865  # tokens; multilingual vocabularies have at least this many
WINDOW_SECONDS = 30  # Whisper's audio context; longer clips take the engine's sequential long-form path
LOAD_LOG = "asrgate.load"  # the logger's name: lines for the user while a backend loads, at INFO
AUTO = "auto"  # the language of a call whose engine has to detect it
BEYOND_END_SECONDS = 1.0  # that a word's times may be after the audio: engines round up, and pad
REMOTE = "remote"  # the device of an engine on a server: its weights, memory and energy cannot be seen


class AsrgateError(Exception):
    """A problem that the user can act on. `main` prints its message without a traceback and exits with 2."""


AsrbenchError = AsrgateError  # its name in version 0.1


class BackendError(AsrgateError):
    """An engine cannot do what was requested. The message says what, why and what to do."""


class BackendUnavailable(BackendError):
    """This machine cannot run the backend: a package, a device or a precision is missing.

    `remedy` is the command or action that fixes it, or None if nothing can.
    """

    def __init__(self, reason: str, remedy: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def how_to_fix(remedy: str | None) -> str:
    """Return ` (to fix this: …)` to append to a message, or "" if nothing can fix it."""
    return f" (to fix this: {remedy})" if remedy else ""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'X'?` with the choice closest to a mistyped name, or "" if none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Settings:
    """The decoding that every backend must honour exactly, or refuse by raising BackendError.

    Clips of up to 30 s are decoded in one window without timestamps. Longer clips use sequential long-form
    decoding with timestamps (Radford et al. 2022, section 3.8): one window after the other, each starting
    where the last complete segment ended.
    """

    task: str = "transcribe"  # or "translate" (to English; multilingual checkpoints only)
    language: str | None = None  # None: each clip's own language, or English if it names none; or AUTO
    beam_size: int = 1  # 1 is greedy
    threads: int = 1  # CPU threads of the engine, over all its pools
    temperature: float = 0.0  # a single temperature without fallback, so every engine does the same work
    condition_on_previous_text: bool = False  # long-form: whether a window's text is the next one's prompt
    no_speech_threshold: float = 0.6  # a window above it, and below logprob_threshold, is skipped as silent
    logprob_threshold: float = -1.0  # average log-probability per token
    suppress_blank: bool = True
    suppress_tokens: str = "-1"  # "-1": Whisper's own list of non-speech symbols

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON-ready dict."""
        return asdict(self)


# Settings that a backend may be unable to apply: it then states None for them in `applied_settings`, and the
# reason in `not_applied`, a mapping there. Without them an engine does more of the same work, not less.
MAY_BE_LACKING = ("no_speech_threshold",)


# Settings that mean something to Whisper's decoder alone. An engine with a model of its own states None for
# those that mean nothing to it, with the reason in `not_applied`, and refuses any value but the default.
OF_WHISPER = (
    *("beam_size", "temperature", "condition_on_previous_text", "no_speech_threshold", "logprob_threshold"),
    *("suppress_blank", "suppress_tokens"),
)


@dataclass(frozen=True)
class ModelIdentity:
    """The weights that an engine brings along, in place of a checkpoint.

    Attributes:
        name: of the model, as rows show it; not that of the engine.
        revision: of the model, as whoever publishes it counts.
        sha256: of its files, see `backends.own_weights.files_sha256`.
        languages: ISO 639-1 codes of the languages that it understands; none: nobody says which.
        licence: of the weights, an SPDX identifier where there is one.
        server: the address of the server that runs it and alone knows its files; "" for a model on this
            machine. `sha256` is then of the address and the name.
    """

    name: str
    revision: str
    sha256: str
    languages: tuple[str, ...]
    licence: str
    server: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights in OpenAI's format: a torch file with `dims` and `model_state_dict`.

    `tensors_sha256` and `dimensions` identify it. `sha256` is that of the file, which may hold the same
    tensors in a different order or type. Of a model that an engine brings along there is no such file:
    `path` and `dimensions` are empty, and `sha256` is the model's.
    """

    name: str
    path: Path
    sha256: str
    dimensions: Mapping[str, int]  # the fields of whisper.model.ModelDimensions
    note: str = ""  # what a reader of results must know, e.g. that it understands only synthetic English
    tensors_sha256: str | None = None  # see checkpoints.tensor_digest; None if not computed

    @property
    def is_of_engine(self) -> bool:
        """Whether the engine brings the model along."""
        return not self.dimensions

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary is multilingual."""
        return self.dimensions["n_vocab"] >= MULTILINGUAL_VOCAB


class Word(NamedTuple):
    """A word of a Transcript, as it stands there, and when it is said: seconds from the first sample."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """The finished answer to one clip: plain values only, nothing left to compute.

    Attributes:
        text: the whole text.
        tokens: ids of the decoded tokens, including timestamps but not special start and end tokens; None
            if the engine does not report them.
        stage_seconds: seconds by stage, if the engine reports them; the names in use are "log_mel", "encode"
            and "decode".
        language: Whisper's code of the language that the engine detected; None if it was told one.
        words: the text's words in order, with their times; only `transcribe_words` is asked for them.
    """

    text: str
    tokens: Sequence[int] | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    language: str | None = None
    words: Sequence[Word] | None = None


@runtime_checkable
class Backend(Protocol):
    """One engine on one device at one precision, loaded. See `backends/__init__.py` for adding one."""

    devices: ClassVar[Mapping[str, Sequence[str]]]
    """Device name ("cpu", "cuda", REMOTE) -> precisions offered on it, the default first."""

    imports: ClassVar[Sequence[str]]
    """Modules of the engine, which the worker imports (and times) before `load`."""

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if this machine cannot run the variant; must not load weights."""
        ...

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Backend:
        """Load the checkpoint and return a backend ready to transcribe.

        Raises:
            BackendUnavailable: the machine lacks something that is needed.
            BackendError: the checkpoint or a setting cannot be honoured.
        """
        ...

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """Every field of Settings as the engine really runs it, and anything else worth recording."""
        ...

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip and return only when the final text exists.

        Args:
            audio: float32, shape (samples,), mono, 16 kHz, in [-1, 1]. Must not be modified.
            language: ISO 639-1 code of the language to decode in. AUTO, only if the engine was loaded with it
                in its settings: to be detected, and named in the Transcript.
        """
        ...

    def synchronize(self) -> None:
        """Block until the device is idle. The harness calls it inside the clock, before and after a call."""
        ...


@runtime_checkable
class BringsModel(Backend, Protocol):
    """A Backend with a model of its own, whose rows are of that model and of no checkpoint.

    The method is optional. `load` is then given a Checkpoint without a file, and `applied_settings` must
    state as `checkpoint_sha256` the digest of the files that were loaded. Settings of OF_WHISPER that mean
    nothing to it do not apply.
    """

    @classmethod
    def model_identity(cls) -> ModelIdentity | None:
        """Return what it brings along, or None where it runs the checkpoint; must not import the engine.

        Raises:
            BackendUnavailable: the model is not on this machine.
        """
        ...


@runtime_checkable
class TranscribesBatches(Backend, Protocol):
    """A Backend that can also decode several clips in one call, which `--scenario offline` measures.

    The method is optional. A backend without it is measured clip after clip, at batch size 1 only.
    """

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> Sequence[Transcript]:
        """Transcribe clips together and return only when every final text exists.

        Args:
            audios: one or more clips as `transcribe` takes them, of at most 30 s each. Must not be modified.
            language: the language of all of them.

        Returns:
            A list or tuple with one Transcript per clip, in order. Each has the text that `transcribe`
            returns for the clip, up to rounding, whatever else is in the batch.
        """
        ...


@runtime_checkable
class Streams(Backend, Protocol):
    """A Backend that can also take a clip while it is spoken, which `--scenario streaming` measures.

    The method is optional. For a backend without it, streaming is emulated, and its rows say so.
    """

    def stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        """Transcribe a clip while it is being spoken, and end when its final text exists.

        Args:
            chunks: its samples in order, float32, shape (samples,), mono, 16 kHz. Asking for the next chunk
                blocks until it has been spoken. Chunks must not be modified, and all must be taken.
            language: as `transcribe` takes it.

        Yields:
            A Transcript of the whole text so far, whenever there is something new to show; each replaces the
            previous one. The last one is the answer for the clip.
        """
        ...


@runtime_checkable
class TimesWords(Backend, Protocol):
    """A Backend that can also say when each word is said, which `--word-timestamps` asks for and scores.

    The method is optional. It is called after the last round, and no figure of speed contains it, so
    `transcribe` must not do its work. A backend without it is shown as one that gives no word times.
    """

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip and return its `words` too; arguments and text as `transcribe` has them.

        Each word starts at 0 or later, ends no earlier than it starts, and ends within the audio. The harness
        allows BEYOND_END_SECONDS after it and refuses anything else.
        """
        ...
