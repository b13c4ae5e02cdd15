"""Who measures opens no file of weights itself: a process with limits of memory and time does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_checkpoint import DIMENSIONS, write_fake_checkpoint

from asrgate.backends.checkpoints import apart, catalog, containers, exchanged, file, identity
from asrgate.backends.checkpoints.cache import cache_dir
from asrgate.backends.checkpoints.file import CheckpointError

SERVES = "from asrgate.backends import child_process\nfrom asrgate.backends.checkpoints import apart\n"


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return what `apart.answer` makes of a module with this code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def answer(code: str) -> Any:
        (tmp_path / "asked.py").write_text(code)
        return apart.answer("asked", size_bytes=0)

    return answer


def test_nothing_opens_a_checkpoint_in_this_process(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = dict(file.read_tensors(model))

    def opened(*_: Any) -> None:
        raise AssertionError("opened in the process that measures")

    with monkeypatch.context() as patch:
        patch.setattr(file.zipfile.ZipFile, "__init__", opened)
        patch.setattr(file._InertUnpickler, "load", opened)
        checkpoint = catalog.resolve(str(model))
        assert catalog.identified(model) is None
        assert identity.identity_now(model) == (DIMENSIONS, checkpoint.tensors_sha256)
        derived = exchanged.derive(checkpoint, tmp_path, 1)
        containers.export(checkpoint, "npz", tmp_path / "exported.npz")
        containers.import_file(model, tmp_path / "imported.pt")
    assert dict(file.read_tensors(derived.path)).keys() == tensors.keys()
    with np.load(tmp_path / "exported.npz", allow_pickle=False) as exported:
        assert all(np.array_equal(exported[name], values) for name, values in tensors.items())


def test_more_memory_than_allowed_is_an_error_in_words(answered: Callable[[str], Any]) -> None:
    code = "work = lambda: (child_process.limit_memory(64 << 20), len(bytearray({} << 20)))[1]\n"
    code += "apart.serve(work, 'm.pt')"
    assert answered(SERVES + code.format(16)) == 16 << 20
    with pytest.raises(CheckpointError, match=r"^m.pt takes more memory than weights of its size need"):
        answered(SERVES + code.format(128))


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.kill(os.getpid(), 9)",
        "import os; os._exit(0)",
        "print('no JSON')",
        "print('[1]')",
        "print('[' * 500_000)",
        "print('{\"failed\": 3}')",
        "print(' ' * (2 << 20), '{\"answer\": 1}')",
        "import sys; sys.stdout.buffer.write(bytes([255]) * 10)",
    ],
)
def test_a_process_that_does_not_answer_says_how_it_ended(answered: Callable[[str], Any], code: str) -> None:
    how = (
        "was killed; is there enough memory" if "os.kill" in code else r"without an answer \(exit code \d+\)"
    )
    with pytest.raises(CheckpointError, match=how):
        answered(code)


def test_a_process_that_hangs_is_ended(
    answered: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "START_SECONDS", 0.5)
    hangs = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    before_seconds = time.monotonic()
    with pytest.raises(CheckpointError, match=r"was ended after 0 s"):
        answered(hangs)
    assert time.monotonic() - before_seconds < 300
    if (tmp_path / "pid").exists():  # it may have been ended before it wrote that
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_what_libraries_print_is_no_part_of_the_answer(answered: Callable[[str], Any]) -> None:
    code = "import os\napart.serve(lambda: (print('a banner'), os.system('echo another'), [1, 2])[2], 'm.pt')"
    assert answered(SERVES + code) == [1, 2]


def test_an_error_that_nobody_foresaw_names_the_file_and_is_cut(answered: Callable[[str], Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^m.pt cannot be read: ZeroDivisionError: division by zero$"):
        answered(SERVES + "apart.serve(lambda: 1 / 0, 'm.pt')")
    with pytest.raises(CheckpointError) as caught:
        answered(SERVES + "apart.serve(lambda: int('x' * 100_000), 'm.pt')")
    assert len(str(caught.value)) <= apart.LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "must be exactly Whisper's ten"),
        ({**DIMENSIONS, "n_vocab": 5}, "n_vocab is 5; Whisper has"),
        ({**DIMENSIONS, "n_text_layer": 1e400}, "n_text_layer is inf, not a plausible"),
    ],
)
def test_the_answer_is_checked_like_any_other_data(
    model: Path, monkeypatch: pytest.MonkeyPatch, said: Any, message: str
) -> None:
    monkeypatch.setattr(apart, "answer", lambda *_, **__: said)
    with pytest.raises(CheckpointError, match=message):
        identity.dimensions_of(model)
    monkeypatch.setattr(apart, "answer", lambda *_, **__: {"dimensions": said, "tensors_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=message):
        identity.identity_now(model)
    monkeypatch.setattr(apart, "answer", lambda *_, **__: {"dimensions": DIMENSIONS, "tensors_sha256": said})
    with pytest.raises(CheckpointError, match="gave no digest"):
        identity.identity_now(model)


def test_dimensions_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_fake_checkpoint(tmp_path / "m.pt")
    asked = []
    answer = apart.answer
    monkeypatch.setattr(apart, "answer", lambda *a, **k: (asked.append(a), answer(*a, **k))[1])
    for _ in range(2):
        assert identity.dimensions_of(model) == DIMENSIONS
    assert len(asked) == 1
    (note,) = (cache_dir() / f"dimensions-{identity.CHECKS_VERSION}").iterdir()
    stored = json.loads(note.read_text())
    for broken in ("{}", "[" * 100_000, json.dumps({**DIMENSIONS, "n_vocab": 1})):
        note.write_text(json.dumps({**stored, note.parent.name: broken}))
        assert identity.dimensions_of(model) == DIMENSIONS
    os.utime(model, ns=(1, 1))
    asked.clear()
    assert identity.dimensions_of(model) == DIMENSIONS
    assert len(asked) == 1


def test_a_path_that_is_not_utf8_reaches_the_process_and_comes_back(tmp_path: Path) -> None:
    path = write_fake_checkpoint(tmp_path / os.fsdecode(b"\xff.pt"))
    assert identity.dimensions_of(path) == DIMENSIONS
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError) as caught:
        identity.dimensions_of(path)
    assert str(path) in str(caught.value)
