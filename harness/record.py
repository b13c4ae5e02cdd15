"""The run record: one JSON document per run; its schema, and code to write, read and strip it of texts."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from asrgate.backends.base import AsrgateError
from asrgate.harness.record_types import (
    CheckpointRecord,
    ClipErrors,
    ProbeRecord,
    Result,
    Run,
    WordErrorRate,
)

SCHEMA_VERSION = 6
# History: 1 = first version; 2 = checkpoint.tensors_sha256; 3 = wall_seconds of samples are by the parent's
# clock, the worker's are worker_seconds; wer.rounds; 4 = attempts and actors, which had other names, and
# altered copies of clips from the second round on; 5 = digest; 6 = models, where rows have several. Older
# runs are read as of this version.

# What follows from the rest, or says how it is shown: the same measurement has the same digest whenever it is
# scored again.
_DERIVED_OF_RUN = (
    *("digest", "schema_version", "scoring", "warnings", "settings", "clips", "results", "across"),
)
_COUNTED = ("reference_words", "text_words")
_MEASURED_OF_RESULT = (
    *("variant", "model", "backend", "device", "precision", "status", "error", "killed_by"),
    *("applied_settings", "isolation", "load", "resources", "integrity", "audit", "word_answers"),
)

TEXTS_IN_TAGS = ("keywords", "words", "alignment")  # of what is said, in fields of a clip

FILE_LIMIT_BYTES = 1 << 30  # 100,000 clips in seven rounds take half of it
LARGEST_INTEGER = (1 << 64) - 1
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # the only way in: bytes of one are no UTF-8

SCHEMA_PATH = Path(__file__).with_name("run.schema.json")


class RecordError(AsrgateError):
    """A run record cannot be read or written; the message says which and why."""


# What code that reads a record raises if its values contradict each other in a way that `read` does not know.
DOCTORED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def doctored(error: Exception) -> str:
    """Return one of DOCTORED in words, with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"its values fit no run that asrgate writes ({type(error).__name__}: {str(error)[:200]}, "
        f"in {Path(last.filename).name}:{last.lineno})"
    )


def text_sha256(text: str) -> str:
    """Return the hex SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(run: Run) -> str:
    """Return the hex SHA-256 of what a run measured: host, settings, checkpoint, clips, samples and texts.

    One line of JSON for each part, clip, result and sample: keys sorted, no blanks, ASCII, whole numbers
    without a point. What is derived from them (errors, figures, verdicts) is not in it. It tells accidents
    and careless edits, no forger: whoever can write the record can write another digest.
    """
    sha256 = hashlib.sha256()
    for part in _measured(run):
        line = json.dumps(_canonical(part), sort_keys=True, separators=(",", ":"), allow_nan=False)
        sha256.update(line.encode() + b"\n")
    return sha256.hexdigest()


def _measured(run: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield _without(run, *_DERIVED_OF_RUN)
    yield _without(run["settings"], "slices")
    yield from run["clips"]
    for result in run["results"]:
        yield {name: value for name, value in result.items() if name in _MEASURED_OF_RESULT}
        yield from result["samples"]


def _without(part: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in names}


def _canonical(value: Any) -> Any:
    """Return a value without the words counted in its texts, in which 1.0 is 1, as others write it."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(name): _canonical(item) for name, item in value.items() if name not in _COUNTED}
    return [_canonical(item) for item in value] if isinstance(value, (list, tuple)) else value


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


def regular_file_bytes(path: Path, limit_bytes: int = FILE_LIMIT_BYTES) -> bytes:
    """Return what a file holds.

    Raises:
        RecordError: it is a folder, a pipe, a device or larger than the limit.
        OSError: it cannot be read.
    """
    # without O_NONBLOCK, opening a pipe waits for its writer
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise RecordError(f"cannot read {path}: it is not a regular file")
        if found.st_size > limit_bytes:
            raise RecordError(
                f"cannot read {path}: it has {found.st_size:,} bytes, and at most {limit_bytes:,} are read"
            )
        return file.read(limit_bytes)


