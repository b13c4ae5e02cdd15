"""PocketSphinx, an engine with a model of its own, on real speech."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrgate.backends import own_weights
from asrgate.backends.base import BackendError, BringsModel, Checkpoint, Settings
from asrgate.backends.pocketsphinx import PocketSphinx
from asrgate.harness.corpus import BUNDLED_MANIFEST
from asrgate.harness.corpus.audio import decode
from asrgate.harness.testing import BackendContract

pytestmark = pytest.mark.slow


@pytest.mark.skipif(find_spec("pocketsphinx") is None, reason="needs pocketsphinx")
class TestContract(BackendContract):
    variant = "pocketsphinx@cpu/float32"


NO_FILE = Checkpoint("en-us", Path(), "0" * 64, {})


@pytest.fixture(scope="module")
def engine() -> Any:
    pytest.importorskip("pocketsphinx", reason="needs pocketsphinx")
    return PocketSphinx.load(NO_FILE, "cpu", "float32", Settings())


def test_it_hears_words_whatever_came_before(engine: Any) -> None:
    speech = decode(BUNDLED_MANIFEST.with_name("short.flac"))
    first = engine.transcribe(speech, "en").text
    assert first.split()
    noise = (0.3 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    engine.transcribe(noise, "en")
    assert engine.transcribe(speech, "en").text == first


def test_it_states_the_files_that_it_loaded_and_what_does_not_apply(engine: Any) -> None:
    assert isinstance(engine, BringsModel)
    applied = engine.applied_settings
    assert applied["checkpoint_sha256"] == PocketSphinx.model_identity().sha256
    assert applied["beam_size"] is None and applied["threads"] == 1 and applied["task"] == "transcribe"
    assert "beam_size" in applied["not_applied"]
    assert PocketSphinx.model_identity().languages == ("en",)


@pytest.mark.parametrize(
    "change", [{"beam_size": 3}, {"task": "translate"}, {"language": "de"}, {"threads": 0}]
)
def test_what_it_cannot_do_is_refused(change: dict[str, Any]) -> None:
    pytest.importorskip("pocketsphinx", reason="needs pocketsphinx")
    with pytest.raises(BackendError):
        PocketSphinx.load(NO_FILE, "cpu", "float32", Settings(**change))


def test_its_model_is_declared_without_importing_it() -> None:
    pytest.importorskip("pocketsphinx", reason="needs pocketsphinx")
    code = (
        "import sys\nfrom asrgate import backends\n"
        "print(backends.describe('pocketsphinx').model_identity().name, 'pocketsphinx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["en-us", "False"]


def test_the_digest_is_over_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    found = own_weights.files_sha256(tmp_path, tmp_path.iterdir())
    (tmp_path / "a").rename(tmp_path / "c")
    assert own_weights.files_sha256(tmp_path, tmp_path.iterdir()) != found
