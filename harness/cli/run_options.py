"""The arguments of `asrgate run`, and what each may be."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from asrgate.harness.metrics import normalizers
from asrgate.harness.runner.plan import LOCAL, RAY
from asrgate.harness.scenarios import registry, server_options, streaming

REFERENCE = "whisper-cpu@cpu/float32"
RESULTS = Path("results")


def add_parser(subparsers: Any, run: Callable[[argparse.Namespace], int]) -> None:
    """Add the `run` subcommand, which calls `run`."""
    parser = subparsers.add_parser(
        "run",
        help="measure backends and print the table",
        description="Measure backends on the same audio, weights and decoding, and rank the right ones.",
    )
    _add_what(parser)
    _add_scenarios(parser)
    _add_decoding(parser)
    _add_measuring(parser)
    _add_output(parser)
    parser.set_defaults(func=run)


def of_command(command: Sequence[str]) -> argparse.Namespace | None:
    """Return the arguments of a stored run's command; None where it was not `asrgate run`."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_parser(parser.add_subparsers(), lambda arguments: 0)
    with contextlib.suppress(argparse.ArgumentError, SystemExit), contextlib.redirect_stderr(io.StringIO()):
        return parser.parse_args(list(command[1:]))
    return None


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--backends",
        metavar="A,B@CPU/INT8,…",
        help="variants, as name[@device[/precision]], or all; default: each backend in its first precision",
    )
    what.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="a name (asrgate weights list), a .pt file, a CTranslate2 or Hugging Face folder, a "
        "whisper.cpp file; default: tiny.en, else the bundled one",
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
    source.add_argument("--manifest", type=Path, metavar="FILE", help="JSON lines, NeMo's field names")
    what.add_argument(
        "--where",
        action="append",
        type=_field,
        default=[],
        metavar="FIELD=VALUE",
        help="only clips whose manifest field has the value, as lang=en; repeated, all must hold",
    )
    what.add_argument(
        "--sample",
        type=at_least(1),
        metavar="N",
        help="only N clips, drawn by --seed in proportion to languages, lengths and --slice fields",
    )
    what.add_argument(
        "--augment",
        action="append",
        default=[],
        metavar="snr=20,10,0",
        help="add a noisy copy of every clip at each ratio in dB; noise=pink for another noise",
    )
    what.add_argument(
        "--scenario",
        choices=registry.NAMES,
        default=registry.SINGLE_STREAM,
        help="how clips are handed over, docs/measuring.md (default single-stream)",
    )
    what.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run that was cut off, the folder in results/; everything else is taken from it",
    )
    what.add_argument(
        "--executor",
        choices=[LOCAL, RAY],
        default=LOCAL,
        help="ray: divide the clips over the machines of a Ray cluster (default local)",
    )
    what.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="the cluster's, or auto; default: start Ray on this machine",
    )
    what.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="most actors of --executor ray that measure at once; default: what the cluster has room for",
    )
    what.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    what.add_argument(
        "--no-reference",
        action="store_true",
        help="do not add the reference backend; rows are then not ranked",
    )


def _add_scenarios(parser: argparse.ArgumentParser) -> None:
    """Add what one scenario alone has; registry.OPTIONS says which."""
    offline = parser.add_argument_group("--scenario offline: all clips at once, for throughput")
    offline.add_argument(
        "--batch-sizes",
        type=registry.batch_sizes,
        metavar="1,4,8",
        help="clips a call; each size is a row of its own (default 1,4,8)",
    )
    server = parser.add_argument_group(
        "--scenario server: requests arrive by chance (Poisson), and latency counts their waiting"
    )
    server.add_argument("--rate", type=positive, metavar="R", help="requests a second")
    server.add_argument(
        "--find-max-rate", action="store_true", help="search the largest rate that keeps --p99"
    )
    server.add_argument(
        "--p99", type=positive, metavar="S", help="99 in 100 requests are to be answered within S seconds"
    )
    server.add_argument(
        "--server-requests",
        type=at_least(1),
        metavar="N",
        help=f"requests a session (default {server_options.REQUESTS}, or each clip once if there are more)",
    )
    server.add_argument(
        "--server-seconds",
        type=positive,
        metavar="S",
        help=f"a session begins no request after it (default {server_options.LIMIT_SECONDS:g})",
    )
    fed = parser.add_argument_group("--scenario streaming: clips are fed in real time")
    fed.add_argument(
        "--chunk-seconds",
        type=positive,
        metavar="S",
        help=f"audio handed over at a time (default {streaming.CHUNK_SECONDS:g})",
    )


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how it decodes (the same for every backend)")
    how.add_argument("--beam-size", type=at_least(1), default=1, metavar="N", help="1 is greedy (default)")
    how.add_argument("--language", metavar="XX", help="default: each clip's own, else English")
    how.add_argument("--task", choices=["transcribe", "translate"], default="transcribe")
    how.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="CPU threads an engine may use; default: physical cores",
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    timing = parser.add_argument_group("how it is measured and judged")
    timing.add_argument(
        "--rounds",
        type=at_least(1),
        metavar="N",
        help="measured rounds (default 7; server, streaming 1)",
    )
    timing.add_argument(
        "--warmup", type=at_least(0), default=2, metavar="N", help="calls before measuring (default 2)"
    )
    timing.add_argument(
        "--timeout",
        type=positive,
        default=600.0,
        metavar="S",
        help="seconds one call may take (default 600)",
    )
    timing.add_argument(
        "--reference",
        default=REFERENCE,
        metavar="VARIANT",
        help=f"what the gate compares with (default {REFERENCE})",
    )
    timing.add_argument(
        "--wer-tolerance",
        type=positive,
        default=1.0,
        metavar="POINTS",
        help="WER points above the reference's that still rank (default 1.0)",
    )
    timing.add_argument(
        "--max-wer",
        type=_wer,
        default=0.5,
        metavar="WER",
        help="no row above it is ranked; 0.5 or 50%% (default 0.5)",
    )
    timing.add_argument(
        "--normalizer",
        default="whisper",
        metavar="NAME[,NAME…]",
        help=f"the first judges, the others are shown beside it: {', '.join(normalizers.NAMES)}",
    )
    timing.add_argument("--seed", type=at_least(0), default=0, metavar="N")


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("what comes out")
    output.add_argument(
        "--slice",
        action="append",
        dest="slices",
        default=[],
        metavar="FIELD",
        help="divide the figures by length, lang or any manifest field; repeated; default: length, lang, "
        "snr_db and hallucination where they differ",
    )
    output.add_argument(
        "--output",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE",
        help="further files; the ending says the format",
    )
    output.add_argument(
        "--json", action="store_true", help="print the record, one JSON document, and nothing else to stdout"
    )
    output.add_argument(
        "--no-texts",
        action="store_true",
        help="store hashes and counts in place of references and transcripts",
    )
    output.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where runs are kept (default results)",
    )
    progress_shown = output.add_mutually_exclusive_group()
    progress_shown.add_argument("--quiet", action="store_true", help="no progress")
    progress_shown.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="json: progress as one JSON object a line on stderr (default text)",
    )


def at_least(least: int) -> Any:
    """Return an argument type: an integer of at least `least`."""

    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, not {text}")
        return int(text)

    return integer


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"must be FIELD=VALUE, not {text!r}")
    return name, value


def _wer(text: str) -> float:
    value = positive(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if value > 10:
        raise argparse.ArgumentTypeError(f"is a fraction: {text} would let everything through; {text}%?")
    return value


def positive(text: str) -> float:
    """Return the positive, finite number that an argument is."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text}")
    return value
