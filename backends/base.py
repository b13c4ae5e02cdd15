"""The seam between the harness and an engine: what a backend is given and what it must give back."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

SAMPLE_RATE_HZ = 16_000
MULTILINGUAL_VOCAB = 51_865  # tokens; the multilingual vocabularies have so many or more
WINDOW_SECONDS = 30  # Whisper's audio context; longer clips take the engine's sequential long-form path
LOAD_LOG = "asrgate.load"  # logging.getLogger of it: lines for the user while a backend loads, at INFO
REMOTE = "remote"  # the device of an engine behind an address: its weights, memory and energy cannot be seen


class AsrgateError(Exception):
    """A problem the user can act on. `main` prints its message, without a traceback, and exits with 2."""


AsrbenchError = AsrgateError  # its name in version 0.1


class BackendError(AsrgateError):
    """An engine cannot do what it was asked to. The message says what, why and what to do."""


class BackendUnavailable(BackendError):
    """This machine cannot run the backend: a package, a device or a precision is missing.

    `remedy` is the command or action that mends it, or None when nothing can.
    """

    def __init__(self, reason: str, remedy: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'X'?` with the choice nearest to a mistyped name; empty where none is near."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Settings:
    """The decoding every backend must honour exactly, or refuse by raising BackendError.

    Windows of clips up to 30 s are decoded once and without timestamps; longer clips go through
    sequential long-form decoding with timestamps (Radford et al. 2022, section 3.8), one window after
    the other, from where the last complete segment ended.
    """

    task: str = "transcribe"  # or "translate" (to English; multilingual checkpoints only)
    language: str | None = None  # None: each clip's own language, English where the clip names none
    beam_size: int = 1  # 1 is greedy
    threads: int = 1  # CPU threads of the engine, all its pools together
    temperature: float = 0.0  # a single temperature: no fallback ladder, so equal work for every engine
    condition_on_previous_text: bool = False  # long-form: is the last window's text the next one's prompt?
    no_speech_threshold: float = 0.6  # a window above it, and below logprob_threshold, is skipped as silent
    logprob_threshold: float = -1.0  # average log-probability per token
    suppress_blank: bool = True
    suppress_tokens: str = "-1"  # "-1": Whisper's own list of non-speech symbols

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights in OpenAI's format: a torch file with `dims` and `model_state_dict`.

    Its identity is `tensors_sha256` and `dimensions`; `sha256` is of the file, which may hold the same
    tensors in another order or type.
    """

    name: str
    path: Path
    sha256: str
    dimensions: Mapping[str, int]  # the fields of whisper.model.ModelDimensions
    note: str = ""  # what a reader of results must know, e.g. that it understands synthetic English only
    tensors_sha256: str | None = None  # see checkpoints.tensor_digest; None: nobody has computed it

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary is a multilingual one."""
        return self.dimensions["n_vocab"] >= MULTILINGUAL_VOCAB


@dataclass(frozen=True)
class Transcript:
    """The finished answer to one clip: plain values only, nothing left to compute.

    Attributes:
        text: the whole text.
        tokens: ids of the tokens decoded for it, timestamps included, special start and end tokens not;
            None when the engine does not tell.
        stage_seconds: seconds by stage where the engine can tell; the names in use are
            "log_mel", "encode" and "decode".
    """

    text: str
    tokens: Sequence[int] | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Backend(Protocol):
    """One engine on one device at one precision, loaded. See `backends/__init__.py` for adding one."""

    devices: ClassVar[Mapping[str, Sequence[str]]]
    """Device name ("cpu", "cuda", REMOTE) -> precisions it offers there, the default one first."""

    imports: ClassVar[Sequence[str]]
    """Modules of the engine, imported (and timed) by the worker before `load`."""

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if this machine cannot run the variant; must not load weights."""
        ...

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Backend:
        """Load the checkpoint and return a backend ready to transcribe.

        Raises:
            BackendUnavailable: the machine lacks something.
            BackendError: the checkpoint or a setting cannot be honoured.
        """
        ...

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """Every field of Settings as the engine really runs it, plus anything else worth recording."""
        ...

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip and return only when the final text exists.

        Args:
            audio: float32, shape (samples,), mono, 16 kHz, in [-1, 1]. Must not be modified.
            language: ISO 639-1 code to decode in.
        """
        ...

    def synchronize(self) -> None:
        """Block until the device is idle. Called by the harness inside the clock, at both ends."""
        ...


@runtime_checkable
class TranscribesBatches(Backend, Protocol):
    """A Backend that also decodes several clips in one call: what `--scenario offline` measures in batches.

    The method is optional. Without it a backend is measured clip after clip, at batch size 1 only.
    """

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> Sequence[Transcript]:
        """Transcribe clips together and return only when every final text exists.

        Args:
            audios: one or more as `transcribe` takes them, of at most 30 s each. Must not be modified.
            language: of all of them.

        Returns:
            A list or tuple of one Transcript a clip, in their order: each with the text that `transcribe`
            gives for the clip, whatever it shares the batch with, up to rounding.
        """
        ...


@runtime_checkable
class Streams(Backend, Protocol):
    """A Backend that also hears a clip while it is spoken: what `--scenario streaming` measures.

    The method is optional. For a backend without it streaming is emulated, and its rows say so.
    """

    def stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        """Transcribe a clip that is still going on, and end when its final text exists.

        Args:
            chunks: its samples in order, float32, shape (samples,), mono, 16 kHz. Asking for the next chunk
                blocks until it has been spoken. Must not be modified; all must be taken.
            language: as `transcribe` takes it.

        Yields:
            A Transcript of the whole text so far, as often as there is something new to show; each takes the
            place of the one before. The last one is the answer to the clip.
        """
        ...
