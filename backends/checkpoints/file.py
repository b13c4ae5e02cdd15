"""Reads a checkpoint file in OpenAI's format, its dimensions and tensors, without running its pickle."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import reprlib
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asrgate.backends.base import AsrgateError, Checkpoint
from asrgate.backends.checkpoints.sha256 import file_sha256

if TYPE_CHECKING:
    import torch

PICKLE_LIMIT_BYTES = 4 << 20  # large-v3's is 0.2 MB; a larger file is not a checkpoint
DIRECTORY_LIMIT_BYTES = 4 << 20  # of the zip file; large-v3's is 0.1 MB, and each entry takes ten times that
BYTE_ORDER_LIMIT_BYTES = 16  # it is little or big
AXES_LIMIT, NUMBER_LIMIT = 8, 1 << 48  # of a tensor: its shape, its strides and its place

DIMENSIONS = (  # the fields of whisper.model.ModelDimensions
    "n_mels",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_vocab",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
)
KNOWN = {  # what every Whisper engine assumes: the mel filters, 30 s at 20 ms, the two vocabularies
    "n_mels": (80, 128),
    "n_audio_ctx": (1500,),
    "n_vocab": (51_864, 51_865, 51_866),
}
LAYERS_OR_HEADS_LIMIT = (
    256  # large-v3 has 32 and 20; the limit keeps a header from demanding a million layers
)
STORAGES: dict[str, np.dtype[Any]] = {  # torch's storage class -> numpy's type for its bytes
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # numpy has no bfloat16; it is widened to float32, which is exact
}


class CheckpointError(AsrgateError):
    """A checkpoint cannot be found, read or trusted; the message says which, why and what to do."""


class Storage(NamedTuple):
    """Where a tensor's numbers are stored: an inert substitute for torch's storage."""

    kind: str  # a key of STORAGES
    key: str  # the zip member is <archive>/data/<key>
    length: int


class Tensor(NamedTuple):
    """A tensor as the file describes it: an inert substitute for torch's tensor."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_dimensions(path: Path) -> dict[str, int]:
    """Check every tensor's name, type, shape and place in the file, and return the model's dimensions.

    Raises:
        CheckpointError: not a checkpoint, truncated, incomplete, or a pickle that would run code.
    """
    check_is_file(path)
    with opened(path) as archive:
        dimensions, tensors = described(path, archive)
        _check_tensors(path, archive, dimensions, tensors)
    return dimensions


def read_tensors(path: Path, *, by_name: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor's name and values, without torch; bfloat16 is returned as float32.

    Args:
        path: the .pt file.
        by_name: whether to use the order of the names instead of the file's.

    Raises:
        CheckpointError: as in `read_dimensions`.
    """
    read_dimensions(path)
    with opened(path) as archive:
        _, tensors = described(path, archive)
        for name, tensor in sorted(tensors.items()) if by_name else tensors.items():
            dtype = STORAGES[tensor.storage.kind]
            try:
                numbers = np.frombuffer(archive.read(member_of(archive, f"data/{tensor.storage.key}")), dtype)
            except (OSError, zipfile.BadZipFile, ValueError) as error:
                raise CheckpointError(f"{path} is damaged: {error}; delete it and fetch it again") from error
            values = np.lib.stride_tricks.as_strided(
                numbers[tensor.offset :], tensor.shape, [stride * dtype.itemsize for stride in tensor.strides]
            )
            if tensor.storage.kind == "BFloat16Storage":
                values = (values.astype("<u4") << 16).view("<f4")
            yield name, np.array(values)


def load_state_dict(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Load the tensors with torch, for a worker process. Nothing in the pickle is run.

    Raises:
        CheckpointError: the file changed since it was resolved, or cannot be loaded.
    """
    import torch

    if file_sha256(checkpoint.path) != checkpoint.sha256:
        raise CheckpointError(f"{checkpoint.path} changed after it was checked; start the run again")
    try:
        content = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
        tensors = dict(content["model_state_dict"])
        tensors.pop("alignment_heads", None)
        return tensors
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"torch cannot load {checkpoint.path} as plain tensors: {str(error).splitlines()[0][:200]}"
        ) from error


