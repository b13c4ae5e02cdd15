"""Speech models of Hugging Face that are not Whisper's: CTC and sequence to sequence.

ASRGATE_TRANSFORMERS_ASR names one of the hub, as `owner/name@commit`, or a folder, as `save_pretrained` or
`hf download NAME --revision COMMIT --local-dir FOLDER` writes it. Its card says what the weights are for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from asrgate.backends import hub, own_weights
from asrgate.backends.base import (
    OF_WHISPER,
    SAMPLE_RATE_HZ,
    WINDOW_SECONDS,
    BackendError,
    BackendUnavailable,
    Checkpoint,
    ModelIdentity,
    Settings,
    Transcript,
)
from asrgate.backends.devices import require_package, require_torch
from asrgate.backends.whisper_common.torch_setup import forbid_tf32, require_cuda, uses_tf32

MODEL = "ASRGATE_TRANSFORMERS_ASR"
LANGUAGES = "ASRGATE_TRANSFORMERS_ASR_LANGUAGES"  # where the model card names none: en,de
LEAST_SAMPLES = SAMPLE_RATE_HZ // 40  # of the usual feature extractors: a shorter clip has no frame
UNKNOWN = "unknown"
WHY_CTC = "a CTC model has no decoder: each frame's likeliest token is its answer"
WHY_DECODER = "the model's own generate() decides, without Whisper's rules"


class _Source(NamedTuple):
    """Where a model is, and what it is called."""

    folder: Path
    name: str
    revision: str
    sha256: str


class TransformersAsr:
    """A model for CTC, decoded greedily, or with a decoder, through generate()."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32", "bfloat16"),
        "cuda": ("float16", "bfloat16", "float32"),
    }
    imports: ClassVar[Sequence[str]] = ("torch", "transformers")

    def __init__(self, model: Any, processor: Any, sha256: str, languages: Sequence[str], settings: Settings):
        """Wrap a loaded model.

        Args:
            sha256: of the files that it was loaded from.
            languages: that it understands.
        """
        import torch

        self._torch: Any = torch
        self._model = model
        self._processor = processor
        self._sha256 = sha256
        self._languages = languages
        self._settings = settings
        self._is_ctc = is_ctc(model.config.to_dict())

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package, the device or the model is missing. Downloads nothing."""
        require_package("transformers", "transformers")
        require_torch(device)
        named = _named()
        if isinstance(named, Path):
            _config(named)
        elif hub.is_offline():
            _config(hub.folder(named, may_download=False))

    @classmethod
    def model_identity(cls) -> ModelIdentity:
        """Return the identity of the model, as far as its card tells; one of the hub is downloaded."""
        return _identity(_source(may_download=True))

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> TransformersAsr:
        """Load the model from its files; only weights in safetensors, and none of its code is run.

        Raises:
            BackendUnavailable: torch cannot use the GPU, or the files are not on this machine.
            BackendError: a setting does not apply, or the model cannot be loaded.
        """
        source = _source(may_download=False)
        folder = source.folder
        ctc = is_ctc(_config(folder))
        own_weights.require_applicable(settings, source.name, _lacking(ctc))
        if settings.task != "transcribe":
            raise BackendError(
                f"{source.name} cannot {settings.task}; use --task transcribe, or leave it out"
            )
        if settings.threads < 1 or settings.beam_size < 1:
            raise BackendError("threads and beam_size must be at least 1")
        identity = _identity(source)
        if settings.language is not None:
            _require_language(settings.language, identity.languages)
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        torch.set_num_threads(settings.threads)
        forbid_tf32()
        if device == "cuda":
            require_cuda()
        kind = transformers.AutoModelForCTC if ctc else transformers.AutoModelForSpeechSeq2Seq
        try:
            processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, precision)
            )
            model = model.to(device).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise BackendError(f"{folder} cannot be loaded: {str(error)[:300]}") from error
        return cls(model, processor, identity.sha256, identity.languages, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings that mean something to it, and the digest of what it loaded."""
        why = WHY_CTC if self._is_ctc else WHY_DECODER
        return {
            **own_weights.applied(self._settings, why, _lacking(self._is_ctc)),
            "threads": self._torch.get_num_threads(),
            "checkpoint_sha256": self._sha256,
            "architecture": type(self._model).__name__,
            "device": str(self._model.device),
            "weights_dtype": str(self._model.dtype).removeprefix("torch."),
            "tf32": uses_tf32(),
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language, or a decoder and the clip lasts over 30 s.
        """
        _require_language(language, self._languages)
        if len(audio) < LEAST_SAMPLES:
            return Transcript("")
        if not self._is_ctc and len(audio) > WINDOW_SECONDS * SAMPLE_RATE_HZ:
            raise BackendError(
                f"a model with a decoder is given at most {WINDOW_SECONDS} s here, and the clip lasts "
                f"{len(audio) / SAMPLE_RATE_HZ:.1f} s; leave such clips out, or choose a CTC model"
            )
        torch, model = self._torch, self._model
        found = self._processor(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in found.items()
        }
        with torch.inference_mode():
            if self._is_ctc:
                ids = model(**inputs).logits.argmax(-1)
            else:
                beams = self._settings.beam_size
                ids = model.generate(**inputs, num_beams=beams, do_sample=False)
        (text,) = self._processor.batch_decode(ids, skip_special_tokens=True)
        tokens = None if self._is_ctc else ids[0].tolist()
        return Transcript(text.strip(), tokens)

    def synchronize(self) -> None:
        """Wait for the GPU, if there is one."""
        if self._model.device.type == "cuda":
            self._torch.cuda.synchronize()


def is_ctc(config: Mapping[str, Any]) -> bool:
    """Whether a model's configuration is that of a CTC model."""
    return any(name.endswith("ForCTC") for name in config.get("architectures") or ())


def _lacking(ctc: bool) -> list[str]:
    return [name for name in OF_WHISPER if ctc or name != "beam_size"]


def _require_language(language: str, known: Sequence[str]) -> None:
    if language not in known:
        raise BackendError(f"the model understands {', '.join(known)} and cannot decode {language!r}")


def _named() -> Path | hub.HubModel:
    """Return the folder, or the model of the hub, that the environment names.

    Raises:
        BackendUnavailable: none is named, or one of the hub without its commit.
    """
    named = os.environ.get(MODEL, "").strip()
    if not named:
        raise BackendUnavailable(
            "no model is named", f"set {MODEL} to the folder of a speech model, or to owner/name@commit"
        )
    folder = Path(named).expanduser().resolve()
    found = None if folder.exists() else hub.parse(named, MODEL)
    return folder if found is None else found


def _source(may_download: bool) -> _Source:
    """Return the model that the environment names.

    Raises:
        BackendUnavailable: none is named, it is not on this machine, or it is no model for speech.
    """
    named = _named()
    if isinstance(named, Path):
        _config(named)
        sha256 = own_weights.files_sha256(named, _files(named))
        return _Source(named, named.name, _revision(named), sha256)
    folder = hub.folder(named, may_download)
    _config(folder)
    sha256 = own_weights.files_sha256(folder, hub.files(folder))
    return _Source(folder, named.name, named.commit, sha256)


def _identity(source: _Source) -> ModelIdentity:
    card = _card(source.folder)
    languages = os.environ.get(LANGUAGES, "").replace(",", " ").split() or card["language"]
    if not languages:
        raise BackendUnavailable(
            f"the model card of {source.name} names no language", f"set {LANGUAGES}, for example to en,de"
        )
    return ModelIdentity(
        name=source.name,
        revision=source.revision,
        sha256=source.sha256,
        languages=tuple(languages),
        licence=next(iter(card["license"]), UNKNOWN),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendUnavailable(
            f"{folder} has no readable config.json",
            f"set {MODEL} to the folder of a speech model, or to owner/name@commit",
        ) from error
    return found if isinstance(found, dict) else {}


def _card(folder: Path) -> dict[str, list[str]]:
    """Return the languages and licences that the head of the model card names."""
    found: dict[str, list[str]] = {"language": [], "license": []}
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return found
    head = re.match(r"---\n(.*?)\n---", text, re.S)
    name = ""
    for line in head[1].splitlines() if head else ():
        key, colon, value = line.partition(":")
        if colon and not line.startswith(("-", " ")):
            name, values = key.strip(), value.strip()
            found.setdefault(name, [])
            found[name] += [v.strip(" '\"") for v in values.strip("[]").split(",") if v.strip()]
        elif line.strip().startswith("- ") and name:
            found[name].append(line.strip()[2:].strip(" '\""))
    return found


def _revision(folder: Path) -> str:
    """Return the commit that `hf download` notes beside the files."""
    note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    try:
        return note.read_text(encoding="utf-8").splitlines()[0][:40]
    except (OSError, UnicodeDecodeError, IndexError):
        return UNKNOWN


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path
