"""`asrgate debug-encoder`: compare an engine's encoder with the reference's, layer by layer.

asrgate debug-encoder --backend max-hybrid
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import (
    AsrgateError,
    BackendError,
    BackendUnavailable,
    Checkpoint,
    Settings,
    how_to_fix,
)
from asrgate.backends.checkpoints import catalog
from asrgate.backends.checkpoints.cache import reachable_folder
from asrgate.backends.inspection.encoder_trace import LOG_MEL, require_trace
from asrgate.harness import corpus, record
from asrgate.harness.argument_types import at_least, positive
from asrgate.harness.corpus.clips import BUNDLED_MANIFEST, Clip
from asrgate.harness.corpus.manifests import read_manifest
from asrgate.harness.diagnose.layers import (
    LAYER_TOLERANCES,
    LOG_MEL_TOLERANCES,
    LayerError,
    Statistics,
    first_divergence,
    layer_errors,
)
from asrgate.harness.escape import visible
from asrgate.harness.worker import client

SCHEMA_VERSION = 1
# History: 1 = first version.

CLIP = "statement"
RULES = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")

Trace = dict[str, np.ndarray]


class DebugEncoderError(AsrgateError):
    """The two encoders cannot be compared; the message says which of them failed and why."""


@dataclass(frozen=True)
class ClipErrors:
    """One clip's layers."""

    clip: str
    sha256: str  # of its samples
    first_diverging_layer: str | None
    layers: Sequence[LayerError]


