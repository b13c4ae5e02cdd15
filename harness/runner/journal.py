"""The journal of a run: one line a finished sample, so that a crash, a kill or a power cut loses none.

`journal.jsonl` lies in the run's folder while the run goes on and is removed once a complete run.json is
there. It is only ever appended to. Lines are JSON objects with `at`, when they were written, and one of:

    {"plan": {...}, "run_id", "started_at", "argv"}     the first line: what a resumed run must repeat; an
                                                argument that is not UTF-8 is {"hex": its bytes}
    {"attempt": {"host", "versions"}}                   a process began to measure
    {"sample": {...}, "variant"}                        as in the record, with the number of its attempt
    {"round": {...}}                                    as in the record
    {"failure": {"status", "error", "remedy"}, "variant"}   the variant is out of the run
    {"host": {...}}                             of a cluster, as in the record; a later line replaces it
    {"retry": {...}}                            of a cluster, as in the record

A line is handed to the system before the next call, so a kill or a crash of the process loses none. It
reaches the disk with the first line written a second after the last sync (`SYNC_SECONDS`), and at the end of
its round: a sync takes milliseconds, too many after every short clip. A power cut can cost what was measured
since; the next attempt measures it again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import jsonschema_rs

from asrgate.backends.base import AsrgateError
from asrgate.harness import record
from asrgate.harness.record_types import Attempt, ClusterHost, Retry, RoundRecord, Sample
from asrgate.harness.runner.plan import now

NAME = "journal.jsonl"
VERSION = 2  # 1 had other names for attempts
# History: 1 = first version.
SAMPLE = ("$defs", "result", "properties", "samples", "items")  # in the record's schema
SYNC_SECONDS = 1.0

_sync = getattr(os, "fdatasync", os.fsync)  # macOS has none; the file's length is synced by both


class JournalError(AsrgateError):
    """A run's journal cannot be read; the message says why and what to do."""


@dataclass
class Kept:
    """What a journal holds of a run that did not come to its end.

    Attributes:
        folder: the run's.
        head: the first line.
        attempts: record entries, oldest first; `finished_at` is when the attempt's last line was written.
        samples: variant -> record entries, in the order measured.
        rounds: record entries of the rounds that every variant came through.
        failures: variant -> status, error and remedy of those that are out.
        hosts: number -> record entry of a cluster's machine.
        retries: record entries of what was lost with a machine.
        size_bytes: length of the whole lines; what follows is a line that was cut off.
    """

    folder: Path
    head: dict[str, Any]
    attempts: list[Attempt] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosts: dict[int, ClusterHost] = field(default_factory=dict)
    retries: list[Retry] = field(default_factory=list)
    size_bytes: int = 0


class Journal:
    """An open journal, to add lines to.

    Raises, from every method that writes: RecordError, the disk is full or the folder not writable.
    """

    def __init__(self, folder: Path, size_bytes: int = 0):
        """Create the folder's journal, or open it to go on after its first `size_bytes` bytes."""
        self._path = folder / NAME
        self._synced = time.monotonic()
        try:
            # a link could lead to any file of the user's
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self._path, flags, 0o644)
            os.ftruncate(self._file, size_bytes)
            os.lseek(self._file, 0, os.SEEK_END)
            _sync_folder(folder)
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, kind: str, value: Mapping[str, Any], **beside: Any) -> None:
        """Append one line."""
        line = json.dumps({kind: value, **beside, "at": now()}, allow_nan=False).encode() + b"\n"
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[os.write(self._file, line) :]
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        try:
            self._sync()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file; the lines stay."""
        os.close(self._file)

    def remove(self) -> None:
        """Delete the file: run.json holds everything now."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _sync(self) -> None:
        _sync(self._file)
        self._synced = time.monotonic()

    def _unwritable(self, error: OSError) -> record.RecordError:
        return record.RecordError(f"cannot write {self._path}: {error.strerror}")


