"""The old address of `whisper_common.decoding`, which files of an earlier `new-backend` import."""

import warnings

from asrgate.backends.whisper_common.decoding import require_honourable, require_language, suppressed_tokens

__all__ = ["require_honourable", "require_language", "suppressed_tokens"]

warnings.warn(
    "asrgate.backends.decoding is now asrgate.backends.whisper_common.decoding; "
    "the next release removes the old address",
    DeprecationWarning,
    stacklevel=2,
)
