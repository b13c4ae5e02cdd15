"""The run record: one JSON document per run; its schema, and code to write, read and strip it of texts."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from asrgate.backends.base import AsrgateError
from asrgate.harness.record_types import ClipErrors, ProbeRecord, Result, Run, WordErrorRate

SCHEMA_VERSION = 4
# History: 1 = first version; 2 = checkpoint.tensors_sha256; 3 = wall_seconds of samples are by the
# parent's clock, the worker's are worker_seconds; wer.rounds. Older runs are read as of this version.

SCHEMA_PATH = Path(__file__).with_name("run.schema.json")


class RecordError(AsrgateError):
    """A run record cannot be read or written; the message says which and why."""


def text_sha256(text: str) -> str:
    """Return the hex SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def validate(run: Run) -> None:
    """Raise RecordError naming the first place where `run` violates the schema."""
    validator = _validator()
    try:
        errors = list(validator.iter_errors(run))
    except (
        ValueError
    ):  # values that Python can write as JSON but the validator does not know, such as numpy's floats
        try:
            errors = list(validator.iter_errors(json.loads(json.dumps(run))))
        except (TypeError, ValueError) as error:
            raise RecordError(f"the record cannot be written as JSON: {error}") from error
    first = min(errors, key=lambda error: len(error.instance_path), default=None)
    if first is not None:
        place = "/".join(str(part) for part in first.instance_path) or "the document"
        raise RecordError(f"the record violates its schema at {place}: {first.message[:300]}")


def read(path: Path) -> Run:
    """Read and validate a stored run; one with an older schema version is upgraded.

    Raises:
        RecordError: the file is missing, not JSON, of a later schema version, or not a valid record.
    """
    if path.is_dir():
        path = path / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"{path} is not JSON ({error}); expected a run.json that asrgate wrote") from error
    version = run.get("schema_version") if isinstance(run, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {version!r}; this asrgate reads versions 1 to {SCHEMA_VERSION}"
        )
    if version < 2 and isinstance(run.get("checkpoint"), dict):
        run["checkpoint"].setdefault("tensors_sha256", None)
    if version < 3:
        _upgrade_to_3(run)
    if version < 4:
        _upgrade_to_4(run)
    attempts = run.get("attempts")
    for part in [run, *(attempts if isinstance(attempts, list) else [])]:
        versions = part.get("versions") if isinstance(part, dict) else None
        if isinstance(versions, dict) and "asrbench" in versions:  # this project's name in version 0.1
            versions["asrgate"] = versions.pop("asrbench")
    run["schema_version"] = SCHEMA_VERSION
    validate(run)
    return run


def _upgrade_to_3(run: Any) -> None:
    """Turn a run of schema version 2, whose samples hold the times of two clocks, into one of version 3."""
    for result in run.get("results", []):
        for sample in result.get("samples", []):
            if sample.pop("roundtrip_seconds", None) is not None:
                sample["worker_seconds"] = sample.get("wall_seconds")
        (result.get("integrity") or {}).pop("clock_ratio", None)
        if result.get("wer"):
            result["wer"].setdefault("rounds", [])


def _upgrade_to_4(run: Any) -> None:
    """Turn a run of schema version 3 into one of version 4, which has other names for the same things."""
    if "sittings" in run:
        run["attempts"] = run.pop("sittings")
    samples = [sample for result in run.get("results", []) for sample in result.get("samples", [])]
    for entry in [*run.get("rounds", []), *samples]:
        if "sitting" in entry:
            entry["attempt"] = entry.pop("sitting")
    for host in run.get("hosts", []):
        if "places" in host:
            host["actors"] = host.pop("places")


def probes_of(result: Result) -> list[ProbeRecord]:
    """Return the copies that a result's engine was asked for; none if its timing was not checked."""
    return [] if result["integrity"] is None else result["integrity"]["probes"]


def errors_of(result: Result) -> list[ClipErrors]:
    """Return a result's errors clip by clip; none if no clip was answered."""
    return [] if result["wer"] is None else result["wer"]["per_clip"]


def is_same_model(one: Run, other: Run) -> bool:
    """Whether two runs had the same model: the same tensors and dimensions, whatever the files.

    If one of the runs is older than the digest of tensors, the files must be the same.
    """
    first, second = one["checkpoint"], other["checkpoint"]
    if first["tensors_sha256"] is None or second["tensors_sha256"] is None:
        return bool(first["sha256"] == second["sha256"])
    return all(first[name] == second[name] for name in ("tensors_sha256", "dimensions"))


def model_digest(run: Run) -> tuple[str, str]:
    """Return what identifies a run's model: ("tensors", digest) or ("file", digest)."""
    checkpoint = run["checkpoint"]
    digest = checkpoint["tensors_sha256"]
    return ("file", checkpoint["sha256"]) if digest is None else ("tensors", digest)


def dumps(run: Run) -> str:
    """Serialise a run as one strict JSON document (no NaN or Infinity)."""
    return json.dumps(run, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def write(run: Run, path: Path) -> None:
    """Validate and write atomically: a reader sees either the old file or the complete new one."""
    validate(run)
    write_text(path, dumps(run))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        RecordError: the folder cannot be written, or the disk is full.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RecordError(f"cannot write {path}: {error.strerror}") from error


def without_texts(run: Run) -> Run:
    """Return a copy with hashes and counts instead of references, transcripts and tokens."""
    run = copy.deepcopy(run)
    run["settings"]["texts"] = False
    run["settings"].pop("keywords", None)
    for clip in run["clips"]:
        clip["reference"] = None
        clip["tags"].pop("keywords", None)
    for result in run["results"]:
        _without_words(result["wer"])
        for probe in probes_of(result):
            probe["text"] = None
        for sample in result["samples"]:
            sample["text"] = sample["tokens"] = None
            for partial in sample.get("partials", []):
                partial["text"] = None
    return run


def _without_words(wer: WordErrorRate | None) -> None:
    """Remove the words of answers and references that are listed among a result's errors."""
    if wer is not None:
        wer.pop("confusions", None)
        if "second" in wer:
            wer["second"].pop("differences", None)


@cache
def _validator() -> Any:
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    # compiled: for a record of 100,000 clips jsonschema takes a minute and this half a second
    return jsonschema_rs.validator_for(schema)
