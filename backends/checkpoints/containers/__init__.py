"""Imports and exports other programs' files of Whisper weights.

`imported` converts a CTranslate2 folder, a Hugging Face folder, a whisper.cpp file or a .pt file to an
ordinary checkpoint in OpenAI's format in the cache; `export` writes a checkpoint as any of the first three.
Both are exact: every value is preserved, or there is an error that names the tensor. Nothing in a source is
run, and every size in it is checked against the size of the file.

The work is done in a separate process (`__main__` here), so the caller never loads torch.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from asrgate.backends import temporary
from asrgate.backends.base import Checkpoint
from asrgate.backends.checkpoints import apart
from asrgate.backends.checkpoints.cache import cache_dir, locked, replaced_whole
from asrgate.backends.checkpoints.containers import ctranslate2, ggml, huggingface, openai_format
from asrgate.backends.checkpoints.file import CheckpointError
from asrgate.backends.checkpoints.sha256 import file_sha256

__all__ = [
    "EXPORTS",
    "KINDS",
    "default_name",
    "export",
    "import_file",
    "imported",
    "kind_of",
    "size_bytes",
]

KINDS = {
    "ctranslate2": "a CTranslate2 folder (model.bin)",
    "huggingface": "a Hugging Face folder (model.safetensors and config.json)",
    "ggml": "a whisper.cpp file (ggml-*.bin)",
    "openai": "a .pt file",
}
EXPORTS = ("ctranslate2", "huggingface", "ggml")
FILES = {"ggml": "a whisper.cpp model", "npz": "a NumPy archive"}  # what else is written is a folder
IMPORT_VERSION = 1
# History: 1 = first version.
START_BYTES = 512


def kind_of(source: Path) -> str | None:
    """Return which of KINDS a file or a folder is, by its contents; None if it is none of them."""
    if (
        source.name in huggingface.PICKLES
        or source.name == huggingface.INDEX
        or huggingface.is_folder(source)
    ):
        return "huggingface"
    file_path = source / "model.bin" if source.is_dir() else source
    try:
        if not file_path.is_file():  # a pipe would block forever
            return None
        with file_path.open("rb") as file:
            start = file.read(START_BYTES)
    except OSError:
        return None
    tests = {
        "ctranslate2": ctranslate2.is_ctranslate2,
        "huggingface": huggingface.is_safetensors,
        "ggml": ggml.is_ggml,
        "openai": openai_format.is_openai,
    }
    kind = next((kind for kind, begins_so in tests.items() if begins_so(start)), None)
    return None if source.is_dir() and kind != "ctranslate2" else kind


def default_name(source: Path) -> str:
    """Return the default name of a model: its folder's name, or its file's without the ending."""
    source = source.absolute()
    if source.is_file() and (source.name == "model.bin" or huggingface.is_own_name(source.name)):
        return source.parent.name
    return source.name if source.is_dir() else source.stem


def imported(source: Path) -> Path:
    """Return the source as a checkpoint of OpenAI's format in the cache, imported on first use.

    Raises:
        CheckpointError: it cannot be converted exactly.
        AsrgateError: it cannot be read.
    """
    key = _key(source)
    target = cache_dir() / "weights" / "converted" / f"{key}.pt"
    if target.is_file():
        return target
    with locked(target):
        if not target.is_file():  # otherwise another process was first
            import_file(source, target)
            if _key(source) != key:
                target.unlink()
                raise CheckpointError(f"{source} changed while it was imported; import it again")
    return target


def import_file(source: Path, target: Path) -> None:
    """Write the source as a checkpoint of OpenAI's format, atomically and in a separate process.

    Raises:
        CheckpointError: it cannot be converted exactly, or the target cannot be written.
    """
    _known(source)
    try:
        with replaced_whole(target) as made:
            apart.answer(f"{__name__}.__main__", "import", source, made, size_bytes=size_bytes(source))
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error


def export(checkpoint: Checkpoint, kind: str, target: Path) -> None:
    """Write the checkpoint as another container, atomically; read it back and compare.

    Args:
        checkpoint: the weights.
        kind: one of EXPORTS, or "npz": every tensor under its own name; those of FILES are files.
        target: the file, or the folder, which must be absent or empty.

    Raises:
        CheckpointError: the target exists, or the container cannot hold the weights exactly.
    """
    if not target.absolute().parent.is_dir():
        raise CheckpointError(
            f"cannot write {target.name}: the folder {target.absolute().parent} does not exist; "
            "create it first"
        )
    is_file = kind in FILES
    if is_file and target.is_dir():
        raise CheckpointError(f"{target} is a folder; {FILES[kind]} is a file, such as {target}/{kind}.bin")
    if not is_file and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists and is not an empty folder; choose a new one")
    target = target.absolute()
    try:
        with temporary.beside(target) as work:
            made = work / "made"
            apart.answer(
                f"{__name__}.__main__",
                *("export", kind, checkpoint.path.absolute(), checkpoint.sha256, made),
                size_bytes=checkpoint.path.stat().st_size,
            )
            os.replace(made, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error


def _known(source: Path) -> str:
    kind = kind_of(source)
    if kind is not None:
        return kind
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; check the path")
    raise CheckpointError(
        f"{source} has no Whisper weights that can be read; pass {', '.join(KINDS.values())}"
    )


def _files(kind: str, source: Path) -> list[Path]:
    if kind == "ctranslate2":
        return ctranslate2.files(source)
    return huggingface.files(source) if kind == "huggingface" else [source]


def size_bytes(source: Path) -> int:
    """Return the size of all files that an import of a source reads."""
    return sum(path.stat().st_size for path in _files(_known(source), source))


def _key(source: Path) -> str:
    kind = _known(source)
    files = _files(kind, source)
    # an index names its shards; otherwise a file under another name is the same model
    names = [path.name if kind == "huggingface" else "" for path in files]
    hashes = [f"{name} {file_sha256(path)}" for name, path in zip(names, files, strict=True)]
    parts = [str(IMPORT_VERSION), kind, *hashes]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
