"""Finds, decodes and checks clips; samples them, adds noise, imports and exports them."""

from asrgate.harness.corpus.clips import (
    BUNDLED_MANIFEST,
    DEFAULT_LANGUAGE,
    Clip,
    CorpusError,
    load_clips,
)

__all__ = ["BUNDLED_MANIFEST", "DEFAULT_LANGUAGE", "Clip", "CorpusError", "load_clips"]