def loads(text: str | bytes) -> Any:
    """Return the value of strict JSON; a field that is a whole number is an int, even if it is written 1.0.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has a number that is not finite or too large, or
            half of a surrogate pair.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite, object_hook=_whole_numbers)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a surrogate pair, which is not valid text") from error
    return value


def read(path: Path) -> Run:
    """Read and validate a stored run; one with an older schema version is upgraded.

    Raises:
        RecordError: the file is missing, not a regular file, too large, not JSON, of a later schema version,
            not a valid record, one that contradicts itself, or not what its digest is of.
    """
    if path.is_dir():
        path = path / "run.json"
    try:
        content = regular_file_bytes(path)
        run = loads(content)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(
            f"{path} is not JSON ({str(error)[:300]}); expected a run.json that asrgate wrote"
        ) from error
    version = run.get("schema_version") if isinstance(run, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {version!r}; this asrgate reads versions 1 to {SCHEMA_VERSION}"
        )
    try:
        _upgrade(run, version)
    except (AttributeError, TypeError) as error:
        raise RecordError(f"{path}: the record violates the schema of version {version}") from error
    run["schema_version"] = SCHEMA_VERSION
    validate(run)
    contradiction = next(_contradictions(run), None)
    if contradiction is not None:
        raise RecordError(
            f"{path} contradicts itself: {contradiction}; it was changed after asrgate wrote it"
        )
    if "digest" in run and run["digest"] != digest_of(run):
        raise RecordError(
            f"{path} does not hold what its digest {run['digest']:.12}… is of: it was changed after asrgate "
            "wrote it, or damaged. Take it again from where it was stored first, or measure again"
        )
    return run


def _contradictions(run: Run) -> Iterator[str]:
    """Yield what no run can have measured, although the schema allows it."""
    names = [clip["name"] for clip in run["clips"]]
    known = set(names)
    if len(known) < len(names):
        yield "two clips have the same name"
    variants = [row["variant"] for row in run["results"]]
    if len(set(variants)) < len(variants):
        yield "two rows have the same variant"
    yield from _model_contradictions(run)
    across = run.get("across")
    if across is not None:
        named = [place["variant"] for place in (*across["front"], *across["memory_front"])]
        named += [name for beaten in across["beaten"] for name in (beaten["variant"], beaten["by"])]
        named += [name for answer in across["answers"] for name in (answer["variant"], *answer["alike"])]
        unknown = next((name for name in named if name not in variants), None)
        if unknown is not None:
            yield f"across names {unknown[:100]!r}, which is none of its rows"
    for row in run["results"]:
        clips = [*(s["clip"] for s in row["samples"]), *(p["clip"] for p in probes_of(row))]
        if row["wer"] is not None:
            clips += [*row["wer"]["unstable_clips"], *(entry["clip"] for entry in row["wer"]["per_clip"])]
        unknown = next((name for name in clips if name not in known), None)
        if unknown is not None:
            yield f"{row['variant']} has a figure of {unknown[:100]!r}, which is none of its clips"


def _model_contradictions(run: Run) -> Iterator[str]:
    models = [model["name"] for model in run.get("models", [])]
    if len(set(models)) < len(models):
        yield "two models have the same name"
    for row in run["results"]:
        model = row.get("model")
        if model is None and models and row["status"] != "unavailable":
            yield f"{row['variant']} names none of the run's models"
        if model is not None and model not in models:
            yield f"{row['variant']} has the model {model[:100]!r}, which is none of the run's"
        elif model is not None and f":{model}" not in row["variant"]:
            yield f"{row['variant']} does not say its model {model[:100]!r}"


def _upgrade(run: Any, version: int) -> None:
    """Turn a run of an older schema version into one of this version."""
    if version < 2:
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
    for sample in samples:
        if sample.get("wall_seconds", 0) is None:  # of a call that failed
            sample["wall_seconds"] = 0.0
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


def models(run: Run) -> list[CheckpointRecord]:
    """Return the models that a run's rows have, in its order."""
    return run.get("models", [run["checkpoint"]])


def model_of(run: Run, result: Result) -> CheckpointRecord:
    """Return the model of a row."""
    return next((model for model in models(run) if model["name"] == result.get("model")), run["checkpoint"])


def is_of_engine(run: Run, result: Result) -> bool:
    """Whether a row's engine brings its model along, so that no reference has the same one."""
    return "identity" in model_of(run, result)


