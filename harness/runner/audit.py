"""`--audit`: loads each engine with a checkpoint that none has seen; it must answer as that one would.

The checkpoint is the run's with its words exchanged (backends/checkpoints/exchanged.py). The reference engine
says what must be answered then: an engine that ignores the checkpoint answers with the usual words.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asrgate.backends import Variant
from asrgate.backends.base import REMOTE, AsrgateError, Checkpoint
from asrgate.backends.checkpoints import exchanged
from asrgate.backends.checkpoints.cache import reachable_folder
from asrgate.harness.corpus.audio import altered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics.word_errors import Texts, first_answers, walls_by_clip
from asrgate.harness.record_types import Audit
from asrgate.harness.runner.run_state import RunState
from asrgate.harness.worker import process_tree
from asrgate.harness.worker.client import Worker, WorkerError

CLIPS = 3  # the shortest with speech
COPIES = 3  # of each, no two alike: the first text and the shortest time count


class _Answer(NamedTuple):
    text: str
    seconds: float


def run(state: RunState, logs: Path) -> None:
    """Audit every variant that is still in the run, the reference first; fill each result's `audit`.

    Args:
        logs: folder for what the workers print.
    """
    plan = state.plan
    spoken = [clip for clip in plan.clips if clip.reference != ""]
    clips = sorted(spoken, key=lambda clip: (clip.audio_seconds, clip.name))[:CLIPS]
    seed = secrets.randbits(32)
    audio = {
        clip.name: [altered(clip.samples(), [seed, number, copy]) for copy in range(COPIES)]
        for number, clip in enumerate(clips)
    }
    truth: dict[str, str] = {}
    texts = Texts(state.record, plan.normalizer)
    variants = {str(variant): variant for variant in plan.variants}
    for name in state.names:
        state.results[name]["audit"] = _blank(variants[name], clips)
    with reachable_folder("audit") as folder, process_tree.subreaper():
        derived = _derived(state, folder)
        if derived is None:
            return
        try:
            for name in sorted(state.names, key=lambda name: name != plan.reference):
                audit = state.results[name]["audit"]
                if not audit["auditable"]:
                    continue
                state.progress.note(f"auditing {name}")
                audit["checkpoint_sha256"] = derived.sha256
                try:
                    answers = _answers(state, variants[name], derived, clips, audio, logs)
                except WorkerError as error:
                    audit["error"] = str(error)
                    continue
                audit["error"] = None
                _compare(state, name, audit, answers, truth, texts)
        finally:
            exchanged.forget(derived)


def _blank(variant: Variant, clips: Sequence[Clip]) -> Audit:
    return {
        "auditable": variant.device != REMOTE,
        "error": "the run ended before" if variant.device != REMOTE else None,
        "checkpoint_sha256": None,
        "clips": [clip.name for clip in clips],
        "words": 0,
        "changed_words": 0,
        "usual_changed_words": 0,
        "over_run": None,
    }


def _derived(state: RunState, folder: Path) -> Checkpoint | None:
    try:
        return exchanged.derive(state.plan.checkpoint, folder, secrets.randbits(32))
    except AsrgateError as error:
        for name in state.names:
            state.results[name]["audit"]["error"] = str(error)
        return None


def _answers(
    state: RunState,
    variant: Variant,
    derived: Checkpoint,
    clips: Sequence[Clip],
    audio: Mapping[str, Sequence[np.ndarray]],
    logs: Path,
) -> dict[str, _Answer]:
    """Return clip name -> what an engine with the derived checkpoint answers.

    Raises:
        WorkerError: it cannot load the checkpoint or answer a clip, or it died or hung.
    """
    plan, before = state.plan, process_tree.own_children()
    worker = Worker(
        variant,
        logs / f"audit-{str(variant).replace('/', '_')}.log",
        plan.settings.threads,
        plan.timeout_seconds,
        quote_log=plan.texts,
        denied=[*plan.denied, state.folder],
    )
    try:
        worker.load(derived, plan.settings, said=state.progress.note)
        found = {}
        for clip in clips:
            answers = []
            for copy in audio[clip.name]:
                answer = worker.call(copy, clip.language, f"answering {clip.name} in its audit")
                if answer["error"] is not None:
                    raise WorkerError(answer["error"])
                answers.append(answer)
            found[clip.name] = _Answer(answers[0]["text"], min(a["wall_seconds"] for a in answers))
        return found
    finally:
        worker.stop()
        process_tree.kill_strays(before)


def _compare(
    state: RunState,
    name: str,
    audit: Audit,
    answers: Mapping[str, _Answer],
    truth: dict[str, str],
    texts: Texts,
) -> None:
    """Fill an audit from its answers; those of the reference, which comes first, become the `truth`."""
    reference = state.plan.reference
    usual = {
        who: {clip: sample["text"] or "" for clip, sample in first_answers(state.results[who]).items()}
        for who in (name, reference)
    }
    if name == reference:
        truth.update({clip: answer.text for clip, answer in answers.items()})
    if not truth:
        audit["error"] = "the reference has no answers to compare with"
        return
    expected = usual[reference] if name == reference else truth
    for clip, answer in answers.items():
        audit["words"] += texts.words(truth[clip], clip)
        audit["changed_words"] += texts.edits(expected.get(clip, ""), answer.text, clip)
        audit["usual_changed_words"] += texts.edits(
            usual[reference].get(clip, ""), usual[name].get(clip, ""), clip
        )
    if state.plan.scenario.times_clips:
        walls = walls_by_clip(state.results[name])
        ratios = [a.seconds / statistics.median(walls[clip]) for clip, a in answers.items() if clip in walls]
        audit["over_run"] = statistics.median(ratios) if ratios else None
