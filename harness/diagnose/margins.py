"""Decodes again with the reference, in a worker, to find how narrowly it chose where an engine differs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import AsrgateError, BackendUnavailable, Checkpoint, Settings
from asrgate.backends.checkpoints import catalog
from asrgate.backends.checkpoints.cache import reachable_folder
from asrgate.backends.inspection.token_margins import Decision
from asrgate.harness import corpus, record
from asrgate.harness.corpus.clips import BUNDLED_MANIFEST, Clip
from asrgate.harness.diagnose.transcripts import (
    Difference,
    Divergence,
    Output,
    Outputs,
    OutputsError,
    find_row,
)
from asrgate.harness.metrics.word_errors import first_answers
from asrgate.harness.record_types import Result, Run
from asrgate.harness.worker.client import Worker, WorkerError


def with_margins(
    outputs: Outputs,
    run: Run,
    asked: argparse.Namespace | None,
    audio: Sequence[Path],
    model: str | None,
    timeout_seconds: float,
) -> Outputs:
    """Return the outputs with the reference's decision at every first divergence.

    Args:
        outputs: the outputs of the same run.
        run: the run; it must have tokens.
        asked: the arguments of the run's own command; None if unknown.
        audio: where the clips are, as `asrgate run --audio` takes it; if empty, where the run's own command
            says, and the bundled clips. Clips are identified by the hash of their samples.
        model: name or path of the checkpoint; None for the one in the run's command or record.
        timeout_seconds: for loading, and for each clip.

    Raises:
        OutputsError: the reference, the audio or the weights are missing, or the run has no tokens.
    """
    diverging = [
        answer.clip for output in outputs.outputs for answer in output.differences if answer.divergence
    ]
    row = find_row(run, outputs.reference)
    if not run["settings"]["texts"]:
        raise OutputsError(
            "the run was stored with --no-texts and has no tokens, so no margin can be computed; run again "
            "without --no-texts"
        )
    if not diverging:
        return replace(outputs, has_margins=True)
    variant = _reference(row)
    found = _clips(run, set(diverging), audio, asked)
    weights = _weights(run, row, model, asked)
    right = first_answers(row)
    languages = {clip["name"]: clip["language"] for clip in run["clips"]}
    print(f"decoding again with {variant}; clips: {len(set(diverging))}", file=sys.stderr)
    with reachable_folder("margins") as folder:
        settings = Settings(**run["settings"]["decoding"])
        worker = Worker(variant, folder / "worker.log", settings.threads, timeout_seconds)
        try:
            worker.load(weights, settings)

            def decided(answer: Difference) -> Difference:
                if answer.divergence is None:
                    return answer
                samples = found[answer.clip].samples()
                tokens = right[answer.clip]["tokens"] or []
                language = languages[answer.clip]
                return replace(
                    answer,
                    divergence=_decided(worker, samples, answer.clip, language, tokens, answer.divergence),
                )

            rows: list[Output] = [
                replace(output, answers=[decided(answer) for answer in output.answers])
                for output in outputs.outputs
            ]
        except WorkerError as error:
            raise OutputsError(f"{variant} cannot decode again: {error}") from error
        finally:
            worker.stop()
    return replace(outputs, outputs=rows, has_margins=True)


def _decided(
    worker: Worker,
    samples: np.ndarray,
    clip: str,
    language: str,
    tokens: Sequence[int],
    divergence: Divergence,
) -> Divergence:
    try:
        reply = worker.examine(
            "decision",
            samples,
            f"decoding clip {clip} again",
            language=language,
            tokens=list(tokens),
            index=divergence.index,
            other=None if divergence.output is None else divergence.output.id,
        )
    except WorkerError as error:
        if not worker.is_alive:
            raise
        return replace(divergence, undecided=str(error))
    fields = {name: reply[name] for name in Decision.__dataclass_fields__}
    return replace(divergence, decision=Decision(**fields))


def _reference(row: Result) -> Variant:
    variant = Variant(row["backend"], row["device"], row["precision"])
    try:
        engine = backends.describe(variant.backend)
    except BackendUnavailable as error:
        raise OutputsError(f"{variant} cannot be asked again here: {error.reason}") from error
    if not engine.decides:
        raise OutputsError(
            f"{variant.backend} cannot say how narrowly it chose a token: its class has no method decision; "
            "margins need openai-whisper as the reference, so pass --reference whisper-cpu"
        )
    try:
        engine.check(variant.device, variant.precision)
    except BackendUnavailable as error:
        raise OutputsError(f"{variant} cannot decode again on this machine: {error.reason}") from error
    return variant


def _clips(
    run: Run, wanted: set[str], audio: Sequence[Path], asked: argparse.Namespace | None
) -> dict[str, Clip]:
    """Return clip name -> the clip on this machine with the same samples as the run's."""
    sources: list[dict[str, Any]] = [{"audio": audio}] if audio else [{"manifest": BUNDLED_MANIFEST}]
    if not audio and asked is not None and (asked.audio or asked.manifest):
        sources.insert(0, {"audio": asked.audio, "manifest": asked.manifest})
    hashes = {clip["sha256"]: clip["name"] for clip in run["clips"] if clip["name"] in wanted}
    found: dict[str, Clip] = {}
    trouble = ""
    for source in sources:
        try:
            clips = corpus.load_clips(**source)
        except corpus.CorpusError as error:
            if audio:
                raise
            trouble = f" ({str(error).splitlines()[-1].strip()})"
            continue
        found.update({hashes[clip.sha256]: clip for clip in clips if clip.sha256 in hashes})
        if len(found) == len(wanted):
            break
    missing = sorted(wanted - set(found))
    if missing:
        raise OutputsError(
            f"{len(missing)} of {len(wanted)} diverging clips cannot be found on this machine with the run's "
            f"samples, such as {missing[0]}{trouble}; pass their location with --audio PATH"
        )
    return found


def _weights(run: Run, row: Result, model: str | None, asked: argparse.Namespace | None) -> Checkpoint:
    recorded = record.model_of(run, row)
    place = record.models(run).index(recorded)
    of_command = asked.model[place : place + 1] if asked and asked.model else []
    named = model or next(iter(of_command), recorded["name"])
    try:
        found = catalog.resolve(named)
    except AsrgateError as error:
        raise OutputsError(
            f"the run's weights, {recorded['name']}, cannot be found: {error}; pass their location with "
            "--model PATH"
        ) from error
    what, digest = record.model_digest(recorded)
    ours = found.sha256 if what == "file" else found.tensors_sha256
    if ours != digest or dict(found.dimensions) != recorded["dimensions"]:
        raise OutputsError(
            f"{found.path} is not the run's {recorded['name']}: the digest of its {what} is {ours:.12}…, the "
            f"run's was {digest:.12}…; pass another file with --model PATH"
        )
    return found
