"""`asrgate run --resume`: go on with a run that was cut off, if it would be the same run."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from asrgate.backends.base import AsrgateError
from asrgate.harness.record import model_digest
from asrgate.harness.record_types import Attempt, Run
from asrgate.harness.runner.journal import Kept
from asrgate.harness.runner.plan import now

CHOICES = (
    "resume",
    "output",
    "json",
    "quiet",
    "log_format",
    "ray_address",
    "workers",
)  # what may stand beside --resume
NAMES_SHOWN = 3
OWN_VERSIONS = ("git_commit", "git_dirty")  # of the checkout: told in the record, no reason to refuse


class ResumeError(AsrgateError):
    """A run cannot be resumed as asked; the message says why and what to do."""


def arguments(kept: Kept, asked: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments the run was started with, with the output that is asked for now.

    Args:
        parser: knows `run` and its arguments.

    Raises:
        ResumeError: others are given beside --resume, or the run was not one of `asrgate run`.
    """
    default = parser.parse_args(["run"])
    changed = [
        f"--{name.rstrip('s') if name == 'slices' else name}".replace("_", "-")
        for name in vars(default)
        if name not in CHOICES and getattr(asked, name) != getattr(default, name)
    ]
    if changed:
        raise ResumeError(
            f"--resume takes all arguments from the run that it resumes; leave out {', '.join(changed)}, "
            "or start a new run"
        )
    argv = kept.head["argv"]
    if argv[:1] != ["run"]:
        command = " ".join(["asrgate", *argv[:1]])
        raise ResumeError(
            f"{kept.folder} was made by `{command}`, not by `asrgate run`; start that command again"
        )
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            before = parser.parse_args(argv)
    except SystemExit as error:
        raise ResumeError(
            f"the journal of {kept.folder} has arguments that asrgate run does not take; start a new run"
        ) from error
    if before.ray_address is not None and asked.ray_address is None:
        raise ResumeError(  # a cluster runs code here, and the journal may be somebody else's
            f"the run in {kept.folder} used the cluster {before.ray_address}; pass --ray-address again"
        )
    outside = [path for path in before.output if not _is_below(path, kept.folder)]
    if outside and not asked.output:
        raise ResumeError(
            f"the run in {kept.folder} was to write {', '.join(map(str, outside))}, outside its folder; "
            "a resumed run writes such files only if --output names them: pass --output again"
        )
    for name in CHOICES:
        setattr(before, name, getattr(asked, name) or getattr(before, name))
    before.argv, before.results = argv, kept.folder.parent
    return before


def _is_below(path: Path, folder: Path) -> bool:
    # realpath, because Path.resolve raises an error for circular links
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def fingerprint(blank: Run) -> dict[str, Any]:
    """Return what must be the same in every attempt, from a run's record before it began."""
    return {
        "weights": blank["checkpoint"]["tensors_sha256"],
        "models": {model["name"]: model_digest(model)[1] for model in blank.get("models", [])},
        "settings": blank["settings"] | {"normalizer": blank["scoring"]["normalizer"]},
        "variants": [row["variant"] for row in blank["results"] if row["status"] != "unavailable"],
        "clips": {
            clip["name"]: [clip["sha256"], clip["language"], clip["reference_sha256"]]
            for clip in blank["clips"]
        },
        "versions": {name: v for name, v in blank["versions"].items() if name not in OWN_VERSIONS},
    }


def check(kept: Kept, blank: Run) -> None:
    """Raise ResumeError when the run would not be the one that was cut off."""
    before, after = kept.head["plan"], json.loads(json.dumps(fingerprint(blank)))
    found = list(_differences(before, after))
    if found:
        listed = "".join(f"\n  {line}" for line in found)
        raise ResumeError(
            f"{kept.folder} cannot be resumed, because it would not be the same run:{listed}\n"
            "undo these changes, or start a new run"
        )


def restore(blank: Run, kept: Kept) -> set[tuple[str, int, str]]:
    """Put what was kept into the record; return (variant, round, clip) of each sample that is done."""
    blank["started_at"] = kept.head["started_at"]
    blank["rounds"] = list(kept.rounds)
    if "hosts" in blank:
        blank["hosts"], blank["retries"] = list(kept.hosts.values()), list(kept.retries)
    began: Attempt = {
        "number": len(kept.attempts),
        "started_at": now(),
        "finished_at": None,
        "host": blank["host"],
        "versions": blank["versions"],
    }
    blank["attempts"] = [*kept.attempts, began]
    done = set()
    for row in blank["results"]:
        row["samples"] = list(kept.samples.get(row["variant"], []))
        row.update(cast(Any, kept.failures.get(row["variant"], {})))
        done |= {(row["variant"], sample["round"], sample["clip"]) for sample in row["samples"]}
    return done


def _models(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({digest:.12}…)" for name, digest in found.items()) or "one"


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if before["weights"] != after["weights"]:
        yield f"weights: tensors {before['weights']:.12}… then, {after['weights']:.12}… now"
    elif before.get("models", {}) != after["models"]:
        yield f"models: {_models(before.get('models', {}))} then, {_models(after['models'])} now"
    then, today = before["clips"], after["clips"]
    for what, names in (
        ("gone", [name for name in then if name not in today]),
        ("new", [name for name in today if name not in then]),
        ("changed", [name for name in then if name in today and then[name] != today[name]]),
    ):
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            yield f"clips {what}: {', '.join(names[:NAMES_SHOWN])}{more}"
    if before["variants"] != after["variants"]:
        yield f"variants: {', '.join(before['variants'])} then, {', '.join(after['variants'])} now"
    for part in ("settings", "versions"):
        for name in sorted({*before[part], *after[part]}):
            if before[part].get(name) != after[part].get(name):
                yield f"{part}: {name} {before[part].get(name)!s} then, {after[part].get(name)!s} now"
