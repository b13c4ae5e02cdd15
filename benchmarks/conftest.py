"""Fixtures of the benchmarks: the tests' checkpoint, a cache of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asrgate.backends.base import Checkpoint
from asrgate.backends.checkpoints import catalog

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from fake_checkpoint import write_fake_checkpoint


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint in OpenAI's format, random: small, but large enough that a stage takes milliseconds."""
    path = write_fake_checkpoint(
        tmp_path_factory.mktemp("model") / "random.en.pt", n_audio_state=128, n_text_state=128
    )
    return catalog.resolve(str(path))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep conversions of the random checkpoint out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASRGATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