def expected_tensors(dimensions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor that a Whisper with these dimensions has."""
    d = dimensions
    audio, text = d["n_audio_state"], d["n_text_state"]
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (audio, d["n_mels"], 3),
        "encoder.conv1.bias": (audio,),
        "encoder.conv2.weight": (audio, audio, 3),
        "encoder.conv2.bias": (audio,),
        "encoder.positional_embedding": (d["n_audio_ctx"], audio),
        "encoder.ln_post.weight": (audio,),
        "encoder.ln_post.bias": (audio,),
        "decoder.token_embedding.weight": (d["n_vocab"], text),
        "decoder.positional_embedding": (d["n_text_ctx"], text),
        "decoder.ln.weight": (text,),
        "decoder.ln.bias": (text,),
    }
    for side, layers, width in (("encoder", d["n_audio_layer"], audio), ("decoder", d["n_text_layer"], text)):
        for layer in range(layers):
            block = f"{side}.blocks.{layer}"
            for attention in ("attn",) if side == "encoder" else ("attn", "cross_attn"):
                for part in ("query", "key", "value", "out"):
                    shapes[f"{block}.{attention}.{part}.weight"] = (width, width)
                    if part != "key":  # Whisper's keys have no bias
                        shapes[f"{block}.{attention}.{part}.bias"] = (width,)
                shapes[f"{block}.{attention}_ln.weight"] = shapes[f"{block}.{attention}_ln.bias"] = (width,)
            shapes[f"{block}.mlp.0.weight"], shapes[f"{block}.mlp.0.bias"] = (4 * width, width), (4 * width,)
            shapes[f"{block}.mlp.2.weight"], shapes[f"{block}.mlp.2.bias"] = (width, 4 * width), (width,)
            shapes[f"{block}.mlp_ln.weight"] = shapes[f"{block}.mlp_ln.bias"] = (width,)
    return shapes


def check_is_file(path: Path) -> None:
    """Raise CheckpointError unless the path is a regular file that is not empty."""
    if path.is_dir():
        inside = sorted(found.name for found in path.glob("*.pt"))
        hint = f"; it contains {', '.join(inside)}" if inside else ""
        raise CheckpointError(f"{path} is a folder; pass a .pt file{hint}")
    if not path.exists():
        raise CheckpointError(f"the file {path} does not exist")
    if not path.is_file():  # a pipe would block forever
        raise CheckpointError(f"{path} is not a regular file; copy the checkpoint into one")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; delete it and fetch it again")


class _ZipFile(io.FileIO):
    """A zip file that refuses large reads until `is_opened` is set: its directory is read in one."""

    is_opened = False

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        if self.is_opened:
            return super().read(size)
        if size > DIRECTORY_LIMIT_BYTES:
            raise zipfile.BadZipFile("its directory is far larger than that of a checkpoint")
        return super().read(size if size >= 0 else DIRECTORY_LIMIT_BYTES)  # where the directory may end


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a checkpoint's archive.

    Raises:
        CheckpointError: it cannot be read, or is no such archive.
    """
    try:
        file = _ZipFile(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield _archive(path, file)


def _archive(path: Path, file: _ZipFile) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(file)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        file.seek(0)
        if file.read(2) == b"PK":
            raise CheckpointError(
                f"{path} is truncated or damaged ({error}); delete it and fetch it again"
            ) from error
        raise CheckpointError(
            f"{path} is not a checkpoint in torch.save's format since version 1.6 (a zip file). If you trust "
            "an older one, convert it by loading it with torch and saving it again"
        ) from error
    file.is_opened = True
    return archive


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit_bytes: int) -> bytes:
    """Return what a member holds; one that claims more than the limit, or is compressed, is not read."""
    if entry.compress_type != zipfile.ZIP_STORED:  # a small file can then hold any amount
        raise CheckpointError(f"its {_shown(entry.filename)} is compressed, which torch.save never does")
    if max(entry.file_size, entry.compress_size) > limit_bytes:
        raise CheckpointError(
            f"its {_shown(entry.filename)} claims {entry.file_size} bytes, of at most {limit_bytes}"
        )
    return archive.read(entry)


_repr = reprlib.Repr()
_repr.maxstring = 120


def _shown(value: object) -> str:
    """Return a value from a file as a message shows it: short, whatever it is."""
    return _repr.repr(value)


_Unpickler: Any = pickle._Unpickler


class _Opcodes(dict[int, Callable[[Any], None]]):
    def __missing__(self, opcode: int) -> Callable[[Any], None]:
        raise CheckpointError(f"its pickle has the opcode {bytes([opcode])!r}, which no checkpoint needs")


class _InertUnpickler(_Unpickler):
    """Builds the description of a checkpoint and refuses every name except those that tensors need.

    Unpickling calls whatever the file names (docs.python.org/3/library/pickle.html#restricting-globals).

    It is Python's own unpickler in Python, because the one in C takes memory for as many memo entries as the
    file's highest index. Keys must be strings: the hash of tuples in tuples can take forever.
    """

    dispatch = _Opcodes(
        {
            ord(opcode): _Unpickler.dispatch[ord(opcode)]
            for opcode in (
                *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL),
                *(pickle.REDUCE, pickle.BINPERSID, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
                *(pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
                *(pickle.TUPLE3, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
                *(pickle.MEMOIZE, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT),
                *(pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
                *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES),
            )
        }
    )

    def _load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        _Unpickler.dispatch[ord(pickle.SETITEM)](self)

    def _load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        _Unpickler.dispatch[ord(pickle.SETITEMS)](self)

    def _check_keys(self, keys: list[Any]) -> None:
        if not all(type(key) is str for key in keys):
            raise CheckpointError("its pickle has a dict whose keys are not texts")

    def _load_build(self) -> None:
        self.stack.pop()  # what a module notes about its version, which no tensor needs

    dispatch[ord(pickle.SETITEM)] = _load_setitem
    dispatch[ord(pickle.SETITEMS)] = _load_setitems
    dispatch[ord(pickle.BUILD)] = _load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _EmptyDict()
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if (module, name) == ("_codecs", "encode"):
            return _Encode()
        if module == "torch" and name in (*STORAGES, "BoolStorage"):
            return name
        raise CheckpointError(
            f"its pickle asks for {_shown(f'{module}.{name}')}, which would run code or is not a weight; "
            "refused"
        )

    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, _, count = pid
        if kind not in (*STORAGES, "BoolStorage") or not isinstance(key, str) or not isinstance(count, int):
            raise CheckpointError("its pickle names a storage that is not a tensor's")
        return Storage(kind, key, count)


class _EmptyDict:
    __slots__ = ()

    def __call__(self) -> OrderedDict[str, Any]:
        return OrderedDict()


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
        if (
            not isinstance(storage, Storage)
            or not all(isinstance(sizes, tuple | list) for sizes in (shape, strides))
            or not len(shape) == len(strides) <= AXES_LIMIT
            or any(type(n) is not int or not 0 <= n < NUMBER_LIMIT for n in (offset, *shape, *strides))
        ):
            raise CheckpointError("its pickle describes an impossible tensor")
        return Tensor(storage, offset, tuple(shape), tuple(strides))


class _Encode:
    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:  # how a pickle of protocol 2 writes bytes
        if not isinstance(text, str) or encoding != "latin1":
            raise CheckpointError("its pickle encodes something that is not bytes")
        return b""  # no weight is among them, and many copies of a long text would fill memory


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


def described(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return a checkpoint's dimensions, and where in its file each tensor lies, without running any code."""
    try:
        pickled = _read_member(archive, archive.getinfo(member_of(archive, "data.pkl")), PICKLE_LIMIT_BYTES)
        content = _InertUnpickler(io.BytesIO(pickled)).load()
        order = [entry for entry in archive.infolist() if entry.filename.endswith("/byteorder")]
        if order and _read_member(archive, order[0], BYTE_ORDER_LIMIT_BYTES) != b"little":
            raise CheckpointError("it was written on a big-endian machine")
        dimensions, tensors = content["dims"], content["model_state_dict"]
        if isinstance(tensors, dict):
            tensors.pop(
                "alignment_heads", None
            )  # not a weight: the heads that follow time, as whisper stores them
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    except Exception as error:  # a hostile pickle can fail in any way; in any case this is not a checkpoint
        raise CheckpointError(
            f"{path} is not a checkpoint in OpenAI's format (a dict of dims and model_state_dict): "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error
    return checked_dimensions(path, dimensions), tensors


def member_of(archive: zipfile.ZipFile, name: str) -> str:
    """Return the full name of a member: every archive has a top folder of its own."""
    top = archive.namelist()[0].split("/")[0]
    return f"{top}/{name}"


def checked_dimensions(path: Path, dims: Any) -> dict[str, int]:
    """Return a file's ten dimensions in order. Raises CheckpointError: no Whisper has them."""
    if not isinstance(dims, dict) or set(dims) != set(DIMENSIONS):
        missing = [name for name in DIMENSIONS if not isinstance(dims, dict) or name not in dims]
        extra = [str(name) for name in dims if name not in DIMENSIONS] if isinstance(dims, dict) else []
        raise CheckpointError(
            f"{path}: its dims must be exactly Whisper's ten; missing: {missing or 'none'}, "
            f"unknown: {_shown(extra) if extra else 'none'}"
        )
    for name, value in dims.items():
        if type(value) is not int or not 0 < value < 1 << 20:
            raise CheckpointError(
                f"{path}: dimension {name} is {_shown(value)}, not a plausible positive whole number"
            )
        if name.endswith(("_layer", "_head")) and value > LAYERS_OR_HEADS_LIMIT:
            raise CheckpointError(f"{path}: dimension {name} is {value}, more than any Whisper's")
        if value not in KNOWN.get(name, (value,)):
            raise CheckpointError(
                f"{path}: {name} is {value}; Whisper has {' or '.join(map(str, KNOWN[name]))}"
            )
    check_heads(str(path), dims)
    if dims["n_audio_state"] != dims["n_text_state"]:
        raise CheckpointError(
            f"{path}: n_audio_state and n_text_state differ, which Whisper's decoder does not allow"
        )
    return {name: dims[name] for name in DIMENSIONS}


def check_heads(where: str, dimensions: Mapping[str, int]) -> None:
    """Raise CheckpointError, beginning with `where`, if the heads of a side cannot share its width."""
    for side in ("audio", "text"):
        if dimensions[f"n_{side}_state"] % dimensions[f"n_{side}_head"]:
            raise CheckpointError(f"{where}: n_{side}_state is not a multiple of n_{side}_head")


def _check_tensors(path: Path, archive: zipfile.ZipFile, dimensions: dict[str, int], tensors: Any) -> None:
    expected = expected_tensors(dimensions)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path}: its model_state_dict contains something that is not a tensor")
    if tensors.keys() != expected.keys():
        missing = sorted(expected.keys() - tensors.keys())
        extra = sorted(map(str, tensors.keys() - expected.keys()))
        raise CheckpointError(
            f"{path}: its tensors do not fit its dims; missing {len(missing)}: {missing[:3]}, "
            f"unknown {len(extra)}: {_shown(extra[:3])}"
        )
    file_bytes = path.stat().st_size
    needed_bytes = 0
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise CheckpointError(
                f"{path}: {name} has shape {tensor.shape}, but its dims require {expected[name]}"
            )
        if tensor.storage.kind not in STORAGES:
            raise CheckpointError(f"{path}: {name} contains {tensor.storage.kind}, not numbers")
        present = _stored_bytes(archive, tensor.storage.key, file_bytes)
        itemsize = STORAGES[tensor.storage.kind].itemsize
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        # each number must be in the file: a stride of 0 is small there and huge in memory
        if max(last + 1, math.prod(tensor.shape)) * itemsize > present:
            raise CheckpointError(
                f"{path}: {name} is cut short ({math.prod(tensor.shape)} numbers, {present} bytes)"
            )
        needed_bytes += math.prod(tensor.shape) * itemsize
    if needed_bytes > file_bytes:  # as when all tensors share their numbers
        raise CheckpointError(
            f"{path}: its tensors need {needed_bytes:,} bytes of numbers, but the file has {file_bytes:,}; "
            "save each tensor with its own numbers"
        )


def _stored_bytes(archive: zipfile.ZipFile, key: str, file_bytes: int) -> int:
    """Return how many bytes of a storage can be in the file, whatever its directory claims."""
    try:
        entry = archive.getinfo(member_of(archive, f"data/{key}"))
    except KeyError:
        return 0
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    return min(entry.file_size, entry.compress_size, file_bytes - entry.header_offset) if is_stored else 0
