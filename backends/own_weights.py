"""For engines with a model of their own: the digest of its files, and settings that do not apply."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asrgate.backends.base import OF_WHISPER, BackendError, Settings

_BLOCK_BYTES = 1 << 20


def files_sha256(folder: Path, files: Iterable[Path]) -> str:
    """Return one hex SHA-256 over files: their paths from the folder, in order, their sizes and contents.

    Raises:
        BackendError: a file cannot be read.
    """
    sha256 = hashlib.sha256()
    for path in sorted(files):
        try:
            sha256.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    sha256.update(block)
        except OSError as error:
            raise BackendError(f"cannot read the model file {path}: {error.strerror}") from error
    return sha256.hexdigest()


def require_applicable(settings: Settings, engine: str, names: Iterable[str] = OF_WHISPER) -> None:
    """Raise BackendError if a setting that means nothing to an engine is not the default."""
    default, asked = Settings().as_dict(), settings.as_dict()
    for name in names:
        if asked[name] != default[name]:
            raise BackendError(
                f"{name} {asked[name]!r} does not apply to {engine}, which does not decode like Whisper; "
                f"leave it at {default[name]!r}, or leave {engine} out"
            )


def applied(settings: Settings, why: str, names: Iterable[str] = OF_WHISPER) -> dict[str, Any]:
    """Return the settings as applied by an engine to which some mean nothing.

    Args:
        why: they do not apply, for the reader of a report.
        names: of the settings that do not.
    """
    lacking = list(names)
    return {
        **settings.as_dict(),
        **dict.fromkeys(lacking),
        "not_applied": dict.fromkeys(lacking, why),
    }
