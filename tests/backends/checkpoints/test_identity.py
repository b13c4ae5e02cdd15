"""The same tensors are the same model, whatever file they come in and whatever it is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoint import DIMENSIONS, write_fake_checkpoint
from make_run import make_run
from paths import TINY_EN

from asrgate.backends.checkpoints import catalog
from asrgate.backends.checkpoints.catalog import CheckpointError, resolve
from asrgate.backends.checkpoints.file import read_tensors
from asrgate.backends.checkpoints.identity import file_tensors_sha256
from asrgate.backends.checkpoints.tensor_digest import as_float16, tensors_sha256
from asrgate.harness import record
from asrgate.harness.regression import preconditions
from asrgate.harness.report import context, history, readme
from asrgate.harness.scoring import gate


def content(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A checkpoint whose values are all exact in float16, stored as float16."""
    stored = content(write_fake_checkpoint(tmp_path / "first.pt"))
    stored["model_state_dict"] = {n: t.half() for n, t in stored["model_state_dict"].items()}
    path = tmp_path / "halves.pt"
    torch.save(stored, path)
    return path


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], name: str) -> Path:
    stored = content(path)
    change(stored)
    target = path.with_name(name)
    torch.save(stored, target)
    return target


def widen(stored: dict[str, Any]) -> None:
    stored["model_state_dict"] = {n: t.float() for n, t in stored["model_state_dict"].items()}


def turn_round(stored: dict[str, Any]) -> None:
    stored["model_state_dict"] = dict(reversed(list(stored["model_state_dict"].items())))


def change_one_bit(stored: dict[str, Any]) -> None:
    stored["model_state_dict"]["decoder.ln.bias"].view(torch.int16)[3] ^= 1


