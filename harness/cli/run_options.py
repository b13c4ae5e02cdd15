"""The arguments of `asrgate run` and the values that they accept."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from asrgate.backends.base import AUTO
from asrgate.harness.argument_types import at_least, positive
from asrgate.harness.corpus import languages
from asrgate.harness.corpus.audio import MAX_CLIP_HOURS
from asrgate.harness.metrics import normalizers
from asrgate.harness.runner.plan import LOCAL, RAY
from asrgate.harness.runner.stopping import BUDGET_SECONDS
from asrgate.harness.scenarios import registry

REFERENCE = "whisper-cpu@cpu/float32"
RESULTS = Path("results")


def add_parser(subparsers: Any, run: Callable[[argparse.Namespace], int]) -> None:
    """Add the `run` subcommand, which calls `run`."""
    parser = subparsers.add_parser(
        "run",
        help="measure backends and print the table",
        description="Measure backends on the same audio, weights and decoding; rank those that are right.",
    )
    _add_what(parser)
    for scenario in registry.BUILTIN.values():
        scenario.add_options(parser)
    _add_decoding(parser)
    _add_measuring(parser)
    _add_output(parser)
    parser.set_defaults(func=run)


def of_command(command: Sequence[str]) -> argparse.Namespace | None:
    """Return the arguments of a stored run's command; None if it was not `asrgate run`."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_parser(parser.add_subparsers(), lambda arguments: 0)
    with contextlib.suppress(argparse.ArgumentError, SystemExit), contextlib.redirect_stderr(io.StringIO()):
        return parser.parse_args(list(command[1:]))
    return None


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--backends",
        metavar="A,B@CPU/INT8,…",
        help="variants as name[@device[/precision]], or all; default: each backend in its first precision",
    )
    what.add_argument(
        "--model",
        action="append",
        metavar="NAME|PATH",
        help="a name (asrgate weights list), a .pt file, a CTranslate2 or Hugging Face folder, a "
        "whisper.cpp file; if repeated, each variant is measured with each; default: tiny.en, or else the "
        "bundled model",
    )
    source = what.add_mutually_exclusive_group()
    source.add_argument(
        "--audio",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="files, folders, manifests or LibriSpeech trees",
    )
    source.add_argument("--manifest", type=Path, metavar="FILE", help="JSON lines with NeMo's field names")
    what.add_argument(
        "--where",
        action="append",
        type=_field,
        default=[],
        metavar="FIELD=VALUE",
        help="only clips whose manifest field has this value, such as lang=en; if repeated, all must match",
    )
    what.add_argument(
        "--sample",
        type=at_least(1),
        metavar="N",
        help="only N clips, drawn with --seed in proportion to languages, lengths and --slice fields",
    )
    what.add_argument(
        "--max-clip-hours",
        type=positive,
        default=MAX_CLIP_HOURS,
        metavar="H",
        help=f"refuse clips that last longer; an hour takes 230 MB (default {MAX_CLIP_HOURS:g})",
    )
    what.add_argument(
        "--augment",
        action="append",
        default=[],
        metavar="snr=20,10,0",
        help="add a noisy copy of every clip at each ratio in dB; noise=pink chooses another noise",
    )
    what.add_argument(
        "--scenario",
        choices=list(registry.BUILTIN),
        default=registry.DEFAULT.name,
        help="how clips are handed over, see docs/measuring.md (default single-stream)",
    )
    what.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue an interrupted run, given by its folder in results/; all other arguments come from it",
    )
    what.add_argument(
        "--executor",
        choices=[LOCAL, RAY],
        default=LOCAL,
        help="ray: divide the clips among the machines of a Ray cluster (default local)",
    )
    what.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="the cluster's address, or auto; default: start Ray on this machine",
    )
    what.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="with --executor ray, at most N actors measure at once; default: all that fit the cluster",
    )
    what.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    what.add_argument(
        "--no-reference",
        action="store_true",
        help="do not add the reference backend; no row is ranked then",
    )


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how to decode (the same for every backend)")
    how.add_argument("--beam-size", type=at_least(1), default=1, metavar="N", help="1 means greedy (default)")
    how.add_argument(
        "--language",
        type=_language_or_auto,
        metavar="XX|auto",
        help="of every clip, such as de or German; auto: engines detect it, which is scored too; default: "
        "each clip's own language, or else English",
    )
    how.add_argument("--task", choices=["transcribe", "translate"], default="transcribe")
    how.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="CPU threads that each engine may use; default: the number of physical cores",
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    timing = parser.add_argument_group("how to measure and judge")
    timing.add_argument(
        "--rounds",
        type=rounds,
        metavar="N|auto",
        help="measured rounds; auto: 3 to 15, until every speed-up is known within 3%% or the budget is used "
        "(default auto; 7 on a cluster, 1 for server and streaming)",
    )
    timing.add_argument(
        "--budget",
        type=positive,
        metavar="S",
        help=f"with --rounds auto, seconds that the run may take, unless 3 rounds take longer "
        f"(default {BUDGET_SECONDS:g})",
    )
    timing.add_argument(
        "--warmup", type=at_least(0), default=2, metavar="N", help="calls before measuring starts (default 2)"
    )
    timing.add_argument(
        "--timeout",
        type=positive,
        default=600.0,
        metavar="S",
        help="seconds that one call may take (default 600)",
    )
    timing.add_argument(
        "--reference",
        default=REFERENCE,
        metavar="VARIANT",
        help=f"the variant that the gate compares with (default {REFERENCE})",
    )
    timing.add_argument(
        "--wer-tolerance",
        type=positive,
        default=1.0,
        metavar="POINTS",
        help="a row whose WER exceeds the reference's by more points is not ranked (default 1.0)",
    )
    timing.add_argument(
        "--max-wer",
        type=_wer,
        default=0.5,
        metavar="WER",
        help="a row with a higher WER is not ranked, and so no answer; 0.5 or 50%% (default 0.5)",
    )
    timing.add_argument(
        "--max-rtf",
        type=positive,
        metavar="RTF",
        help="the run's answer names only rows that take at most so many seconds per second of audio",
    )
    timing.add_argument(
        "--max-memory",
        type=memory,
        metavar="SIZE",
        help="the run's answer names only rows with at most this peak memory, such as 512MiB or 1GB",
    )
    timing.add_argument(
        "--normalizer",
        default="whisper",
        metavar="NAME[,NAME…]",
        help=f"the first decides, the others are shown beside it: {', '.join(normalizers.NAMES)}",
    )
    timing.add_argument(
        "--keywords",
        type=Path,
        metavar="FILE",
        help="names and terms, one a line, whose recall is counted beside the WER; clips may have their own "
        "in a list, the manifest field keywords",
    )
    timing.add_argument(
        "--audit",
        action="store_true",
        help="after the last round, also load each engine with a checkpoint whose words are exchanged: it "
        "must answer with those and be as fast; a row that does not is not ranked",
    )
    timing.add_argument(
        "--word-timestamps",
        action="store_true",
        help="after the last round, also ask each engine when each word is said, of the clips whose manifest "
        "field words says it; no speed contains these calls",
    )
    timing.add_argument("--seed", type=at_least(0), default=0, metavar="N")


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--slice",
        action="append",
        dest="slices",
        default=[],
        metavar="FIELD",
        help="divide the figures by length, lang or any manifest field; may be repeated; default: length, "
        "and lang, snr_db and hallucination if clips differ in them",
    )
    output.add_argument(
        "--output",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE",
        help="more files to write; the ending chooses the format",
    )
    output.add_argument(
        "--json",
        action="store_true",
        help="print the record as one JSON document, and nothing else, to stdout",
    )
    output.add_argument(
        "--no-texts",
        action="store_true",
        help="store hashes and counts instead of references and transcripts",
    )
    output.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where runs are stored (default results)",
    )
    progress_shown = output.add_mutually_exclusive_group()
    progress_shown.add_argument("--quiet", action="store_true", help="show no progress")
    progress_shown.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="json: one JSON object per line on stderr (default text)",
    )


def rounds(text: str) -> int | str:
    """Return a number of rounds, or AUTO."""
    try:
        return AUTO if text == AUTO else at_least(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or {AUTO}") from error


_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def memory(text: str) -> int:
    """Return a number of bytes, from a size such as `1.5GB`."""
    number = text.strip().rstrip("BGIKMbgikm ")
    unit = text.strip()[len(number) :].strip().lower()
    if unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"must be a size such as 512MiB or 1.5GB, not {text!r}")
    return max(1, round(positive(number) * _UNITS[unit]))


def language(text: str) -> str:
    """Return Whisper's code of the language that an argument names."""
    try:
        return languages.code_of(text)
    except languages.LanguageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _language_or_auto(text: str) -> str:
    return AUTO if text.strip().lower() == AUTO else language(text)


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"must be FIELD=VALUE, not {text!r}")
    return name, value


def _wer(text: str) -> float:
    value = positive(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if value > 10:
        meant = "the most is 1000%" if text.endswith("%") else f"did you mean {text}%?"
        raise argparse.ArgumentTypeError(f"is a fraction, and {text} would let everything pass; {meant}")
    return value
