"""Types of command-line arguments."""

from __future__ import annotations

import argparse
from typing import Any


def at_least(least: int) -> Any:
    """Return an argument type: an integer of at least `least`."""

    def integer(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text[:40]}")
        return int(text)

    return integer


def positive(text: str) -> float:
    """Return the positive, finite number that an argument is."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text}")
    return value
