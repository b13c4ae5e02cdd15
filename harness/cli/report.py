"""`asrgate report`, `asrgate rescore` and `asrgate table`: output made from stored runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from asrgate.harness import record
from asrgate.harness.cli import streams
from asrgate.harness.escape import visible
from asrgate.harness.metrics import normalizers
from asrgate.harness.record_types import Result, Run
from asrgate.harness.report import html
from asrgate.harness.report.columns import percent
from asrgate.harness.report.console import print_table
from asrgate.harness.report.formats import BINARY, FORMATS, FormatError, format_of, render, write, write_all
from asrgate.harness.report.readme import readme_tables, update_between_markers
from asrgate.harness.scoring import across, gate, score, signature, slices, verify


def add_parsers(subparsers: Any) -> None:
    """Add the subcommands `report`, `rescore` and `table`."""
    report = subparsers.add_parser("report", help="print a stored run in any format")
    report.add_argument("run", type=Path, metavar="RUN", help="a run.json or its folder")
    report.add_argument(
        "--format",
        metavar="FORMAT",
        help=f"{', '.join([*FORMATS, *BINARY])}, or a plug-in's; default: by the ending of --output, or else "
        "a table",
    )
    report.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to stdout")
    report.add_argument(
        "--no-texts", action="store_true", help="hashes and counts instead of references and transcripts"
    )
    report.add_argument(
        "--slice",
        action="append",
        dest="slices",
        default=[],
        metavar="FIELD",
        help="divide by length, lang or any field of the clips; may be repeated; default: as in the run",
    )
    _add_allowed_signers(report)
    page = report.add_argument_group("for --format html")
    page.add_argument(
        "--with-audio",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="embed the run's short clips, found in these files, folders or manifests",
    )
    page.add_argument(
        "--history",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="add a chart of RTFx over earlier comparable runs: their folders, or a folder of such folders",
    )
    report.set_defaults(func=run_report, reads_records=True)

    rescore = subparsers.add_parser(
        "rescore", help="compute WER and apply the gate again from stored texts, without measuring"
    )
    rescore.add_argument("run", type=Path, metavar="RUN", help="a run.json or its folder")
    rescore.add_argument(
        "--normalizer",
        metavar="NAME[,NAME…]",
        help=f"{', '.join(normalizers.NAMES)}; the first decides, the others are shown beside it; default: "
        "the run's own normalisers, as installed now",
    )
    rescore.add_argument(
        "--output", type=Path, metavar="FILE", help="write the record there and leave the run as it is"
    )
    rescore.set_defaults(func=run_rescore, reads_records=True)

    table = subparsers.add_parser("table", help="make tables for a README, by model and machine")
    table.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run.json files or their folders")
    table.add_argument(
        "--update",
        type=Path,
        metavar="FILE",
        help="write them between this file's markers, not to stdout",
    )
    table.add_argument(
        "--marker", default="results", metavar="NAME", help="the markers' name (default results)"
    )
    _add_allowed_signers(table)
    table.set_defaults(func=run_table, reads_records=True)


def _add_allowed_signers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allowed-signers",
        type=Path,
        metavar="FILE",
        help="say who signed it, by this list in the format of ssh-keygen; a signature by others is refused",
    )


def run_report(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate report`."""
    run = verify.read(arguments.run)
    signed = signature.check(arguments.run, arguments.allowed_signers)
    if arguments.no_texts:
        run = record.without_texts(run)
    if arguments.slices:
        clips = [(clip["audio_seconds"], clip["language"], clip["tags"]) for clip in run["clips"]]
        slices.check(clips, arguments.slices)
        run["settings"]["slices"] = arguments.slices
    name = arguments.format
    if name is None and arguments.output is not None:
        name = format_of(arguments.output)
    if name is None and (arguments.with_audio or arguments.history):
        name = "html"
    if name is None:
        print_table(run, Console(), with_confusions=True, signed=signed)
        return 0
    if signed is not None or arguments.allowed_signers is not None:
        print(f"asrgate: {arguments.run}: {signed or signature.NOT_SIGNED}", file=sys.stderr)
    if name != "html" and (arguments.with_audio or arguments.history):
        raise FormatError(f"--with-audio and --history are for --format html, not {name}")
    if name != "html" and arguments.output is not None:
        write(run, name, arguments.output, denied=[arguments.run])
        return 0
    text = _page(run, arguments) if name == "html" else render(run, name, denied=[arguments.run])
    if arguments.output is None:
        _print(text)
    else:
        record.write_text(arguments.output, text)
    return 0


