"""openai-whisper's tokenizer as a `tokenizer.json`, for engines that read Hugging Face's format."""

from __future__ import annotations

import base64
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from asrgate.backends.base import MULTILINGUAL_VOCAB, BackendError


def tokenizer_json(n_vocab: int) -> Any:
    """Return a `tokenizers.Tokenizer` with openai-whisper's token ids for a vocabulary of `n_vocab` tokens.

    The 50,000 merges are recovered from tiktoken's ranks: a token of rank r was made by the one merge
    that is left when its bytes are merged by all ranks below r (Sennrich et al. 2016, algorithm 1).

    Raises:
        BackendError: the vocabulary does not come out at `n_vocab`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = special_tokens(n_vocab)
    ranks = openai_ranks(n_vocab >= MULTILINGUAL_VOCAB)
    if list(names.values()) != list(range(len(ranks), n_vocab)):
        raise BackendError(f"openai-whisper's tokenizer has no vocabulary of {n_vocab} tokens")
    vocabulary = {_printable(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(ranks)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    assert {name: tokenizer.token_to_id(name) for name in names} == names
    return tokenizer


def special_tokens(n_vocab: int) -> dict[str, int]:
    """Return openai-whisper's special tokens and their ids, in the order of the ids. Imports whisper."""
    from whisper.tokenizer import get_tokenizer

    multilingual = n_vocab >= MULTILINGUAL_VOCAB
    languages = n_vocab - 51_765 - multilingual  # as whisper.model.Whisper.num_languages
    found = get_tokenizer(multilingual, num_languages=languages).special_tokens
    return dict(sorted(found.items(), key=lambda item: item[1]))


def openai_ranks(multilingual: bool) -> dict[bytes, int]:
    """Return the bytes of openai-whisper's ordinary tokens and their ids, without importing it."""
    spec = find_spec("whisper")
    assert spec is not None and spec.origin is not None
    name = "multilingual" if multilingual else "gpt2"
    lines = (Path(spec.origin).parent / "assets" / f"{name}.tiktoken").read_text().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [left + right for left, right in pairwise(parts)]
            best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], rank))
            if ranks.get(pairs[best], rank) >= rank:
                break
            parts[best : best + 2] = [pairs[best]]
        if len(parts) == 2:  # one byte, or the empty token that ends the multilingual list, is not merged
            merges.append((_printable(parts[0]), _printable(parts[1])))
    return merges


def _printable(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _byte_characters() -> list[str]:
    # GPT-2's map: a printable byte stands for itself, the others for the code points from 256 on
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


_CHARACTERS = _byte_characters()
