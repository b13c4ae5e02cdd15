"""Where clips come from: found, decoded and checked whole; drawn, made noisy, imported and exported."""

from asrgate.harness.corpus.clips import (
    BUNDLED_MANIFEST,
    DEFAULT_LANGUAGE,
    Clip,
    CorpusError,
    load_clips,
)

__all__ = ["BUNDLED_MANIFEST", "DEFAULT_LANGUAGE", "Clip", "CorpusError", "load_clips"]
