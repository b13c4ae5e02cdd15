"""A token's text, from openai-whisper's vocabulary files alone, without importing anything heavy."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

from asrgate.backends.base import MULTILINGUAL_VOCAB
from asrgate.backends.checkpoints.conversions.tokenizer_json import openai_ranks

TIMESTAMPS = 1501  # the last ids of every vocabulary: 0.00 to 30.00 s in steps of 0.02 s


def token_text(token: int, n_vocab: int) -> str | None:
    """Return the text of a token; special tokens are written as openai-whisper writes them.

    Bytes that do not form a whole character are escaped. The result is None if openai-whisper is not
    installed, or for special tokens that never occur in a transcript.
    """
    begin = n_vocab - TIMESTAMPS
    if token >= begin:
        return f"<|{(token - begin) * 0.02:.2f}|>"
    if token == end_of_text(n_vocab):
        return "<|endoftext|>"
    found = _vocabulary(n_vocab >= MULTILINGUAL_VOCAB).get(token)
    return None if found is None else found.decode("utf-8", "backslashreplace")


def end_of_text(n_vocab: int) -> int:
    """Return the id of the token that ends a window."""
    return 50_257 if n_vocab >= MULTILINGUAL_VOCAB else 50_256


@lru_cache
def _vocabulary(multilingual: bool) -> dict[int, bytes]:
    if find_spec("whisper") is None:
        return {}
    return {rank: token for token, rank in openai_ranks(multilingual).items()}