def add_parser(subparsers: Any) -> None:
    """Add the `debug-encoder` subcommand."""
    parser = subparsers.add_parser(
        "debug-encoder",
        help="compare an engine's encoder with the reference's, layer by layer",
        description="Compare the output of each layer of two encoders on the first 30 s of a clip, and name "
        "the first layer that diverges. Exits with 0 if none does, with 1 if one does, and with 2 if nothing "
        "was compared.",
    )
    parser.add_argument(
        "clips",
        nargs="*",
        metavar="CLIP",
        help=f"a bundled clip's name, or a path as `asrgate run --audio` takes it (default {CLIP})",
    )
    parser.add_argument(
        "--backend",
        default="max-hybrid",
        metavar="VARIANT",
        help="the engine to examine, as name[@device[/precision]]; without a device, its first one "
        "(default max-hybrid)",
    )
    parser.add_argument(
        "--reference",
        default="whisper-cpu",
        metavar="VARIANT",
        help="the engine to compare with (default whisper-cpu)",
    )
    parser.add_argument("--model", metavar="NAME|PATH", help="as `asrgate run` takes it")
    parser.add_argument(
        "--tolerance",
        type=positive,
        metavar="X",
        help="allowed relative error of a layer "
        f"(default {', '.join(f'{x:g} in {p}' for p, x in LAYER_TOLERANCES.items())})",
    )
    parser.add_argument(
        "--log-mel-tolerance",
        type=positive,
        metavar="X",
        help="allowed absolute error of the log-mel spectrogram "
        f"(default {', '.join(f'{x:g} in {p}' for p, x in LOG_MEL_TOLERANCES.items())})",
    )
    parser.add_argument(
        "--threads", type=at_least(1), metavar="N", help="default: the number of physical cores"
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=600.0,
        metavar="S",
        help="seconds that loading, or one clip, may take (default 600)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures there, as one JSON document"
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Trace, compare, print; return 0 if no layer diverges, else 1.

    Raises:
        AsrgateError: nothing was compared; the message says why.
    """
    tested, reference = _variant(arguments.backend), _variant(arguments.reference)
    precision = tested.precision
    tolerance = arguments.tolerance or _default(LAYER_TOLERANCES, precision, "--tolerance")
    mel_tolerance = arguments.log_mel_tolerance or _default(
        LOG_MEL_TOLERANCES, precision, "--log-mel-tolerance"
    )
    clips = _clips(arguments.clips or [CLIP])
    if arguments.model is None:
        model, line = catalog.default_model()
        print(line, file=sys.stderr)
    else:
        model = catalog.resolve(arguments.model, download=True)
    settings = Settings(threads=arguments.threads or client.default_threads())
    with reachable_folder("traces") as folder:
        right, ours = (
            _traces(variant, model, settings, clips, folder, arguments.timeout)
            for variant in (reference, tested)
        )
        found = [
            _compared(clip, ours[clip.name], right[clip.name], tolerance, mel_tolerance) for clip in clips
        ]
    _print(found, tested, reference, model, Console())
    if arguments.json is not None:
        record.write_text(arguments.json, as_json(found, tested, reference, model))
    return 1 if any(clip.first_diverging_layer for clip in found) else 0


def as_json(found: Sequence[ClipErrors], tested: Variant, reference: Variant, model: Checkpoint) -> str:
    """Return all figures as one strict JSON document."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "backend": str(tested),
        "reference": str(reference),
        "checkpoint": {
            "name": model.name,
            "sha256": model.sha256,
            "tensors_sha256": model.tensors_sha256,
            "dimensions": dict(model.dimensions),
        },
        "diverges": any(clip.first_diverging_layer for clip in found),
        "clips": [asdict(clip) for clip in found],
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _variant(text: str) -> Variant:
    variant = backends.parse(text)[0]
    described = backends.describe(variant.backend)
    if not described.traces_encoder:
        raise DebugEncoderError(
            f"{variant.backend} cannot show its encoder's layers: its class has no method encoder_trace. "
            f"Backends that have one: {', '.join(_traceable()) or 'none'}"
        )
    try:
        described.check(variant.device, variant.precision)
    except BackendUnavailable as error:
        why = f"{error.reason}{how_to_fix(error.remedy)}"
        raise DebugEncoderError(f"{variant} cannot run on this machine: {why}") from error
    return variant


def _traceable() -> Iterator[str]:
    for name, described in backends.describe_all(backends.names()).items():
        if not isinstance(described, BackendUnavailable) and described.traces_encoder:
            yield name


def _default(tolerances: dict[str, float], precision: str, option: str) -> float:
    if precision not in tolerances:
        raise DebugEncoderError(
            f"there is no default tolerance for {precision}; pass {option}, or examine one of "
            f"{', '.join(tolerances)}"
        )
    return tolerances[precision]


def _clips(names: Sequence[str]) -> list[Clip]:
    problems: list[str] = []
    bundled = {entry.path.stem: entry.path for entry in read_manifest(BUNDLED_MANIFEST, problems)}
    paths = [bundled.get(name, Path(name)) for name in dict.fromkeys(names)]
    for path in paths:
        if not path.exists():
            raise DebugEncoderError(
                f"{path} is neither a file nor a bundled clip; the bundled clips are {', '.join(bundled)}"
            )
    return corpus.load_clips(paths)


def _traces(
    variant: Variant,
    model: Checkpoint,
    settings: Settings,
    clips: Sequence[Clip],
    folder: Path,
    timeout: float,
) -> dict[str, Trace]:
    """Return clip name -> the variant's trace, made in a worker that has ended when this returns."""
    print(f"tracing the encoder of {variant}", file=sys.stderr)
    worker = client.Worker(variant, folder / "worker.log", settings.threads, timeout)
    try:
        worker.load(model, settings)
        traces = {}
        for clip in clips:
            path = folder / "trace.npz"
            worker.examine("encoder_trace", clip.samples(), f"tracing clip {clip.name}", path=str(path))
            with np.load(path, allow_pickle=False) as stored:
                traces[clip.name] = dict(stored)
            require_trace(traces[clip.name], model.dimensions)
        return traces
    except client.WorkerError as error:
        raise DebugEncoderError(f"{variant}: {error}{how_to_fix(error.remedy)}") from error
    except BackendError as error:
        raise DebugEncoderError(f"{variant}: {error}") from error
    finally:
        worker.stop()


def _compared(clip: Clip, ours: Trace, right: Trace, tolerance: float, mel_tolerance: float) -> ClipErrors:
    layers = layer_errors(ours, right, tolerance, mel_tolerance)
    first = first_divergence(layers)
    return ClipErrors(clip.name, clip.sha256, None if first is None else first.layer, layers)


def _print(
    found: Sequence[ClipErrors], tested: Variant, reference: Variant, model: Checkpoint, console: Console
) -> None:
    console.print(
        Text(
            visible(f"{tested} against {reference}, model {model.name} (tensors {model.tensors_sha256:.12})")
        )
    )
    for clip in found:
        console.print()
        console.print(Text(f"clip {clip.clip}", style="bold"))
        console.print(_table(clip))
        console.print(_verdict(clip))
    console.print()
    bad = [clip for clip in found if clip.first_diverging_layer]
    if len(found) > 1:
        console.print(Text(f"{len(found) - len(bad)} of {len(found)} clips have no diverging layer"))
    console.print(
        Text(
            "Upper line: the examined engine; lower line, dimmed: the reference. relative: norm of the "
            "difference over the reference's norm; absolute: the largest difference of any element.",
            style="dim",
        )
    )


def _table(clip: ClipErrors) -> Table:
    table = Table(box=RULES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True)
    for heading in ("mean", "std", "min", "max", "cosine", "relative", "absolute"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in clip.layers:
        is_first = layer.layer == clip.first_diverging_layer
        style = "bold red" if is_first else "red" if layer.diverges else ""
        table.add_row(
            Text(f"{layer.layer} ✗" if layer.diverges else layer.layer),
            *map(_number, _values(layer.tested)),
            "-" if layer.cosine is None else f"{layer.cosine:.7f}",
            _error(layer.relative_error),
            _error(layer.max_absolute_error),
            style=style,
        )
        table.add_row("", *map(_number, _values(layer.reference)), style="dim")
    return table


def _verdict(clip: ClipErrors) -> Text:
    if all(layer.max_absolute_error == 0 for layer in clip.layers):
        return Text("Every layer is identical to the bit.", style="green")
    if clip.first_diverging_layer is None:
        worst = max((x for x in clip.layers if x.layer != LOG_MEL), key=lambda x: x.relative_error or 0.0)
        return Text(
            f"No layer diverges; the largest relative error is {worst.relative_error:.1e}, at {worst.layer}.",
            style="green",
        )
    first = next(layer for layer in clip.layers if layer.layer == clip.first_diverging_layer)
    kind, value = (
        ("absolute", first.max_absolute_error)
        if first.layer == LOG_MEL
        else ("relative", first.relative_error)
    )
    what = f"{kind} error {_error(value)}" if value is not None else "its values are not finite"
    return Text(
        f"First layer that diverges: {first.layer} ({what}, tolerance {first.tolerance:.0e}).",
        style="bold red",
    )


def _values(statistics: Statistics) -> tuple[float | None, ...]:
    return statistics.mean, statistics.std, statistics.min, statistics.max


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _error(value: float | None) -> str:
    return "nan" if value is None else f"{value:.1e}"
