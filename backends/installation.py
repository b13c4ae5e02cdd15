"""Where this project lies: a checkout, or site-packages after the installation of a wheel."""

from __future__ import annotations

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def shipped(name: str, copy: Path) -> Path:
    """Return a file beside the packages of a checkout; a wheel holds `copy` of it (pyproject.toml)."""
    path = PROJECT_ROOT / name
    return path if path.exists() else copy
