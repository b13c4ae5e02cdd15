"""Models of the Hugging Face hub by name and commit: huggingface_hub itself on a cache as it lays one out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import COMMIT, NAME, Hub, cached
from huggingface_hub import constants

from asrgate import backends
from asrgate.backends import hub
from asrgate.backends.base import BackendUnavailable
from asrgate.backends.transformers_asr import LANGUAGES, MODEL, TransformersAsr
from asrgate.harness import record

FILES = {"config.json": b'{"architectures": ["AForCTC"]}', "model.safetensors": b"weights"}
CARD = {"README.md": b"---\nlanguage: en\nlicense: mit\n---\n"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; conftest.py has set ASRGATE_OFFLINE."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("asrgate.backends.transformers_asr.require_package", lambda *_: None)
    monkeypatch.setenv(MODEL, f"{NAME}@{COMMIT}")
    monkeypatch.delenv(LANGUAGES, raising=False)
    return folder


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine that may be asked."""
    monkeypatch.delenv("ASRGATE_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_hub.serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        yield running


def refusal(call: Callable[[], object]) -> str:
    """Return reason and remedy in one text."""
    with pytest.raises(BackendUnavailable) as caught:
        call()
    return f"{caught.value.reason}; {caught.value.remedy}"


def check() -> None:
    TransformersAsr.check("cpu", "float32")


def test_a_cached_model_is_declared_by_its_name_its_commit_and_the_digest_of_its_files(cache: Path) -> None:
    snapshot = cached(cache, FILES | CARD)
    check()
    found = TransformersAsr.model_identity()
    assert (found.name, found.revision) == (NAME, COMMIT)
    assert (found.languages, found.licence) == (("en",), "mit")
    (snapshot / "pytorch_model.bin").write_bytes(b"the same in another format, fetched by another program")
    assert TransformersAsr.model_identity().sha256 == found.sha256
    (snapshot / "model.safetensors").resolve().write_bytes(b"others")
    assert TransformersAsr.model_identity().sha256 != found.sha256


def test_a_cached_model_needs_no_hub(cache: Path, online: Hub) -> None:
    cached(cache, FILES | CARD)
    check()
    assert TransformersAsr.model_identity().revision == COMMIT
    assert not [path for path in online.asked if NAME in path]


def test_without_a_commit_it_says_what_to_write(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODEL, NAME)
    told = refusal(check)
    assert "names no revision" in told and f"set {MODEL}={NAME}@{COMMIT}, what it is now" in told
    assert f"/api/models/{NAME}" in online.asked
    monkeypatch.setenv(MODEL, "someone/else")
    assert "the hub has no model someone/else" in refusal(check)
    monkeypatch.setenv(MODEL, f"{NAME}@main")
    assert "names the revision main, which is no commit" in refusal(check)


def test_without_a_commit_and_a_hub_it_says_where_the_commit_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODEL, f"{NAME}@main")
    told = refusal(check)
    assert "ASRGATE_OFFLINE is set" in told and f"{NAME}@COMMIT" in told
    monkeypatch.delenv("ASRGATE_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(check)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refusal(check)


def test_what_is_not_cached_names_the_command_that_fetches_it(cache: Path) -> None:
    told = refusal(check)
    assert f"has no {NAME}@{COMMIT}, and ASRGATE_OFFLINE is set" in told
    assert f"run `hf download {NAME} --revision {COMMIT}`, or unset ASRGATE_OFFLINE" in told
    cached(cache, FILES, missing={"tokenizer.json": b"{}"})
    assert f"has only a part of {NAME}@{COMMIT}" in refusal(check)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_or_refuses_is_one_clear_error(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    check()  # it may be downloaded later: listing what there is asks no hub
    assert not [path for path in online.asked if NAME in path]
    assert f"the hub has no model {NAME}" in refusal(TransformersAsr.model_identity)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    told = refusal(TransformersAsr.model_identity)
    assert "the hub cannot be reached" in told and "hf download" in told
    asked = len(online.asked)
    with pytest.raises(BackendUnavailable, match="nothing is downloaded here"):  # a worker's engine
        hub.folder(hub.HubModel(NAME, COMMIT), may_download=False)
    assert len(online.asked) == asked


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(NAME)
    folder.mkdir(parents=True)
    for name, content in (FILES | CARD).items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv(MODEL, NAME)
    check()
    assert TransformersAsr.model_identity().name == "tiny-speech"


@pytest.mark.parametrize("named", ["a folder/that is not there", "/nowhere/x", "./a/b/c"])
def test_what_is_neither_a_folder_nor_a_name_is_told(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODEL, named)
    assert "has no readable config.json" in refusal(check)


def test_an_engine_whose_model_cannot_be_had_costs_the_run_only_its_own_row(
    asrgate: Callable[..., int], tmp_path: Path, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = backends.describe("transformers-asr")
    monkeypatch.setattr("asrgate.backends.transformers_asr.require_torch", lambda _: None)
    assert described.brings_model
    assert asrgate("--backends", "transformers-asr@cpu", "--rounds", "1") == 1
    rows = {row["backend"]: row for row in record.read(tmp_path / "results" / "latest")["results"]}
    assert rows["honest"]["gate"]["ranked"]
    assert rows["transformers-asr"]["status"] == "unavailable"
    assert f"the hub has no model {NAME}" in rows["transformers-asr"]["error"]
