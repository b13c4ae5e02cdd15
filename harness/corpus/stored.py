"""How files are named and begun by systems other than the one that stores them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

STATED_DELIMITER = re.compile(r'"?sep=([,;|\t])"?\n', re.IGNORECASE)  # a table's first line in Excel


def as_stored(path: Path) -> Path:
    """Return a path as the disk spells it, if it is not there as written.

    macOS stores é as e and an accent (Unicode's NFD) where others write one character, and Windows divides
    folders by backslashes. A path that is found in neither way is returned as it is.
    """
    if os.path.exists(path):  # which, unlike Path.exists, raises for no name that is too long
        return path
    slashed = Path(str(path).replace("\\", "/"))
    found = Path(slashed.anchor)
    for part in slashed.parts[len(found.parts) :]:
        if part in ("..", ".") or os.path.exists(found / part):
            found /= part
            continue
        alike = next((name for name in _names(found) if _same(name, part)), None)
        if alike is None:
            return path
        found /= alike
    return found


def text_beside(audio: Path) -> Path | None:
    """Return the text of an audio file, `name.txt` beside `name.wav`; None if there is none."""
    for ending in (".txt", ".TXT"):
        path = as_stored(audio.with_suffix(ending))
        if path != audio and os.path.isfile(path):
            return path
    return None


def _names(folder: Path) -> Iterable[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _same(name: str, other: str) -> bool:
    return unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
