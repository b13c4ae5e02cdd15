"""`asrgate corpus`: list, describe, check, import and make sets of clips. Try `asrgate corpus list`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError
from asrgate.harness import corpus, record
from asrgate.harness.argument_types import at_least
from asrgate.harness.cli.run_options import language
from asrgate.harness.corpus import check, export, hallucination_clips, importers
from asrgate.harness.corpus import manifests as sources
from asrgate.harness.corpus.fields import LENGTH, value_of
from asrgate.harness.corpus.importers import huggingface
from asrgate.harness.corpus.manifests import FOLDER_MANIFEST
from asrgate.harness.escape import visible
from asrgate.harness.scoring import slices

CORPORA = Path("corpora")
EXAMPLES = 3
VALUES_SHOWN = 6


class CorpusCommandError(AsrgateError):
    """A corpus command cannot be carried out as asked."""


def add_parser(subparsers: Any) -> None:
    """Add `corpus` and its subcommands."""
    parser = subparsers.add_parser("corpus", help="list, describe, check, import and make sets of clips")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="list the corpora on this machine")
    command.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help=f"where to look; default {CORPORA}/"
    )
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(func=_list)

    command = commands.add_parser("info", help="describe a corpus: lengths, languages, fields to slice by")
    _add_paths(command)
    command.set_defaults(func=_info)

    command = commands.add_parser(
        "validate", help="decode and read everything and report problems; exit status 1 if there are any"
    )
    _add_paths(command)
    command.add_argument(
        "--ignore",
        action="append",
        default=[],
        choices=list(check.KINDS),
        metavar="KIND",
        help=f"do not report this kind; one of {', '.join(check.KINDS)}",
    )
    command.add_argument(
        "--examples",
        type=at_least(0),
        default=EXAMPLES,
        metavar="N",
        help=f"examples to show of each kind (default {EXAMPLES})",
    )
    command.set_defaults(func=_validate)

    _add_import(commands)

    command = commands.add_parser("make", help="synthesise a corpus; the same seed gives the same samples")
    command.add_argument("kind", choices=["hallucination"], help="sounds in which little or nothing is said")
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument("--seed", type=at_least(0), default=0, metavar="N")
    command.set_defaults(func=_make)


def _add_paths(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="manifests, folders or files; default: the bundled set",
    )
    command.add_argument("--json", action="store_true", help="one JSON document")


def _add_import(commands: Any) -> None:
    command = commands.add_parser(
        "import",
        help="convert an existing corpus into a manifest.jsonl with its audio",
        description="Formats: " + ", ".join([*importers.FORMATS, "and Hugging Face datasets with --dataset"]),
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("source", nargs="?", type=Path, metavar="PATH", help="a folder, manifest or table")
    source.add_argument(
        "--dataset", metavar="ORG/NAME:config:split", help="a dataset to stream from the Hugging Face hub"
    )
    command.add_argument(
        "--format", metavar="NAME", help=f"default: detected; {', '.join(importers.FORMATS)}"
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"default {CORPORA}/NAME; audio that is already below it stays where it is",
    )
    command.add_argument(
        "--split", metavar="NAME", help="the split of Common Voice (default test), LibriSpeech or a dataset"
    )
    command.add_argument(
        "--language", type=language, metavar="XX", help="the language of every clip, such as de or German"
    )
    for name in ("audio", "text", "language"):
        command.add_argument(
            f"--{name}-column", metavar="NAME", help="the column of a table; default: detected"
        )
    command.add_argument(
        "--revision", metavar="REV", help="the revision of a dataset; default: the newest, which is recorded"
    )
    command.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N clips")
    command.add_argument("--skip-broken", action="store_true", help="leave out clips with problems")
    command.set_defaults(func=_import)


def _list(arguments: argparse.Namespace) -> int:
    folders = arguments.folders or [CORPORA]
    for folder in arguments.folders:
        if not folder.is_dir():
            raise CorpusCommandError(f"{folder} is not a folder")
    manifests = [corpus.BUNDLED_MANIFEST]
    for folder in folders:
        manifests += sorted(path for path in folder.rglob(FOLDER_MANIFEST) if path.is_file())
    found: list[dict[str, Any]] = []
    for path in dict.fromkeys(manifests):
        problems: list[str] = []
        entries = sources.read_manifest(path, problems)
        lengths = [entry.declared_seconds for entry in entries]
        found.append(
            {
                "name": "bundled" if path == corpus.BUNDLED_MANIFEST else path.parent.name,
                "manifest": os.path.relpath(path),
                "clips": len(entries),
                "audio_seconds": None if None in lengths else round(sum(filter(None, lengths)), 3),
                "languages": sorted({entry.language or corpus.DEFAULT_LANGUAGE for entry in entries}),
                "bad_lines": len(problems),
            }
        )
    if arguments.json:
        return _print_json(found)
    rows = [
        [
            str(row["name"]),
            str(row["clips"]),
            _duration(row["audio_seconds"]),
            _few(row["languages"]),
            str(row["manifest"]) + (f" ({row['bad_lines']} bad lines)" if row["bad_lines"] else ""),
        ]
        for row in found
    ]
    _print_table(["corpus", "clips", "audio", "languages", "manifest"], rows, {1, 2})
    return 0


def _info(arguments: argparse.Namespace) -> int:
    clips = corpus.load_clips(arguments.paths)
    facts = describe(clips)
    if arguments.json:
        return _print_json(facts)
    console = Console()
    console.print(
        Text(
            f"{_clips(facts['clips'])}, {_duration(facts['audio_seconds'])}, "
            f"{facts['with_reference']} with a reference text ({facts['reference_words']} words)"
        )
    )
    untold = sum(not clip.is_language_told for clip in clips)
    if untold:
        console.print(Text(f"{_clips(untold)} without a language, which a run takes for English"))
    rows = []
    for name, values in facts["fields"].items():
        shown = list(values.items())[:VALUES_SHOWN]
        rest = len(values) - len(shown)
        listed = ", ".join(f"{value} ({count})" for value, count in shown)
        if len(values) > slices.MOST_VALUES:
            listed, rest = "too many for slices", 0
        rows.append([name, str(len(values)), listed + (f", and {rest} more" if rest > 0 else "")])
    _print_table(["field", "values", "each value and its number of clips"], rows, {1})
    console.print(Text("A field with few values can be a slice: asrgate run --slice FIELD", style="dim"))
    return 0


def describe(clips: list[corpus.Clip]) -> dict[str, Any]:
    """Describe a set of clips: its size, its texts, and the values of each field with their counts."""
    texts = [clip.reference for clip in clips if clip.reference is not None]
    tags = dict.fromkeys(name for clip in clips for name in clip.tags)
    names = [LENGTH, "lang", *(name for name in tags if name not in record.TEXTS_IN_TAGS)]
    fields = {}
    for name in names:
        values = [value_of(clip.audio_seconds, clip.language, clip.tags, name) for clip in clips]
        counts = Counter(values)
        fields[name] = {value: counts[value] for value in sorted(counts, key=slices.order)}
    return {
        "clips": len(clips),
        "audio_seconds": round(sum(clip.audio_seconds for clip in clips), 3),
        "with_reference": len(texts),
        "reference_words": sum(len(text.split()) for text in texts),
        "fields": fields,
    }


def _validate(arguments: argparse.Namespace) -> int:
    report = check.check(arguments.paths or [corpus.BUNDLED_MANIFEST])
    kinds = [kind for kind in check.KINDS if kind not in arguments.ignore]
    found = [problem for problem in report.problems if problem.kind in kinds]
    if arguments.json:
        listed = {
            kind: {
                "count": report.count(kind),
                "examples": [{"where": p.where, "detail": p.detail} for p in found if p.kind == kind][
                    : arguments.examples
                ],
            }
            for kind in kinds
        }
        _print_json(
            {"clips": report.clips, "audio_seconds": round(report.audio_seconds, 3), "problems": listed}
        )
        return 1 if found else 0
    console = Console()
    console.print(Text(f"{_clips(report.clips)}, {_duration(report.audio_seconds)} decoded"))
    if not found:
        console.print(Text(f"Nothing wrong: {', '.join(kinds)}: none"))
        return 0
    for kind in kinds:
        members = [problem for problem in found if problem.kind == kind]
        if not members:
            continue
        console.print(Text(f"{len(members):>5}  {kind}: {check.KINDS[kind]}", style="bold"), soft_wrap=True)
        for problem in members[: arguments.examples]:
            console.print(
                Text(f"         {visible(problem.where)}: {visible(problem.detail)}"), soft_wrap=True
            )
    clean = [kind for kind in kinds if not report.count(kind)]
    console.print(Text(f"None of: {', '.join(clean)}", style="dim"))
    return 1


def _import(arguments: argparse.Namespace) -> int:
    options = importers.Options(
        split=arguments.split,
        language=arguments.language,
        audio_column=arguments.audio_column,
        text_column=arguments.text_column,
        language_column=arguments.language_column,
        revision=arguments.revision,
    )
    tags: dict[str, Any] = {}
    if arguments.dataset is not None:
        if arguments.format is not None:
            raise CorpusCommandError("--format applies to a PATH; a --dataset has its own format")
        source, utterances = huggingface.open_dataset(arguments.dataset, options)
        name = "-".join(filter(None, [Path(source.dataset).name, source.config, source.split]))
        described = f"{source.dataset}, config {source.config or 'default'}, split {source.split}"
        tags = {
            "dataset": f"{source.dataset}:{source.config or ''}:{source.split}",
            "revision": source.revision,
        }
        print(f"{described}, revision {source.revision}", file=sys.stderr)
    else:
        kind = arguments.format or importers.detect(arguments.source)
        utterances = importers.read(arguments.source, kind, options)
        name = arguments.source.resolve().stem
        print(f"reading {arguments.source} as {kind}", file=sys.stderr)
    written = export.write(
        utterances,
        arguments.output or CORPORA / name,
        limit=arguments.limit,
        skip_broken=arguments.skip_broken,
        tags=tags,
    )
    for problem in written.problems[: export.PROBLEMS_SHOWN]:
        print(f"left out: {visible(problem)}", file=sys.stderr)
    for remark in written.remarks[: export.PROBLEMS_SHOWN]:
        print(f"warning: {visible(remark)}", file=sys.stderr)
    if len(written.remarks) > export.PROBLEMS_SHOWN:
        print(f"warning: and {len(written.remarks) - export.PROBLEMS_SHOWN} more such", file=sys.stderr)
    left_out = f", {len(written.problems)} left out" if written.problems else ""
    without = f", {written.without_text} without a text" if written.without_text else ""
    spoken = ", ".join(
        f"{code or 'no language named'} ({count})" for code, count in sorted(written.languages.items())
    )
    size = f"{_clips(written.clips)}, {_duration(written.audio_seconds)}"
    print(f"{written.manifest}: {size}{without}{left_out}; {spoken}")
    return 0


def _make(arguments: argparse.Namespace) -> int:
    made = hallucination_clips.write(arguments.folder, arguments.seed)
    seconds = sum(len(sound.samples) for sound in made) / SAMPLE_RATE_HZ
    print(f"{arguments.folder / FOLDER_MANIFEST}: {_clips(len(made))}, {_duration(seconds)}")
    return 0


def _print_json(value: Any) -> int:
    json.dump(value, sys.stdout, ensure_ascii=False, indent=1)
    print()
    return 0


def _print_table(headings: list[str], rows: list[list[str]], numbers: set[int]) -> None:
    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console().print(table)


def _few(values: list[str]) -> str:
    rest = len(values) - VALUES_SHOWN
    return ", ".join(values[:VALUES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
