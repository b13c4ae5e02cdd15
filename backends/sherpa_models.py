"""Which model a folder of sherpa-onnx holds, told from the names of its files and what they say in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from asrgate.backends.base import BackendUnavailable

FOLDER = "ASRGATE_SHERPA_ONNX"
INT8, FLOAT = "int8", "float32"
KINDS = (
    "a transducer (Zipformer, NeMo's Parakeet-TDT) that streams or not, a CTC model of Zipformer, NeMo or "
    "WeNet, SenseVoice, Moonshine, or Whisper"
)
ENDINGS = (".onnx", ".ort")
TOKENS = "tokens"
ROLES = {  # of a file -> its name, without ending and precision
    "preprocessor": r"preprocess",
    "uncached_decoder": r"uncached_decode",
    "cached_decoder": r"cached_decode",
    "encoder": r"(.*[-_.])?encode(r([-_.].*)?)?",
    "decoder": r"(.*[-_.])?decoder([-_.].*)?",
    "joiner": r"(.*[-_.])?joiner([-_.].*)?",
    "model": r".*",
}
OF_ONE_FILE = {  # what it says that it is, and whether it streams -> kind
    ("zipformer2", True): "Zipformer CTC",
    ("zipformer2_ctc", False): "Zipformer CTC",
    ("wenet_ctc", False): "WeNet CTC",
    ("sense_voice_ctc", False): "SenseVoice",
}
_PRECISION = re.compile(r"[-_.](int8|fp16)(?=[-_.]|$)")

# In ONNX's ModelProto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_METADATA_FIELD, _KEY_FIELD, _VALUE_FIELD = 14, 1, 2
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5
_LARGEST_ENTRY_BYTES = 1 << 22


@dataclass(frozen=True)
class SherpaModel:
    """The model in a folder.

    Attributes:
        kind: one that `sherpa_onnx` knows how to load, "SenseVoice" for instance.
        is_online: whether it hears audio while it is spoken.
        metadata: what its first file says of itself.
    """

    folder: Path
    kind: str
    is_online: bool
    metadata: Mapping[str, str]

    def files(self, precision: str) -> dict[str, Path]:
        """Return role -> file at a precision; in int8 those that have no such file are float32.

        Raises:
            BackendUnavailable: the folder lacks the precision, or two files have the same role.
        """
        found: dict[str, Path] = {}
        is_as_asked = False
        for role, by_precision in _by_role(self.folder).items():
            paths = by_precision.get(precision)
            is_as_asked = is_as_asked or bool(paths)
            if precision == INT8:
                paths = paths or by_precision.get(FLOAT)
            if paths and len(paths) > 1:
                names = ", ".join(sorted(path.name for path in paths))
                raise BackendUnavailable(
                    f"{self.folder} has more than one {role} in {precision}: {names}",
                    "keep one of them there",
                )
            if paths:
                found[role] = paths[0]
        missing = [role for role in _by_role(self.folder) if role not in found]
        if missing or not is_as_asked:
            has = " and ".join(sorted({p for roles in _by_role(self.folder).values() for p in roles}))
            raise BackendUnavailable(
                f"{self.folder} has no {precision} files, but {has}", "choose another precision"
            )
        return {**found, TOKENS: tokens_of(self.folder)}


def named() -> SherpaModel:
    """Return the model that the environment names.

    Raises:
        BackendUnavailable: none is named, or the folder has no model of a kind that is known here.
    """
    text = os.environ.get(FOLDER, "").strip()
    if not text:
        raise BackendUnavailable("no model is named", f"set {FOLDER} to the folder of a model of sherpa-onnx")
    folder = Path(text).expanduser().resolve()
    if not folder.is_dir():
        raise BackendUnavailable(
            f"{folder} is no folder", f"set {FOLDER} to the folder of a model of sherpa-onnx"
        )
    tokens_of(folder)
    roles = _by_role(folder)
    first = next((role for role in ("encoder", "model") if role in roles), None)
    metadata = {} if first is None else metadata_of(next(iter(sorted(_any(roles[first])))))
    kind, is_online = _kind(set(roles), metadata)
    if kind is None:
        said = metadata.get("model_type")
        what = f"says that it is {said[:50]!r}" if said else "does not say what it is"
        raise BackendUnavailable(
            f"{folder} has {', '.join(roles) or 'no ONNX files'}, which {what}",
            f"set {FOLDER} to a folder with {KINDS}",
        )
    return SherpaModel(folder, kind, is_online, metadata)


def tokens_of(folder: Path) -> Path:
    """Return the file of a model's tokens.

    Raises:
        BackendUnavailable: there is none, or there are several.
    """
    found = sorted(folder.glob("*tokens.txt"))
    if len(found) != 1:
        what = "no tokens.txt" if not found else f"{len(found)} files of tokens"
        raise BackendUnavailable(
            f"{folder} has {what}", f"set {FOLDER} to the folder of a model of sherpa-onnx"
        )
    return found[0]


def metadata_of(path: Path) -> dict[str, str]:
    """Return what an ONNX file says of itself, without reading its weights.

    Raises:
        BackendUnavailable: it cannot be read, or is no ONNX file.
    """
    if path.suffix != ".onnx":
        return {}  # ONNX Runtime's own format
    try:
        with path.open("rb") as file:
            return dict(_entries(file, path.stat().st_size))
    except OSError as error:
        raise BackendUnavailable(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise BackendUnavailable(f"{path} is no ONNX file", "fetch the model again") from error


def _kind(roles: set[str], metadata: Mapping[str, str]) -> tuple[str | None, bool]:
    """Return which kind of model files are, and whether it streams."""
    said = metadata.get("model_type", "")
    is_online = "decode_chunk_len" in metadata or {"window_size", "chunk_shift"} <= set(metadata)
    is_nemo = said.startswith("EncDec")
    kind: str | None = None
    if {"preprocessor", "encoder", "uncached_decoder", "cached_decoder"} <= roles:
        kind = "Moonshine"
    elif {"encoder", "decoder", "joiner"} <= roles:
        kind = "NeMo transducer" if is_nemo and not is_online else "transducer"
    elif {"encoder", "decoder"} <= roles:
        kind = "Whisper" if said.startswith("whisper") else "Moonshine 2" if not said else None
    elif roles == {"model"}:
        kind = "NeMo CTC" if is_nemo else OF_ONE_FILE.get((said, is_online))
    return kind, is_online


def _by_role(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return role -> precision -> files, in the order of ROLES."""
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in ENDINGS and not path.name.startswith("."):
            name = path.stem.lower()
            precision = _PRECISION.search(name)
            name = _PRECISION.sub("", name)
            role = next(role for role, pattern in ROLES.items() if re.fullmatch(pattern, name))
            found.setdefault(role, {}).setdefault(precision[1] if precision else FLOAT, []).append(path)
    if {"encoder", "decoder"} <= set(found):
        found.pop("model", None)  # some folders have a detector of voices beside the model
    return {role: found[role] for role in ROLES if role in found}


def _any(by_precision: Mapping[str, list[Path]]) -> list[Path]:
    return [path for paths in by_precision.values() for path in paths]


def _entries(file: BinaryIO, size: int) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a ModelProto's `metadata_props`; all else is passed over."""
    while file.tell() < size:
        tag = _varint(file)
        field, wire = tag >> 3, tag & 7
        if wire == _COUNTED:
            count = _varint(file)
            end = file.tell() + count
            if end > size:
                raise ValueError("cut off")
            if field == _METADATA_FIELD and count <= _LARGEST_ENTRY_BYTES:
                pair = {_KEY_FIELD: "", _VALUE_FIELD: ""}
                while file.tell() < end:
                    inner = _varint(file) >> 3
                    pair[inner] = file.read(_varint(file)).decode("utf-8", "replace")
                yield pair[_KEY_FIELD], pair[_VALUE_FIELD]
            file.seek(end)
        elif wire == _VARINT:
            _varint(file)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            file.seek(8 if wire == _EIGHT_BYTES else 4, os.SEEK_CUR)
        else:
            raise ValueError("no protocol buffer")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise ValueError("no protocol buffer")
