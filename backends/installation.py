"""Where this project is located: in a checkout, or in site-packages after a wheel was installed."""

from __future__ import annotations

import os
from pathlib import Path

# not resolved: in a checkout asrgate/backends is a link
PROJECT_ROOT = Path(os.path.abspath(__file__)).parents[2]


def shipped(name: str, copy: Path) -> Path:
    """Return a file next to the packages of a checkout; a wheel contains `copy` of it (pyproject.toml)."""
    path = PROJECT_ROOT / name
    return path if path.exists() else copy
