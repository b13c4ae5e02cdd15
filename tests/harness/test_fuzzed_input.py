"""Whatever a file or a message holds, reading it ends in a value or in its reader's one kind of error.

The inputs are made from valid ones, which are changed in a few places, and from nothing. They are the same in
every run; ASRGATE_FUZZ_EXAMPLES=N reads N others for each reader.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_run import make_run

from asrgate.harness import record
from asrgate.harness.corpus import audio, manifests
from asrgate.harness.corpus.audio import AudioError
from asrgate.harness.record import RecordError
from asrgate.harness.runner import journal
from asrgate.harness.runner.journal import JournalError
from asrgate.harness.scoring import gate, score
from asrgate.harness.worker import messages
from asrgate.harness.worker.messages import HEADER, Channel, Ended, MessageError

pytestmark = pytest.mark.slow

MANY = int(os.environ.get("ASRGATE_FUZZ_EXAMPLES", "0"))  # more than usual, and other ones each time


def search(examples: int) -> Callable[[Any], Any]:
    """Settings of a test that reads so many inputs."""
    return settings(
        max_examples=MANY or examples,
        derandomize=not MANY,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# --- inputs ---------------------------------------------------------------------------------------------

ODD_NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]
ODD_TEXTS = ["", "\0", "\ud800", "../../x", "/dev/zero", "9" * 5000, "en", "a\nb", "\u202e", "x" * 100_000]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.text(st.characters(), max_size=20),
)
KEYS = [
    "clips",
    "event",
    "error",
    "plan",
    "sample",
    "attempt",
    "variant",
    "lang",
    "keywords",
    "sittings",
    "id",
]
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all parts of a JSON value but the whole."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in parts for place in ((*at, key), *places(part, (*at, key)))]


def changed(value: Any, data: st.DataObject) -> Any:
    """A copy of a JSON value that is changed in up to three places."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        there = places(value)
        if not there:
            break
        *way, last = data.draw(st.sampled_from(there))
        part = value
        for key in way:
            part = part[key]
        how = data.draw(st.sampled_from(("replace", "replace", "remove", "double", "add")))
        if how == "remove":
            del part[last]
        elif how == "double" and isinstance(part, list):
            part.append(copy.deepcopy(part[last]))
        elif how == "add" and isinstance(part, dict):
            part[data.draw(st.sampled_from(KEYS) | st.text(st.characters(), max_size=8))] = data.draw(VALUES)
        else:
            part[last] = data.draw(VALUES)
    return value


def written(value: Any) -> bytes:
    """A value as JSON, with NaN, infinity and lone surrogates."""
    return json.dumps(value).encode()


