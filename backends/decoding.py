"""The old address of `backends.whisper_common.decoding`, which plug-ins written by an earlier `asrbench new-backend` import."""

import warnings

from backends.whisper_common.decoding import require_honourable, require_language, suppressed_tokens

__all__ = ["require_honourable", "require_language", "suppressed_tokens"]

warnings.warn(
    "backends.decoding has moved to backends.whisper_common.decoding; the old name goes with the next release",
    DeprecationWarning,
    stacklevel=2,
)
