"""Imports or exports in this process, which may load torch. checkpoints/apart.py starts it.

python -m asrgate.backends.checkpoints.containers import SOURCE TARGET.pt
python -m asrgate.backends.checkpoints.containers export KIND CHECKPOINT.pt <SHA-256 of it> TARGET
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from asrgate.backends import child_process
from asrgate.backends.base import Checkpoint
from asrgate.backends.checkpoints import apart, containers
from asrgate.backends.checkpoints.containers import ctranslate2, ggml, huggingface, kind_of, openai_format
from asrgate.backends.checkpoints.containers.contents import Contents
from asrgate.backends.checkpoints.conversions import ctranslate2_model, ggml_model
from asrgate.backends.checkpoints.file import CheckpointError, read_dimensions, read_tensors
from asrgate.backends.checkpoints.sha256 import file_sha256
from asrgate.backends.checkpoints.tensor_digest import as_float16, tensors_sha256


def import_source(source: Path, target: Path) -> None:
    """Write the source as a checkpoint of OpenAI's format."""
    kind = kind_of(source)
    if kind == "openai":
        dimensions, tensors = openai_format.read(source)
        openai_format.write(target, dimensions, openai_format.in_one_type(_loaders(tensors)))
    elif kind is not None:
        contents = contents_of(kind, source)
        openai_format.write(
            target,
            contents.dimensions,
            openai_format.in_one_type({name: stored.load for name, stored in contents.tensors.items()}),
        )
    else:
        raise CheckpointError(f"{source} has no Whisper weights that can be read")


def contents_of(kind: str, source: Path) -> Contents:
    """Return the contents of a container that is not OpenAI's."""
    return {"ctranslate2": ctranslate2.read, "huggingface": huggingface.read, "ggml": ggml.read}[kind](source)


def export(kind: str, path: Path, sha256: str, target: Path) -> None:
    """Write the checkpoint as a container, read it back, and compare it with the checkpoint."""
    if file_sha256(path) != sha256:
        raise CheckpointError(f"{path} changed after it was checked; export it again")
    dimensions, tensors = openai_format.read(path)
    if kind == "npz":
        write_npz(tensors, target)
        return
    if kind == "ggml":
        _refuse_inexact(path)
        with target.open("wb") as file:
            ggml_model.write(file, Checkpoint("", path, sha256, dimensions), ggml_model.FILE_TYPES["f16"])
    else:
        target.mkdir()
        if kind == "ctranslate2":
            ctranslate2_model.build(path, target)
        else:
            huggingface.write(target, dimensions, openai_format.in_one_type(_loaders(tensors)))
    back = contents_of(kind, target)
    same = tensors_sha256(back.by_name()) == tensors_sha256(read_tensors(path, by_name=True))
    if back.dimensions != read_dimensions(path) or not same:
        raise CheckpointError(f"{path} is not preserved exactly by {kind}; please report this")


def write_npz(tensors: Iterable[tuple[str, np.ndarray]], target: Path) -> None:
    """Write every tensor under its own name to a NumPy archive, one at a time."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, values in tensors:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _loaders(tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, Callable[[], np.ndarray]]:
    return {name: partial(np.asarray, values) for name, values in tensors}


def _refuse_inexact(path: Path) -> None:
    # the float16 file has vectors in float32; there is no float32 file, see ggml_model.FileType
    for name, values in openai_format.read(path)[1]:
        is_matrix = values.ndim == 3 or (values.ndim == 2 and name.endswith(".weight"))
        if is_matrix and as_float16(values) is None:
            raise CheckpointError(
                f"{path}: {name} has values that float16 cannot hold, and whisper.cpp runs no float32 "
                "convolutions; export it as huggingface, ctranslate2 or npz"
            )


def main(arguments: list[str]) -> int:
    """Import or export, and tell `apart.answer` how it went."""
    import torch  # noqa: F401  # maps more than any limit before there is one

    action, source = arguments[0], Path(arguments[1 if arguments[0] == "import" else 2])

    def work() -> None:
        child_process.limit_memory(apart.CONVERSION_BYTES + 12 * containers.size_bytes(source))
        if action == "import":
            import_source(source, Path(arguments[2]))
        else:
            export(arguments[1], source, arguments[3], Path(arguments[4]))

    return apart.serve(work, source)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
