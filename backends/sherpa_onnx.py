"""Models of sherpa-onnx from a folder: transducers, CTC, SenseVoice, Moonshine, Whisper; some of them stream.

ASRGATE_SHERPA_ONNX names the folder, as https://github.com/k2-fsa/sherpa-onnx/releases has them in archives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from asrgate.backends import own_weights, sherpa_models
from asrgate.backends.base import (
    SAMPLE_RATE_HZ,
    WINDOW_SECONDS,
    BackendError,
    BackendUnavailable,
    Checkpoint,
    ModelIdentity,
    Settings,
    Transcript,
)
from asrgate.backends.devices import require_package
from asrgate.backends.sherpa_models import FLOAT, INT8, SherpaModel

LANGUAGES = "ASRGATE_SHERPA_ONNX_LANGUAGES"  # nothing in the files says which: en,de
LEAST_SAMPLES = SAMPLE_RATE_HZ // 10  # no word is shorter, and a few frames are too few for most models
TAIL_SECONDS = 0.66  # of silence after a stream: what it heard last is written once something follows
OF_ONE_WINDOW = ("Moonshine", "Moonshine 2", "Whisper")  # they are given no longer clip
UNKNOWN = "unknown"
WHY = "it searches greedily by rules of its own, without Whisper's decoder"


class _OfOnlineModels:
    """`stream`, which is there only if the model hears audio while it is spoken: else it is emulated."""

    def __get__(self, engine: SherpaOnnx | None, owner: type[SherpaOnnx]) -> Any:
        try:
            model = sherpa_models.named() if engine is None else engine.model
        except BackendUnavailable as error:
            raise AttributeError("stream") from error
        if not model.is_online:
            raise AttributeError("stream")
        return owner._stream if engine is None else engine._stream


class SherpaOnnx:
    """A recognizer of sherpa-onnx, decoding greedily."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {"cpu": (FLOAT, INT8)}
    imports: ClassVar[Sequence[str]] = ("sherpa_onnx",)
    stream = _OfOnlineModels()

    def __init__(
        self, recognizer: Any, model: SherpaModel, precision: str, identity: ModelIdentity, settings: Settings
    ):
        """Wrap a loaded recognizer of a model."""
        self._recognizer = recognizer
        self.model = model
        self._precision = precision
        self._identity = identity
        self._settings = settings

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if the package, the model or its precision is missing."""
        require_package("sherpa_onnx", "sherpa-onnx")
        model = sherpa_models.named()
        model.files(precision)
        _languages(model)

    @classmethod
    def model_identity(cls) -> ModelIdentity:
        """Return the identity of the model in the folder, whose languages the user states."""
        return _identity(sherpa_models.named())

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> SherpaOnnx:
        """Load the model of the folder.

        Raises:
            BackendUnavailable: there is no model.
            BackendError: a setting does not apply, or sherpa-onnx refuses the model.
        """
        model = sherpa_models.named()
        identity = _identity(model)
        own_weights.require_applicable(settings, identity.name)
        if settings.task != "transcribe":
            raise BackendError(
                f"{identity.name} cannot {settings.task}; use --task transcribe, or leave it out"
            )
        if settings.threads < 1:
            raise BackendError(f"threads must be at least 1, not {settings.threads}")
        if settings.language is not None:
            _require_language(settings.language, identity.languages)
        import sherpa_onnx

        files = {role: str(path) for role, path in model.files(precision).items()}
        try:
            make = _maker(sherpa_onnx, model)
            recognizer = make(**files, num_threads=settings.threads, provider="cpu")
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise BackendError(f"sherpa-onnx cannot load {model.folder}: {str(error)[:300]}") from error
        return cls(recognizer, model, precision, identity, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings that mean something to it, and the digest of what it loaded."""
        return {
            **own_weights.applied(self._settings, WHY),
            "checkpoint_sha256": self._identity.sha256,
            "kind": self.model.kind,
            "is_online": self.model.is_online,
            "device": "cpu",
            "precision": self._precision,
            "files": {role: path.name for role, path in self.model.files(self._precision).items()},
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language, or takes one window, and the clip is longer.
        """
        _require_language(language, self._identity.languages)
        if len(audio) < LEAST_SAMPLES:
            return Transcript("")
        if self.model.kind in OF_ONE_WINDOW and len(audio) > WINDOW_SECONDS * SAMPLE_RATE_HZ:
            raise BackendError(
                f"a model of {self.model.kind} is given at most {WINDOW_SECONDS} s here, and the clip lasts "
                f"{len(audio) / SAMPLE_RATE_HZ:.1f} s; leave such clips out, or choose another model"
            )
        if self.model.is_online:
            *_, last = self._stream(iter([audio]), language)
            return last
        stream = self._recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE_HZ, audio)
        self._recognizer.decode_stream(stream)
        return Transcript(stream.result.text.strip())

    def synchronize(self) -> None:
        """Do nothing: there is no device to wait for."""

    def _stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        """Transcribe a clip while it is spoken; see asrgate.backends.base.Streams."""
        _require_language(language, self._identity.languages)
        recognizer = self._recognizer
        stream = recognizer.create_stream()
        shown = ""
        for chunk in chunks:
            stream.accept_waveform(SAMPLE_RATE_HZ, chunk)
            while recognizer.is_ready(stream):
                recognizer.decode_stream(stream)
            if (text := recognizer.get_result(stream)) != shown:
                shown = text
                yield Transcript(text)
        stream.accept_waveform(SAMPLE_RATE_HZ, np.zeros(int(TAIL_SECONDS * SAMPLE_RATE_HZ), np.float32))
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        yield Transcript(recognizer.get_result(stream))


def _maker(module: Any, model: SherpaModel) -> Callable[..., Any]:
    """Return the function of sherpa-onnx that loads a model, which takes its files by role."""
    online, offline = module.OnlineRecognizer, module.OfflineRecognizer
    known: dict[tuple[str, bool], Callable[..., Any]] = {
        ("transducer", True): online.from_transducer,
        ("Zipformer CTC", True): online.from_zipformer2_ctc,
        ("NeMo CTC", True): online.from_nemo_ctc,
        ("transducer", False): offline.from_transducer,
        ("NeMo transducer", False): lambda **given: offline.from_transducer(
            **given, model_type="nemo_transducer"
        ),
        ("Zipformer CTC", False): offline.from_zipformer_ctc,
        ("NeMo CTC", False): offline.from_nemo_ctc,
        ("WeNet CTC", False): offline.from_wenet_ctc,
        ("SenseVoice", False): offline.from_sense_voice,
        ("Moonshine", False): offline.from_moonshine,
        ("Moonshine 2", False): offline.from_moonshine_v2,
        ("Whisper", False): lambda **given: offline.from_whisper(**given, language=""),
    }
    return known[model.kind, model.is_online]


def _identity(model: SherpaModel) -> ModelIdentity:
    return ModelIdentity(
        name=model.folder.name,
        revision=model.metadata.get("version", "").strip() or UNKNOWN,
        sha256=own_weights.files_sha256(model.folder, _files(model.folder)),
        languages=_languages(model),
        licence=UNKNOWN,
    )


def _languages(model: SherpaModel) -> tuple[str, ...]:
    languages = os.environ.get(LANGUAGES, "").replace(",", " ").split()
    if not languages:
        raise BackendUnavailable(
            f"no file in {model.folder} says which languages the model understands",
            f"set {LANGUAGES}, for example to en,de",
        )
    return tuple(languages)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a model; in folders beside them are recordings to try it with."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            yield path


def _require_language(language: str, known: Sequence[str]) -> None:
    if language not in known:
        raise BackendError(f"the model understands {', '.join(known)} and cannot decode {language!r}")