@pytest.fixture
def known(halves: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A catalogue in which `halves` is tiny.en by its tensors, though OpenAI's file has another hash."""
    url = f"http://127.0.0.1:9/{'1' * 64}/tiny.en.pt"
    monkeypatch.setattr(catalog, "openai_table", lambda variable: {"tiny.en": url})
    digest = file_tensors_sha256(halves)
    tables = {"tiny.en": {"tensors_sha256": digest, "dimensions": dict(DIMENSIONS)}}
    monkeypatch.setattr(catalog, "_catalog_file", lambda: {"openai": tables})
    monkeypatch.delenv("ASRGATE_WEIGHTS", raising=False)
    return digest


# --- the digest


def test_the_digest_is_what_its_definition_says() -> None:
    tensors = {"b": np.array([[1.5, -2.0]], np.float16), "a": np.array([0.1], np.float32)}
    spelled = b"a(1,)" + np.float32(0.1).tobytes() + b"b(1, 2)" + np.array([1.5, -2.0], "<f2").tobytes()
    assert tensors_sha256(sorted(tensors.items())) == hashlib.sha256(spelled).hexdigest()


def test_the_digest_depends_on_neither_order_nor_width_nor_name_of_the_file(halves: Path) -> None:
    digest = file_tensors_sha256(halves)
    for change in (widen, turn_round):
        other = rewritten(halves, change, f"{change.__name__}.pt")
        assert other.read_bytes() != halves.read_bytes()
        assert file_tensors_sha256(other) == digest


def test_one_bit_makes_another_model(halves: Path) -> None:
    assert file_tensors_sha256(rewritten(halves, change_one_bit, "bit.pt")) != file_tensors_sha256(halves)


def test_names_out_of_order_are_refused() -> None:
    one = np.zeros(1, np.float16)
    with pytest.raises(ValueError, match="order of the names"):
        tensors_sha256([("b", one), ("a", one)])
    with pytest.raises(ValueError, match="order of the names"):
        tensors_sha256([("a", one), ("a", one)])


@pytest.mark.parametrize(
    ("value", "is_exact"),
    [(1.0, True), (-0.0, True), (65_504.0, True), (65_520.0, False), (2.0**-24, True), (2.0**-26, False)]
    + [(0.1, False), (float("inf"), True)],
)
def test_float16_is_taken_only_where_it_loses_nothing(value: float, is_exact: bool) -> None:
    found = as_float16(np.array([1.0, value], np.float32))
    assert (found is not None) == is_exact
    if found is not None:
        assert found.astype(np.float32).tobytes() == np.array([1.0, value], np.float32).tobytes()


def test_a_changed_file_is_digested_again(halves: Path) -> None:
    before = file_tensors_sha256(halves)
    halves.write_bytes(rewritten(halves, change_one_bit, "bit.pt").read_bytes())
    assert file_tensors_sha256(halves) != before


@pytest.mark.skipif(
    not TINY_EN.exists(), reason=f"needs OpenAI's tiny.en at ../shared/weights/{TINY_EN.name}"
)
def test_openais_tiny_en_is_known_by_its_tensors() -> None:
    found = resolve(str(TINY_EN))
    entry = catalog.catalogue()["tiny.en"]
    assert (found.name, found.tensors_sha256) == ("tiny.en", entry.tensors_sha256)
    assert found.sha256 != entry.sha256, "the test needs a file that OpenAI did not write"


def test_the_bundled_model_has_the_digest_of_the_catalogue() -> None:
    entry = catalog.catalogue()["nano.en"]
    path = catalog.unpack(entry)
    assert tensors_sha256(read_tensors(path, by_name=True)) == entry.tensors_sha256
    assert resolve("nano.en").dimensions == entry.dimensions


# --- names


def test_a_file_goes_by_the_catalogues_name_if_it_is_that_model(halves: Path, known: str) -> None:
    for path in (halves, rewritten(halves, widen, "mine.pt")):
        found = resolve(str(path))
        assert (found.name, found.tensors_sha256, found.note) == ("tiny.en", known, "")


@pytest.mark.usefixtures("known")
def test_another_model_does_not_get_the_name(halves: Path) -> None:
    other = rewritten(halves, change_one_bit, "tiny.en.pt")
    found = resolve(str(other))
    assert (found.name, found.note) == (
        "tiny.en",
        "has the name of OpenAI's tiny.en, but is a different model",
    )
    assert resolve(str(rewritten(halves, change_one_bit, "mine.pt"))).name == "mine"


@pytest.mark.usefixtures("known")
def test_the_same_tensors_with_other_heads_are_another_model(halves: Path) -> None:
    def split_heads(stored: dict[str, Any]) -> None:
        stored["dims"]["n_text_head"] *= 2

    other = rewritten(halves, split_heads, "heads.pt")
    assert file_tensors_sha256(other) == file_tensors_sha256(halves)
    assert resolve(str(other)).name == "heads"


@pytest.mark.usefixtures("known")
def test_a_catalogue_name_finds_the_model_in_a_file_of_another_name(
    halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a-broken-one.pt").write_bytes(b"PK")
    write_fake_checkpoint(folder / "another.pt", seed=5)
    with monkeypatch.context() as patch:
        patch.setenv("ASRGATE_WEIGHTS", str(folder))
        with pytest.raises(CheckpointError, match="not on this machine"):
            resolve("tiny.en")
        (folder / "tiny.en-of-somebody.pt").write_bytes(halves.read_bytes())
        assert resolve("tiny.en").path == folder / "tiny.en-of-somebody.pt"


# --- runs


def runs_of(*digests: str | None) -> list[record.Run]:
    """Runs of files with hashes of their own, whose tensors have these digests."""
    made = []
    for number, digest in enumerate(digests):
        run = make_run()
        run["run_id"] = f"{run['run_id']}{number}"
        run["checkpoint"].update(sha256=f"{number}" * 64, tensors_sha256=digest)
        made.append(run)
    return made


def test_runs_of_the_same_tensors_are_comparable_and_share_a_table_and_a_history() -> None:
    first, second = runs_of("a" * 64, "a" * 64)
    assert preconditions.differences(first, second) == []
    assert len(history._groups([first, second])) == 1
    assert readme.readme_tables([first, second]).count("**tiny.en (tensors aaaaaaaaaaaa)**") == 1


def test_runs_of_other_tensors_are_not() -> None:
    first, second = runs_of("a" * 64, "b" * 64)
    assert [d.kind for d in preconditions.differences(first, second)] == ["checkpoint"]
    assert len(history._groups([first, second])) == 2


def test_runs_of_other_heads_are_not() -> None:
    first, second = runs_of("a" * 64, "a" * 64)
    second["checkpoint"]["dimensions"] = {**second["checkpoint"]["dimensions"], "n_text_head": 3}
    assert [d.kind for d in preconditions.differences(first, second)] == ["checkpoint"]


def test_a_run_older_than_the_digest_is_known_by_its_file(tmp_path: Path) -> None:
    older, newer = runs_of(None, "a" * 64)
    del older["checkpoint"]["tensors_sha256"]
    older["schema_version"] = 1
    (tmp_path / "run.json").write_text(json.dumps(older))
    read = record.read(tmp_path)
    assert read["schema_version"] == record.SCHEMA_VERSION
    assert "(file 000000000000)" in context.model(read)
    assert [d.kind for d in preconditions.differences(read, newer)] == ["checkpoint"]
    newer["checkpoint"]["sha256"] = read["checkpoint"]["sha256"]
    assert preconditions.differences(read, newer) == []


def test_a_backend_may_state_its_weights_by_file_or_by_tensors() -> None:
    (run,) = runs_of("a" * 64)
    for stated, refused in (("0" * 64, False), ("a" * 64, False), ("b" * 64, True)):
        result = {"applied_settings": {"checkpoint_sha256": stated}}
        assert bool(list(gate._weights(run, result))) == refused
