"""A derived checkpoint: other words at the same places, and nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_checkpoint import ENGLISH, MULTILINGUAL, write_fake_checkpoint

from asrgate import backends
from asrgate.backends.base import Settings
from asrgate.backends.checkpoints import catalog, exchanged, file
from asrgate.backends.checkpoints.conversions.tokenizer_json import openai_ranks


@pytest.mark.parametrize("is_multilingual", [False, True])
def test_words_are_exchanged_among_words_and_the_others_stay(is_multilingual: bool) -> None:
    places = exchanged.exchange(is_multilingual, 1)
    assert sorted(places) == list(range(len(places)))
    tokens = {rank: token for token, rank in openai_ranks(is_multilingual).items()}
    moved = np.flatnonzero(places != np.arange(len(places)))
    assert len(moved) > 0.8 * len(places)
    for token in moved[:: len(moved) // 500]:
        before, after = (tokens[rank].decode() for rank in (token, places[token]))
        assert before.startswith(" ") == after.startswith(" ")
        assert before.strip().isalpha() and after.strip().isalpha()
    assert tokens[int(places[openai_ranks(is_multilingual)[b" the"]])] != b" the"
    assert places[openai_ranks(is_multilingual)[b","]] == openai_ranks(is_multilingual)[b","]
    assert not np.array_equal(places, exchanged.exchange(is_multilingual, 2))


@pytest.mark.parametrize("n_vocab", [ENGLISH, MULTILINGUAL])
def test_only_the_embedding_differs(n_vocab: int, tmp_path: Path) -> None:
    original = catalog.resolve(str(write_fake_checkpoint(tmp_path / "fake.pt", n_vocab=n_vocab)))
    (tmp_path / "derived").mkdir()
    derived = exchanged.derive(original, tmp_path / "derived", 1)
    assert derived.sha256 != original.sha256 and derived.dimensions == original.dimensions
    before, after = (dict(file.read_tensors(checkpoint.path)) for checkpoint in (original, derived))
    places = exchanged.exchange(original.is_multilingual, 1)
    assert list(before) == list(after)
    for name, values in before.items():
        if name == exchanged.EMBEDDING:
            assert np.array_equal(after[name][places], values[: len(places)])
            assert np.array_equal(after[name][len(places) :], values[len(places) :])  # special and times
        else:
            assert np.array_equal(after[name], values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper-cpu", "torch-fast", "faster-whisper"])
def test_engines_write_the_exchanged_tokens_and_no_others(name: str, tmp_path: Path) -> None:
    original = catalog.resolve(str(write_fake_checkpoint(tmp_path / "fake.pt")))
    (tmp_path / "derived").mkdir()
    derived = exchanged.derive(original, tmp_path / "derived", 1)
    audio = np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
    places = exchanged.exchange(False, 1)
    heard = []
    for checkpoint in (original, derived):
        engine = backends.load(name).load(checkpoint, "cpu", "float32", Settings(threads=1))
        heard.append(list(engine.transcribe(audio, "en").tokens or ()))
    usual, other = heard
    assert usual and len(usual) > 10
    assert other == [int(places[token]) if token < len(places) else token for token in usual]
    assert other != usual


def test_nothing_of_a_derived_checkpoint_stays_in_the_cache(tmp_path: Path) -> None:
    from asrgate.backends.checkpoints.cache import cache_dir

    original = catalog.resolve(str(write_fake_checkpoint(tmp_path / "fake.pt")))
    (tmp_path / "derived").mkdir()
    derived = exchanged.derive(original, tmp_path / "derived", 1)
    for checkpoint in (original, derived):
        (cache_dir() / "ctranslate2" / f"{checkpoint.sha256}-1").mkdir(parents=True)
    exchanged.forget(derived)
    assert [path.name for path in (cache_dir() / "ctranslate2").iterdir()] == [f"{original.sha256}-1"]