def without_model(result: Result) -> str:
    """Return a row's name without its model."""
    model = result.get("model")
    return result["variant"].replace(f":{model}", "", 1) if model else result["variant"]


def reference_name(run: Run, result: Result) -> str:
    """Return the name that the reference's row with a row's model has, whether or not there is one."""
    model = result.get("model")
    return f"{run['settings']['reference']}:{model}" if model else run["settings"]["reference"]


def reference_of(run: Run, result: Result) -> Result | None:
    """Return the row that a row is compared with, the reference with the same model, or None."""
    name = reference_name(run, result)
    return next((other for other in run["results"] if other["variant"] == name), None)


def is_same_model(one: CheckpointRecord, other: CheckpointRecord) -> bool:
    """Whether two models are the same: the same tensors and dimensions, whatever the files.

    If one of the runs is older than the digest of tensors, the files must be the same.
    """
    if one["tensors_sha256"] is None or other["tensors_sha256"] is None:
        return bool(one["sha256"] == other["sha256"])
    return all(one[name] == other[name] for name in ("tensors_sha256", "dimensions"))


def model_digest(checkpoint: CheckpointRecord) -> tuple[str, str]:
    """Return what identifies a model: ("tensors", digest) or ("file", digest)."""
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
    """Write a text file atomically, in UTF-8.

    Raises:
        RecordError: as `write_bytes`.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        RecordError: the folder cannot be written, or the disk is full.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from error
    finally:  # a signal may come at any time
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what writers of files in a folder left when they were killed."""
    for left in folder.glob(f".*.{'[a-z0-9_]' * 8}"):  # as tempfile names them
        with contextlib.suppress(OSError):
            left.unlink()


def without_texts(run: Run) -> Run:
    """Return a copy with hashes and counts instead of references, transcripts and tokens."""
    run = copy.deepcopy(run)
    run["settings"]["texts"] = False
    run["settings"].pop("keywords", None)
    for clip in run["clips"]:
        clip["reference"] = None
        for field in TEXTS_IN_TAGS:
            clip["tags"].pop(field, None)
    for result in run["results"]:
        _without_words(result["wer"])
        for answer in result["word_answers"]["answers"] if "word_answers" in result else []:
            answer["text"] = None
            for word in answer["words"]:
                word["word"] = None
        for probe in probes_of(result):
            probe["text"] = None
        for sample in result["samples"]:
            sample["text"] = sample["tokens"] = None
            for partial in sample.get("partials", []):
                partial["text"] = None
    if "digest" in run:
        run["digest"] = digest_of(run)
    return run


def _without_words(wer: WordErrorRate | None) -> None:
    """Remove the words of answers and references that are listed among a result's errors."""
    if wer is not None:
        wer.pop("confusions", None)
        if "second" in wer:
            wer["second"].pop("differences", None)


def _not_finite(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _whole_numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Make an int of each whole number that the schema asks for; for the schema, 1.0 is one as well."""
    for name in _integer_names() & found.keys():
        value = found[name]
        if isinstance(value, float) and value.is_integer():
            value = found[name] = int(value)
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"{name} is too large a number")
    return found


@cache
def _integer_names() -> frozenset[str]:
    """Return the names of fields that are whole numbers in the schema, and nowhere other numbers."""
    whole: set[str] = set()
    others: set[str] = set()

    def visit(part: Any) -> None:
        if isinstance(part, dict):
            for name, field in part.get("properties", {}).items():
                kinds = {field["type"]} if isinstance(field.get("type"), str) else set(field.get("type", ()))
                if kinds and kinds <= {"integer", "null"}:
                    whole.add(name)
                elif "number" in kinds:
                    others.add(name)
        for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            visit(value)

    visit(_schema())
    return frozenset(whole - others)


def schema_of(*path: str) -> dict[str, Any]:
    """Return a part of the record's schema by itself, such as `schema_of("properties", "run_id")`."""
    part = _schema()
    for name in path:
        part = part[name]
    return {"$defs": _schema()["$defs"], **part}


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    return schema


@cache
def _validator() -> Any:
    # compiled: for a record of 100,000 clips jsonschema takes a minute and this half a second
    return jsonschema_rs.validator_for(_schema())
