"""`asrgate baseline`: stored runs to compare with, one for each kind of host and model."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asrgate.backends.base import AsrgateError
from asrgate.harness import record, report
from asrgate.harness.escape import visible
from asrgate.harness.metrics import mann_whitney
from asrgate.harness.record import RecordError
from asrgate.harness.record_types import Run
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.scenarios import registry
from asrgate.harness.scoring import verify
from asrgate.harness.worker import environment

FOLDER = Path("results/baselines")


class BaselineError(AsrgateError):
    """There is no such baseline, or a run cannot become one; the message says why and what to do."""


def path_of(folder: Path, run: Run) -> Path:
    """Return where the baseline for the run's kind of host and model belongs.

    Raises:
        BaselineError: the run does not say on which kind of host it ran.
    """
    host_class = run["host"].get("host_class")
    if not isinstance(host_class, str) or not host_class:
        raise BaselineError(f"run {run['run_id']} does not say on which kind of host it was measured")
    name = _file_name("+".join(model["name"] for model in record.models(run)))
    if not registry.is_default(run):
        name = f"{name}.{registry.of(run).name}"  # a scenario, like a model, has its own baseline
    return folder / _file_name(host_class) / f"{name}.json"


def find(folder: Path, run: Run) -> Run:
    """Return the baseline for the run's kind of host and model.

    Raises:
        BaselineError: there is none; the message lists those that exist.
        RecordError: it cannot be read.
    """
    path = path_of(folder, run)
    if path.is_file():
        return verify.read(path)
    there_are = [str(other.relative_to(folder).with_suffix("")) for other in _paths(folder)]
    models = ", ".join(model["name"] for model in record.models(run))
    raise BaselineError(
        f"no baseline for {models} on hosts of the kind {run['host']['host_class']} "
        f"({path} does not exist); existing baselines: {', '.join(there_are) or 'none'}. "
        "Save one with `asrgate baseline save RUN` from a run that you trust"
    )


def save(folder: Path, run: Run, texts: bool = False) -> Path:
    """Store a run as the baseline for its kind of host and model; return its path.

    It replaces an earlier baseline.

    Raises:
        BaselineError: it is not complete, no backend in it worked, or its scenario is never compared.
        RecordError: it cannot be written.
    """
    if not run["complete"]:
        raise BaselineError(f"run {run['run_id']} is not complete; measure again and save the new run")
    if not registry.of(run).has_rounds:
        raise BaselineError(
            f"run {run['run_id']} used the scenario {registry.of(run).name}, which `asrgate compare` does "
            "not judge; save a single-stream or offline run"
        )
    if not any(result["status"] == "ok" for result in run["results"]):
        raise BaselineError(
            f"no backend worked in run {run['run_id']}, so there would be nothing to compare with"
        )
    path = path_of(folder, run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BaselineError(f"cannot create {path.parent}: {error.strerror}") from error
    record.write(run if texts else record.without_texts(run), path)
    return path


def add_parser(subparsers: Any) -> None:
    """Add `baseline` and its subcommands."""
    parser = subparsers.add_parser("baseline", help="store runs to compare with")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--baselines", type=Path, default=FOLDER, metavar="FOLDER", help=f"default {FOLDER}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    saving = commands.add_parser(
        "save", parents=[where], help="make a run the baseline for its model and kind of host"
    )
    saving.add_argument("run", type=Path, metavar="RUN", help="run.json or its folder")
    saving.add_argument(
        "--texts", action="store_true", help="store the texts too, not only hashes and counts"
    )
    saving.set_defaults(func=_save, reads_records=True)
    listing = commands.add_parser("list", parents=[where], help="list the baselines")
    listing.set_defaults(func=_list, reads_records=True)
    showing = commands.add_parser("show", parents=[where], help="show the table of one baseline")
    showing.add_argument(
        "model", metavar="MODEL", help="a model's name, or HOST-CLASS/MODEL as `list` prints it"
    )
    showing.set_defaults(func=_show, reads_records=True)


def _save(arguments: argparse.Namespace) -> int:
    run = verify.read(arguments.run)
    before = path_of(arguments.baselines, run)
    replaced = before.is_file()
    path = save(arguments.baselines, run, texts=arguments.texts)
    print(f"{'replaced' if replaced else 'saved'} {path}; commit it to share it")
    for doubt in _doubts(run):
        print(f"asrgate: {visible(doubt)}", file=sys.stderr)
    return 0


def _doubts(run: Run) -> Iterator[str]:
    """Yield what makes the run a poor baseline."""
    needed = mann_whitney.rounds_needed(Limits().alpha)
    if run["settings"]["rounds"] < needed:
        yield (
            f"the run has {run['settings']['rounds']} rounds; with fewer than {needed}, "
            "`asrgate compare` cannot call anything slower"
        )
    for result in run["results"]:
        if result["status"] == "ok" and not result["gate"]["ranked"]:
            yield f"{result['variant']} is not ranked in it: {'; '.join(result['gate']['reasons'])}"
    yield from run["warnings"]


def _list(arguments: argparse.Namespace) -> int:
    paths = _paths(arguments.baselines)
    if not paths:
        print(f"no baselines in {arguments.baselines}; `asrgate baseline save RUN` makes one")
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("baseline", "run", "rounds", "clips", "backends"):
        table.add_column(heading, overflow="fold")
    for path in paths:
        name = str(path.relative_to(arguments.baselines).with_suffix(""))
        try:
            run = verify.read(path)
        except RecordError as error:
            table.add_row(escape(visible(name)), escape(visible(str(error))))
            continue
        variants = [visible(result["variant"]) for result in run["results"] if result["status"] == "ok"]
        table.add_row(
            escape(visible(name)),
            run["run_id"],
            str(run["settings"]["rounds"]),
            str(len(run["clips"])),
            escape("\n".join(variants)),
        )
    Console().print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    folder = arguments.baselines
    host_class, _, model = arguments.model.rpartition("/")
    host_class = host_class or str(environment.describe()["host_class"])
    path = folder / _file_name(host_class) / f"{_file_name(model)}.json"
    if not path.is_file():
        there_are = [str(other.relative_to(folder).with_suffix("")) for other in _paths(folder)]
        raise BaselineError(f"{path} does not exist; existing baselines: {', '.join(there_are) or 'none'}")
    report.print_table(verify.read(path), Console())
    return 0


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.json"))


def _file_name(text: str) -> str:
    """Return the text as a file or folder name that has no separators, is not hidden and is not empty."""
    return re.sub(r"[^0-9A-Za-z._+-]+", "-", text).strip(".-") or "unnamed"