def _page(run: Run, arguments: argparse.Namespace) -> str:
    from asrgate.harness.report import history  # imported here because it builds on reports
    from asrgate.harness.report.html import audio

    addresses = {}
    if arguments.output is not None:  # a page on stdout has no location that links could be relative to
        folder = arguments.run if arguments.run.is_dir() else arguments.run.parent
        for file in (folder / name for name in html.SIBLINGS):
            if file.is_file():
                addresses[file.name] = quote(os.path.relpath(file, arguments.output.parent))
    past = history.read_runs(arguments.history) if arguments.history else []
    return html.render(
        run,
        audio=audio.embed(run, arguments.with_audio) if arguments.with_audio else None,
        history=history.comparable_with(run, past) if past else (),
        raw_data=addresses,
    )


def run_rescore(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate rescore`: print each variant's WER before and after, and write what changed."""
    path = arguments.run / "run.json" if arguments.run.is_dir() else arguments.run
    before = record.read(path)
    if arguments.output is None and (signed := signature.path_of(path)).exists():
        raise record.RecordError(
            f"{path} is signed, and scoring it again would break the signature; pass --output FILE, or "
            f"remove {signed.name} and sign it anew with `asrgate sign`"
        )
    asked = arguments.normalizer or ",".join(_normalizers(before))
    normalizer, *also = normalizers.chosen(asked)
    after = score.rescore(before, normalizer, also)
    gate.judge(after)
    across.settle(after)
    if arguments.output is not None:
        record.write(after, arguments.output)
    elif path.name == "run.json":
        write_all(after, path.parent)
    else:  # a record under another name has no derived files next to it
        record.write(after, path)
    _print(_changes(before, after))
    return 0


def _normalizers(run: Run) -> list[str]:
    return [entry["normalizer"]["name"] for entry in (run["scoring"], *run["scoring"].get("also", []))]


def run_table(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate table`."""
    runs, signed = [], {}
    for path in arguments.runs:
        runs.append(run := verify.read(path))
        told = signature.check(path, arguments.allowed_signers)
        if told is not None or arguments.allowed_signers is not None:
            signed[run["run_id"]] = told or signature.NOT_SIGNED
    text = readme_tables(runs, signed)
    if arguments.update is None:
        _print(text + "\n")
    else:
        update_between_markers(arguments.update, text, arguments.marker)
    return 0


def _changes(before: Run, after: Run) -> str:
    names = (run["scoring"]["normalizer"]["name"] for run in (before, after))
    lines = ["WER %, normaliser {} -> {}".format(*names)]
    for old, new in zip(before["results"], after["results"], strict=True):
        old_wer, new_wer = (_wer(result) for result in (old, new))
        lines.append(f"{visible(new['variant'])}: {old_wer} -> {new_wer}{_verdict(old, new)}")
    return "\n".join(lines) + "\n"


def _wer(result: Result) -> str:
    wer = None if result["wer"] is None else result["wer"]["wer"]
    return "unknown" if wer is None else percent(100 * wer)


def _verdict(old: Result, new: Result) -> str:
    was, is_now = old["gate"]["ranked"], new["gate"]["ranked"]
    if was == is_now:
        return ""
    return ", now ranked" if is_now else f", no longer ranked: {visible('; '.join(new['gate']['reasons']))}"


def _print(text: str) -> None:
    """Write to stdout, as UTF-8 if its own encoding lacks a character: report files are UTF-8 too."""
    try:
        streams.write(text)
    except UnicodeEncodeError:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
