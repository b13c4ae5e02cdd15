"""What a worker sends is data: whatever it is, it costs that worker's row and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrgate.backends import Variant
from asrgate.backends.base import Settings
from asrgate.backends.checkpoints import catalog
from asrgate.harness.worker import messages
from asrgate.harness.worker.client import Worker, WorkerError
from asrgate.harness.worker.messages import HEADER, Channel, Ended, MessageError, Samples


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """The parent's end of a connection, and the other as a bare socket."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, ended=lambda: False)
    with contextlib.closing(channel), theirs:
        yield channel, theirs


def sent(theirs: socket.socket, body: bytes) -> None:
    theirs.sendall(HEADER.pack(len(body), 0) + body)


def test_a_message_arrives_as_it_was_sent(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    other = Channel(theirs)
    other.send({"event": "answer", "text": "Grüße", "tokens": [1, 2]})
    assert channel.receive(5) == {"event": "answer", "text": "Grüße", "tokens": [1, 2]}


@pytest.mark.parametrize("has_memory_files", [True, False])
def test_clips_arrive_whole_and_cannot_be_changed(
    monkeypatch: pytest.MonkeyPatch, has_memory_files: bool
) -> None:
    if has_memory_files and not messages.MEMORY_FILES:
        pytest.skip("this system has no memory files")
    monkeypatch.setattr(messages, "MEMORY_FILES", has_memory_files)
    ours, theirs = socket.socketpair()
    parent, worker = Channel(ours, ended=lambda: False), Channel(theirs)
    lengths = [0, 1, 100_000, *range(300)]  # more clips than a message can hold file descriptors
    clips = [np.arange(n, dtype=np.float32) for n in lengths]
    with Samples(clips) as ready:
        sender = threading.Thread(target=parent.send, args=({"do": "batch"}, ready))
        sender.start()
        message = worker.receive(5)
        sender.join()
    assert [clip.tolist() for clip in message["clips"]] == [clip.tolist() for clip in clips]
    for clip in message["clips"]:
        assert clip.dtype == np.float32 and not clip.flags.writeable
    parent.close()
    worker.close()


@pytest.mark.skipif(not messages.MEMORY_FILES, reason="this system has no memory files")
def test_the_memory_of_a_clip_is_sealed() -> None:
    with Samples([np.ones(1000, np.float32)]) as clips:
        with pytest.raises(PermissionError):
            os.pwrite(clips.descriptor, b"0000", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(clips.descriptor, 4)
        open_one = clips.descriptor
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(open_one)


@pytest.mark.skipif(not messages.MEMORY_FILES, reason="this system has no memory files")
def test_no_call_leaves_a_descriptor_open(model: Path, tmp_path: Path) -> None:
    worker = Worker(Variant("deaf", "cpu", "float32"), tmp_path / "log", threads=1, timeout_seconds=60)
    audio = np.zeros(16_000, np.float32)
    try:
        worker.load(catalog.resolve(str(model)), Settings(threads=1))
        before = os.listdir("/proc/self/fd")
        worker.call(audio, "en", "answering")
        worker.stream(audio, "en", "streaming", chunk_seconds=0.1, is_paced=False)
        with pytest.raises(WorkerError):
            worker.examine("decision", audio, "examining")
        assert os.listdir("/proc/self/fd") == before
    finally:
        worker.stop()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"not json", "what is not JSON"),
        (b"[1, 2]", "a list where an object was due"),
        (b"[" * 200_000, "what is not JSON: RecursionError"),
        (b'{"n": ' + b"9" * 5000 + b"}", "what is not JSON"),
        (b"\xff\xfe", "what is not JSON"),
    ],
)
def test_what_is_no_message_is_refused(ends: tuple[Channel, socket.socket], body: bytes, words: str) -> None:
    channel, theirs = ends
    sender = threading.Thread(target=sent, args=(theirs, body))
    sender.start()
    with pytest.raises(MessageError, match=words):
        channel.receive(5)
    sender.join()


@pytest.mark.parametrize("clips", [7, ["a"], [1 << 40], None])
def test_no_clips_are_taken_from_a_worker(ends: tuple[Channel, socket.socket], clips: Any) -> None:
    channel, theirs = ends
    sent(theirs, json.dumps({"event": "answer", "text": "", "clips": clips}).encode())
    assert channel.receive(5)["clips"] == clips