def as_kept(argument: str) -> str | dict[str, str]:
    """Return an argument as the first line holds it: JSON has no place for bytes that are not UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return {"hex": os.fsencode(argument).hex()}
    return argument


def read(folder: Path) -> Kept:
    """Read the journal of a run that did not come to its end.

    A last line that was cut off, or damaged by a power cut, is left out.

    Raises:
        JournalError: there is nothing to resume, or the journal is damaged before its end.
    """
    folder = folder.parent if folder.name == "run.json" else folder
    folder = folder.resolve()
    path = folder / NAME
    try:
        content = record.regular_file_bytes(path)
    except FileNotFoundError as error:
        raise JournalError(_nothing_to_resume(folder)) from error
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}") from error
    whole = content[: content.rfind(b"\n") + 1]
    lines = [_parsed(line) for line in whole.splitlines(keepends=True)]
    while lines and lines[-1] is None:
        lines.pop()
    kept_bytes = sum(len(line) for line in whole.splitlines(keepends=True)[: len(lines)])
    good = [line for line in lines if line is not None]
    if len(good) < len(lines):
        raise JournalError(
            f"line {lines.index(None) + 1} of {path} is damaged and other lines follow it, so it is unknown "
            "what was measured; run again, or remove that line and all lines after it"
        )
    if not good or "plan" not in good[0]:
        raise JournalError(f"{path} contains no plan: the run ended before it started measuring; run again")
    if good[0].get("journal_version") != VERSION:
        raise JournalError(
            f"{path} has journal_version {good[0].get('journal_version')!r}; this asrgate reads {VERSION}"
        )
    for number, line in enumerate(good, start=1):
        why = _fault(line, is_first=number == 1)
        if why:
            raise JournalError(f"line {number} of {path} is not as asrgate writes it{why}; start a new run")
    good[0]["argv"] = [
        part if isinstance(part, str) else os.fsdecode(bytes.fromhex(part["hex"])) for part in good[0]["argv"]
    ]
    return _sorted(Kept(folder, good[0], size_bytes=kept_bytes), good[1:])


def _fault(line: Mapping[str, Any], *, is_first: bool) -> str:
    """Say what is wrong with a line, or return ""."""
    kinds = [kind for kind in _validators() if kind in line]
    if len(kinds) != 1 or (kinds == ["plan"]) is not is_first:
        return f": it is of {' and '.join(kinds) or 'no known kind'}"
    first = next(iter(_validators()[kinds[0]].iter_errors(line)), None)
    if first is None:
        return ""
    return f", at {'/'.join(map(str, first.instance_path)) or 'the line'}: {first.message[:300]}"


@cache
def _validators() -> dict[str, Any]:
    """Return a validator for each kind of line."""
    text, an_object = {"type": "string"}, {"type": "object"}
    texts = {"type": "array", "items": text}
    run_id = record.schema_of("properties", "run_id")

    def fields(**needed: Any) -> dict[str, Any]:
        return {"type": "object", "required": [*needed], "properties": needed}

    argv = {"type": "array", "items": {"anyOf": [text, fields(hex={**text, "pattern": "^([0-9a-f]{2})*$"})]}}
    plan = fields(
        weights={"type": ["string", "null"]},
        settings=an_object,
        variants=texts,
        clips=an_object,
        versions=an_object,
    )
    failure = {
        "additionalProperties": False,
        **fields(status={"enum": ["error", "unavailable"]}, error=text, remedy={"type": ["string", "null"]}),
    }
    kinds = {
        "plan": fields(plan=plan, run_id=run_id, started_at=text, argv=argv),
        "attempt": fields(attempt=fields(host=an_object, versions=an_object)),
        "sample": fields(sample=record.schema_of(*SAMPLE), variant=text),
        "round": fields(round=record.schema_of("properties", "rounds", "items")),
        "failure": fields(failure=failure, variant=text),
        "host": fields(host=record.schema_of("properties", "hosts", "items")),
        "retry": fields(retry=record.schema_of("properties", "retries", "items")),
    }
    definitions = {"$defs": run_id["$defs"]}
    return {
        kind: jsonschema_rs.validator_for(definitions | {"allOf": [schema, fields(at=text)]})
        for kind, schema in kinds.items()
    }


def _sorted(kept: Kept, lines: list[dict[str, Any]]) -> Kept:
    for line in lines:
        if "attempt" in line:
            began = {"number": len(kept.attempts), "started_at": line["at"], "finished_at": None}
            kept.attempts.append(cast(Attempt, began | line["attempt"]))
        elif "sample" in line:
            kept.samples.setdefault(line["variant"], []).append(line["sample"])
        elif "round" in line:
            kept.rounds.append(line["round"])
        elif "failure" in line:
            kept.failures[line["variant"]] = line["failure"]
        elif "host" in line:
            kept.hosts[line["host"]["number"]] = line["host"]
        elif "retry" in line:
            kept.retries.append(line["retry"])
        if kept.attempts:
            kept.attempts[-1]["finished_at"] = line["at"]
    return kept


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = record.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _nothing_to_resume(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no run at {folder}; pass the folder of a run, results/NAME"
    try:
        is_complete = record.read(folder)["complete"]
    except record.RecordError:
        is_complete = False
    if is_complete:
        return f"the run in {folder} is complete: there is nothing to resume"
    return (
        f"{folder} has no {NAME}, so its run cannot be resumed: it ended before it started measuring, was "
        "made by an older asrgate, used the scenario server, or kept no texts (--no-texts); run again"
    )


def _sync_folder(folder: Path) -> None:
    """Make the file's name as durable as its lines."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)
