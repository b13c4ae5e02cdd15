"""A clip's fields as text, to divide clips by: length, language, and those of the manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LENGTH = "length"
LENGTH_LIMITS = (2, 5, 10, 20, 30, 60, 120, 300, math.inf)  # seconds, each the end of a bucket
ABSENT = "absent"


def length_bucket(seconds: float) -> int:
    """Return the number of the bucket that a length falls into."""
    return next(n for n, limit in enumerate(LENGTH_LIMITS) if seconds <= limit)


def bucket_name(bucket: int) -> str:
    """Return the bucket's limits in words."""
    low, high = (0, *LENGTH_LIMITS)[bucket], LENGTH_LIMITS[bucket]
    return f"over {low} s" if high == math.inf else f"{low} to {high} s"


def value_of(audio_seconds: float, language: str, tags: Mapping[str, Any], field: str) -> str:
    """Return the value of a clip's field as text; `length` and `lang` are fields of every clip."""
    if field == LENGTH:
        return bucket_name(length_bucket(audio_seconds))
    if field == "lang":
        return language
    value = tags.get(field)
    if value is None:
        return ABSENT
    return f"{value:g}" if isinstance(value, float) else str(value)