def test_a_message_is_not_read_that_claims_to_be_huge(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(HEADER.pack(1 << 31, 0))
    with pytest.raises(MessageError, match=r"a message of 2,147,483,648 bytes, more than 8,388,608"):
        channel.receive(5)


def test_a_message_that_is_begun_and_not_finished_is_waited_for_no_longer_than_allowed(
    ends: tuple[Channel, socket.socket],
) -> None:
    channel, theirs = ends
    stop = threading.Event()

    def drip() -> None:
        theirs.sendall(HEADER.pack(1_000_000, 0))  # at this pace it takes hours
        while not stop.wait(0.02):
            theirs.sendall(b" ")

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        channel.receive(0.3)
    assert time.monotonic() - began < 200
    stop.set()
    dripping.join()


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_end_of_a_process_is_seen_though_another_holds_its_socket(has_pidfd: bool) -> None:
    """A worker's child may live on and keep the connection open."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    pidfd = os.pidfd_open(process.pid) if has_pidfd else -1
    channel = Channel(ours, lambda: process.poll() is not None, pidfd)
    began = time.monotonic()
    with pytest.raises(Ended):
        channel.receive(280)
    assert time.monotonic() - began < 200
    process.wait()
    channel.close()
    theirs.close()


def test_what_a_process_sent_before_its_end_is_read() -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    sent(theirs, b'{"event": "answer"}')
    channel = Channel(ours, lambda: True)
    assert channel.receive(5) == {"event": "answer"}
    with pytest.raises(Ended):
        channel.receive(5)
    channel.close()
    theirs.close()


GOOD = {"text": "red", "tokens": [1], "stage_seconds": {"encode": 0.5}, "error": None}


@pytest.mark.parametrize(
    "change",
    [
        {"text": None},
        {"text": 5},
        {"text": "\ud800"},
        {"text": "x" * (messages.LARGEST_TEXT + 1)},
        {"tokens": "red"},
        {"tokens": [-1]},
        {"tokens": [True]},
        {"tokens": [1.5]},
        {"tokens": [1 << 31]},
        {"stage_seconds": []},
        {"stage_seconds": {"encode": -1}},
        {"stage_seconds": {"encode": float("nan")}},
        {"stage_seconds": {"encode": float("inf")}},
        {"stage_seconds": {"encode": 10**400}},
        {"stage_seconds": {"encode": True}},
        {"stage_seconds": {"encode": "1"}},
        {"stage_seconds": {"\udfff": 1.0}},
        {"stage_seconds": {str(n): 0.0 for n in range(messages.MOST_ENTRIES + 1)}},
    ],
    ids=str,
)
def test_an_answer_with_anything_else_is_refused(change: dict[str, Any]) -> None:
    assert messages.answer(GOOD) == GOOD
    with pytest.raises(MessageError) as refused:
        messages.answer(GOOD | change)
    str(refused.value).encode()


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "applied",
    [
        None,
        [],
        {"a": float("inf")},
        {"a": float("nan")},
        {"a": "\ud800"},
        {"\ud800": 1},
        {"a": deep(messages.DEEPEST + 1)},
        {"a": 1 << 70},
        {"a": list(range(messages.MOST_ENTRIES + 1))},
        {"checkpoint_sha256": 5},
        {str(n): n for n in range(messages.MOST_ENTRIES + 1)},
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_no_record_could_hold_are_refused(applied: Any) -> None:
    with pytest.raises(MessageError):
        messages.settings(applied)


def test_plain_settings_are_taken() -> None:
    applied = {"beam_size": 1, "language": None, "x": [1, 2.5, {"deep": ["text"]}], "checkpoint_sha256": "a"}
    assert messages.settings(applied) == applied


def test_an_error_is_cut_and_made_visible() -> None:
    shown = messages.error_text("\ud800" + "x" * 50_000_000)
    assert shown.startswith("\\ud800xxx") and shown.endswith("… (50,000,001 characters)")
    assert len(shown) < messages.LARGEST_ERROR + 100
    assert messages.error_text({"a": 10**6000}).startswith("a very large dict")


# --- a worker that sends it: an error in its own row, and the run goes on

HOSTILE = {
    "nan-setting": "inf in setting 'beam_size'",
    "surrogate-setting": "what is no Unicode text as setting 'task'",
    "nan-seconds": "nan as the seconds of stage 'encode'",
    "no-json": "what is not JSON",
    "a-list": "a list where an object was due",
    "no-event": "a message that names no event",
    "other-event": "'settled' where 'answer' was due",
    "half-a-message": "no answer within 15 s while answering clip",
    "child-holds-socket": "the worker exited with code 3",
    "huge-text": "characters as the text, more than 1,000,000",
}


@pytest.mark.slow
def test_whatever_a_worker_sends_ends_its_row_and_not_the_run(
    asrgate: Callable[..., int], tmp_path: Path
) -> None:
    names = ",".join(f"sends-{name}" for name in HOSTILE)
    assert asrgate("--backends", f"twin,{names}", "--rounds", "1", "--warmup", "0", "--timeout", "15") == 1
    run = json.loads((tmp_path / "results" / "latest" / "run.json").read_text())
    assert run["complete"]
    found = {result["backend"]: result for result in run["results"]}
    assert found["twin"]["gate"]["ranked"]
    for name, words in HOSTILE.items():
        result = found[f"sends-{name}"]
        assert result["status"] == "error" and words in result["error"], (name, result["error"])
