"""Small models in other programs' containers, and the means to break them: parsers and writers of our own."""

from __future__ import annotations

import hashlib
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fake_checkpoint import ENGLISH, MULTILINGUAL, MULTILINGUAL_V3, write_fake_checkpoint
from safetensors.torch import load_file, save_file

from asrgate.backends.checkpoints.containers import __main__ as child
from asrgate.backends.checkpoints.file import CheckpointError, read_dimensions, read_tensors
from asrgate.backends.checkpoints.identity import file_tensors_sha256

NAMES = {"ctranslate2": "ct2", "huggingface": "hf", "ggml": "ggml-fake.bin"}
SHAPES: dict[str, dict[str, Any]] = {
    "english": {"n_vocab": ENGLISH},
    "multilingual": {"n_vocab": MULTILINGUAL, "n_audio_layer": 2, "n_text_layer": 2},
    "large-v3": {"n_vocab": MULTILINGUAL_V3, "n_mels": 128},
    "turbo": {"n_vocab": MULTILINGUAL_V3, "n_mels": 128, "n_audio_layer": 3, "n_audio_head": 4},
    "float32": {"n_vocab": ENGLISH, "dtype": torch.float32, "n_audio_head": 1},
    "one-head": {"n_vocab": ENGLISH, "n_audio_head": 1, "n_text_head": 8},
}
LITTLE_BYTES = 24 << 20  # of Python's and numpy's memory; the fakes' embedding has 0.8 MB


def small(path: Path, **content: Any) -> Path:
    """Write a checkpoint of 8 numbers' width and one layer a side, unless `content` says otherwise."""
    dimensions = {"n_audio_state": 8, "n_text_state": 8, "n_audio_layer": 1, "n_text_layer": 1}
    return write_fake_checkpoint(path, **{**dimensions, **content})


def export(kind: str, checkpoint: Path, folder: Path) -> Path:
    """Export in this process, which has torch already, and return the container."""
    target = folder / NAMES[kind]
    child.export(kind, checkpoint, hashlib.sha256(checkpoint.read_bytes()).hexdigest(), target)
    return target


class Variable(NamedTuple):
    """One variable of a CTranslate2 model.bin."""

    name: str
    shape: tuple[int, ...]
    dtype: int
    data: bytes


def read_ct2(path: Path) -> tuple[list[Variable], list[tuple[str, str]]]:
    """Return the variables and aliases of a model.bin that is whole."""
    data, place = path.read_bytes(), 0

    def take(code: str) -> int:
        nonlocal place
        (number,) = struct.unpack_from("<" + code, data, place)
        place += struct.calcsize("<" + code)
        return number

    def text() -> str:
        nonlocal place
        length = take("H")
        place += length
        return data[place - length : place - 1].decode()

    assert (take("I"), text(), take("I")) == (6, "WhisperSpec", 3)
    variables = []
    for _ in range(take("I")):
        name = text()
        shape = tuple(take("I") for _ in range(take("B")))
        dtype, size = take("B"), take("I")
        variables.append(Variable(name, shape, dtype, data[place : place + size]))
        place += size
    return variables, [(text(), text()) for _ in range(take("I"))]


def write_ct2(
    path: Path,
    variables: list[Variable],
    aliases: list[tuple[str, str]],
    spec: str = "WhisperSpec",
    count: int | None = None,
) -> None:
    """Write a model.bin, whatever it claims."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text(spec), struct.pack("<2I", 3, count or len(variables))]
    for name, shape, dtype, data in variables:
        parts += [text(name), struct.pack(f"<B{len(shape)}I", len(shape), *shape)]
        parts += [struct.pack("<BI", dtype, len(data)), data]
    parts += [struct.pack("<I", len(aliases)), *(text(one) + text(other) for one, other in aliases)]
    path.write_bytes(b"".join(parts))


def change_ct2(folder: Path, name: str, change: Callable[[Variable], list[Variable]]) -> None:
    """Replace one variable of a CTranslate2 folder by those that `change` makes of it."""
    variables, aliases = read_ct2(folder / "model.bin")
    assert name in {variable.name for variable in variables}
    changed = [new for old in variables for new in (change(old) if old.name == name else [old])]
    write_ct2(folder / "model.bin", changed, aliases)


def change_hf(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a Hugging Face folder in place."""
    tensors = {name: values.clone() for name, values in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def ggml_tensor(data: bytes, name: str) -> int:
    """Return where the entry of a tensor begins in a ggml file: rank, length of name, type, shape, name."""
    for rank in (1, 2, 3):
        place = data.find(name.encode()) - 4 * rank - 12
        while place > 0:
            if struct.unpack_from("<2i", data, place) == (rank, len(name)):
                return place
            place = data.find(name.encode(), place + 4 * rank + 13) - 4 * rank - 12
    raise AssertionError(f"no tensor {name}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """Return a checkpoint and a container of it, each pair built once."""
    folders: dict[str, Path] = {}

    def get(shape: str, kind: str) -> tuple[Path, Path]:
        if shape not in folders:
            folders[shape] = tmp_path_factory.mktemp(shape)
            small(folders[shape] / "m.pt", **SHAPES[shape])
        key = f"{shape} {kind}"
        if key not in folders:
            folders[key] = export(kind, folders[shape] / "m.pt", folders[shape])
        return folders[shape] / "m.pt", folders[key]

    return get


def back(source: Path, folder: Path) -> Path:
    """Import in this process, which has torch already."""
    child.import_source(source, folder / "back.pt")
    return folder / "back.pt"


def assert_same(one: Path, other: Path) -> None:
    """Assert equal dimensions, types and bits, by this test's own comparison and by the digest."""
    assert read_dimensions(one) == read_dimensions(other)
    ours, theirs = dict(read_tensors(one)), dict(read_tensors(other))
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype, name
        assert values.tobytes() == theirs[name].tobytes(), name
    assert file_tensors_sha256(one) == file_tensors_sha256(other)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small model in every container, and as m.pt."""
    folder = tmp_path_factory.mktemp("originals")
    path = small(folder / "m.pt")
    for kind in NAMES:
        export(kind, path, folder)
    return folder


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a fresh copy of a container, to be broken."""

    def get(name: str) -> Path:
        source, target = originals / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target

    return get


@contextmanager
def refused(pattern: str) -> Iterator[None]:
    """Assert one line of an error that matches, reached without reading the model into memory."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=pattern) as caught:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < LITTLE_BYTES, f"{peak:,} bytes"


def read(source: Path) -> None:
    """Import in this process, where memory can be watched."""
    child.import_source(source, source.parent / "out.pt")