EDITS = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "number", "cut", "end", "double", "insert")),
        st.integers(0, 1 << 16),
        st.binary(max_size=8),
        st.sampled_from((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, data: st.DataObject, within: int = 1 << 30) -> bytes:
    return edited(content, data.draw(EDITS), within)


def edited(content: bytes, edits: list[Any], within: int) -> bytes:
    """A copy of bytes of which some are overwritten, cut out, doubled or added among the first `within`."""
    made = bytearray(content)
    for how, place, some, odd, count in edits:
        at = place % (min(len(made), within) + 1)
        if how == "write":
            made[at : at + len(some)] = some
        elif how == "number":
            made[at : at + 4] = struct.pack("<I", odd)
        elif how == "cut":
            del made[at : at + count]
        elif how == "end":
            del made[at:]
        elif how == "double":
            made[at:at] = made[at : at + count]
        else:
            made[at:at] = some
    return bytes(made)


def scored() -> Any:
    run = make_run(references=3)
    score.score(run, replicates=20)
    gate.judge(run)
    return run


RUN = scored()
HEAD = {
    "plan": {"weights": None, "settings": {}, "variants": ["a@cpu/int8"], "clips": {}, "versions": {}},
    "run_id": "20260101-000000",
    "started_at": "2026-01-01T00:00:00+00:00",
    "argv": ["run", "--audio", "clips"],
    "journal_version": journal.VERSION,
    "at": "2026-01-01T00:00:00+00:00",
}
AT = {"at": HEAD["at"]}
JOURNAL = [
    HEAD,
    {"attempt": {"host": {}, "versions": {}}, **AT},
    {"variant": "a@cpu/int8", "sample": RUN["results"][0]["samples"][0], **AT},
    {"round": RUN["rounds"][0], **AT},
    {"failure": {"status": "error", "error": "no", "remedy": None}, "variant": "a@cpu/int8", **AT},
]
LINE = {
    "audio_filepath": "a.wav",
    "text": "one two",
    "offset": 0.5,
    "duration": 1.5,
    "lang": "en",
    "keywords": ["one"],
    "license": "CC0",
}
ANSWER = {
    "event": "answer",
    "text": "one",
    "tokens": [1, 2],
    "stage_seconds": {"encoder": 0.5},
    "error": None,
}
APPLIED = {"checkpoint_sha256": "ab", "threads": 1, "nested": {"a": [1, 2.5, None, True, "x"]}}


# --- readers --------------------------------------------------------------------------------------------


@search(400)
@given(data=st.data())
def test_records(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    content = written(changed(RUN, data))
    path.write_bytes(damaged(content, data) if data.draw(st.booleans()) else content)
    try:
        run = record.read(path)
    except RecordError as error:
        assert str(path) in str(error) or "schema" in str(error)
    else:
        record.validate(json.loads(record.dumps(run).encode()))  # what is read can be written


@search(400)
@given(data=st.data())
def test_journals(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    content = b"".join(written(line) + b"\n" for line in changed(JOURNAL, data))
    (folder / journal.NAME).write_bytes(damaged(content, data) if data.draw(st.booleans()) else content)
    try:
        kept = journal.read(folder)
    except (JournalError, RecordError) as error:
        str(error).encode()
    else:
        assert 0 < kept.size_bytes <= len(content) + 1000


@search(400)
@given(data=st.data())
def test_manifests(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    content = b"\n".join(written(changed(LINE, data)) for _ in range(3))
    path.write_bytes(damaged(content, data) if data.draw(st.booleans()) else content)
    problems: list[str] = []
    entries = manifests.read_manifest(path, problems)
    assert entries or problems
    assert all(problem.startswith(str(path)) for problem in problems)
    for entry in entries:
        json.dumps([entry.reference, entry.language, entry.tags], allow_nan=False).encode()


ENDINGS = ("wav", "float.wav", "rf64.wav", "ogg", "opus", "chained.ogg")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of valid files of half a second, one of each ending."""
    folder = tmp_path_factory.mktemp("sounds")
    tone = np.sin(np.arange(8000) / 10).astype(np.float32) / 4
    for ending, kind, subtype in (
        *(("wav", "WAV", "PCM_16"), ("float.wav", "WAV", "FLOAT"), ("rf64.wav", "RF64", "PCM_16")),
        *(("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS")),
    ):
        path = folder / f"sound.{ending}"
        soundfile.write(path, tone, 16_000, format=kind, subtype=subtype)
    (folder / "sound.chained.ogg").write_bytes((folder / "sound.ogg").read_bytes() * 2)
    return folder


@search(400)
@given(ending=st.sampled_from(ENDINGS), edits=EDITS, within=st.sampled_from((200, 1 << 30)))
def test_sounds(
    ending: str,
    edits: list[Any],
    within: int,
    sounds: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{ending}"
    path.write_bytes(edited((sounds / f"sound.{ending}").read_bytes(), edits, within))
    try:
        samples = audio.decode(path, max_hours=0.1)
    except AudioError as error:
        assert str(path) in str(error)
    else:
        assert samples.dtype == np.float32 and np.isfinite(samples).all()
        assert len(samples) <= 0.1 * 3600 * 16_000 + 16_000


@search(1500)
@given(data=st.data())
def test_messages(data: st.DataObject) -> None:
    content = written(changed(data.draw(st.sampled_from((ANSWER, {"event": "loaded", **APPLIED}))), data))
    if data.draw(st.booleans()):
        content = damaged(content, data)
    whole = HEADER.pack(len(content), 0) + content
    if data.draw(st.booleans()):
        whole = damaged(whole, data, 16)
    ours, theirs = socket.socketpair()
    channel = Channel(ours, ended=lambda: False)
    try:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setblocking(False)
        try:
            theirs.send(whole)
        finally:
            theirs.close()
        message = channel.receive(5)
        messages.event_of(message)
    except (Ended, MessageError):
        return
    finally:
        channel.close()
    for read in (messages.answer, messages.settings, messages.isolation):
        try:
            found = read(message)
        except MessageError as error:
            str(error).encode()
        else:
            json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@search(1500)
@given(data=st.data())
def test_parts_of_messages(data: st.DataObject) -> None:
    value = data.draw(VALUES)
    readers: list[Callable[[], Any]] = [
        lambda: messages.seconds(value, "it"),
        lambda: messages.count(value, "it"),
        lambda: messages.clean_text(value, "it"),
        lambda: messages.error_text(value),
        lambda: messages.settings({"it": value}),
        lambda: messages.settings(value),
        lambda: messages.isolation(value),
    ]
    for read in readers:
        try:
            found = read()
        except MessageError as error:
            str(error).encode()
        else:
            json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
