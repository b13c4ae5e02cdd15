"""A checkpoint derived from another: the same model with other words, so that it must answer otherwise.

The decoder's embedding of tokens is its input and its output. With two of its rows exchanged, a model writes
one token wherever it wrote the other, and nothing else changes: not the audio it hears, nor the number of
tokens, nor its time. So what a model must answer with exchanged rows is known, and a checkpoint that nobody
has seen before can be made in no time.

Only tokens that are whole words, or beginnings of words, are exchanged: what decoding suppresses, times and
special tokens keep their place.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from asrgate.backends import child_process
from asrgate.backends.base import Checkpoint
from asrgate.backends.checkpoints import apart
from asrgate.backends.checkpoints.cache import cache_dir
from asrgate.backends.checkpoints.conversions.tokenizer_json import openai_ranks
from asrgate.backends.checkpoints.file import (
    STORAGES,
    CheckpointError,
    described,
    member_of,
    opened,
    read_dimensions,
)
from asrgate.backends.checkpoints.sha256 import hash_now

EMBEDDING = "decoder.token_embedding.weight"


def exchange(is_multilingual: bool, seed: int) -> np.ndarray:
    """Return a permutation of a vocabulary's ordinary tokens: entry i is the token that i's row goes to.

    Words stay words: tokens that begin one are exchanged among themselves, as are those of letters alone, so
    that the answers are texts of as many words. The others keep their place.

    Raises:
        CheckpointError: openai-whisper, whose vocabulary it is, is not installed.
    """
    if find_spec("whisper") is None:
        raise CheckpointError("openai-whisper is not installed, whose vocabulary --audit needs")
    ranks = openai_ranks(is_multilingual)
    places = np.arange(len(ranks))
    rng = np.random.default_rng(seed)
    beginnings: list[int] = []
    letters: list[int] = []
    for token, rank in ranks.items():
        text = token.decode("utf-8", "replace")
        if len(text) > 1 and text[0] == " " and text[1:].isalpha():
            beginnings.append(rank)
        elif text.isalpha():
            letters.append(rank)
    for group in (beginnings, letters):
        shuffled = rng.permutation(group)
        # along one cycle, so that none stays where it was
        places[shuffled] = np.roll(shuffled, 1)
    return places


def derive(checkpoint: Checkpoint, folder: Path, seed: int) -> Checkpoint:
    """Write the checkpoint with its words exchanged into a folder; return it, under the name of the original.

    A process of its own reads and writes it (`main` here).

    Raises:
        CheckpointError: openai-whisper is missing, the file changed or cannot be read or written.
    """
    target = folder / checkpoint.path.name
    vocabulary = "multilingual" if checkpoint.is_multilingual else "english"
    apart.answer(
        __name__, checkpoint.path, target, vocabulary, seed, size_bytes=checkpoint.path.stat().st_size
    )
    return replace(checkpoint, path=target, sha256=hash_now(target), tensors_sha256=None)


def write(path: Path, target: Path, places: np.ndarray) -> None:
    """Write the checkpoint with row i of its embedding at `places[i]`.

    Raises:
        CheckpointError: it cannot be read or written.
    """
    read_dimensions(path)
    with opened(path) as archive:
        _, tensors = described(path, archive)
        tensor = tensors[EMBEDDING]
        rows, width = tensor.shape
        if tensor.strides != (width, 1):
            raise CheckpointError(f"{path}: {EMBEDDING} is not stored row by row; save it anew")
        place = member_of(archive, f"data/{tensor.storage.key}")
        _refuse_swelling(path, archive)
        try:
            with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as written:
                for entry in archive.infolist():
                    content = archive.read(entry)
                    if entry.filename == place:
                        numbers = np.frombuffer(content, STORAGES[tensor.storage.kind]).copy()
                        table = numbers[tensor.offset : tensor.offset + rows * width].reshape(rows, width)
                        table[places] = table[: len(places)].copy()
                        content = numbers.tobytes()
                    written.writestr(entry.filename, content)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"cannot derive a checkpoint from {path}: {error}") from error


def _refuse_swelling(path: Path, archive: zipfile.ZipFile) -> None:
    # members that no tensor needs were not checked: they may be compressed, or lie over each other
    entries, file_bytes = archive.infolist(), path.stat().st_size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or file_bytes < sum(
        entry.file_size for entry in entries
    ):
        raise CheckpointError(f"{path} unpacks to more than it has; save it anew with torch.save")


def forget(checkpoint: Checkpoint) -> None:
    """Delete what backends converted a derived checkpoint into: names in the cache begin with its hash."""
    for found in cache_dir().glob(f"*/{checkpoint.sha256}-*"):
        shutil.rmtree(found, ignore_errors=True) if found.is_dir() else found.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """Derive in this process, and tell `apart.answer` how it went."""
    path, target, vocabulary, seed = arguments

    def work() -> None:
        places = exchange(vocabulary == "multilingual", int(seed))
        child_process.limit_memory(apart.MEMORY_BYTES + 8 * Path(path).stat().st_size)
        write(Path(path), Path(target), places)

    return apart.serve(work, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
