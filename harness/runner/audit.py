"""`--audit`: loads each engine with a checkpoint that none has seen; it must answer as that one would.

The checkpoint is the run's with its words exchanged (backends/checkpoints/exchanged.py). The reference engine
says what must be answered then: an engine that ignores the checkpoint answers with the usual words. The
recordings are new as well: splices of clips, made when the run is over.
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
from asrgate.harness import record
from asrgate.harness.corpus.audio import altered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics.word_errors import Texts, first_answers, timed
from asrgate.harness.record_types import Audit, Result
from asrgate.harness.runner.run_state import RunState
from asrgate.harness.scoring.cache_probes import COMPUTING_FRACTION, LEAST_SECONDS, splice
from asrgate.harness.worker import process_tree
from asrgate.harness.worker.client import Worker, WorkerError

CLIPS = 3  # the shortest with speech
RECORDINGS = 3  # like each, no two alike: every text counts, and the shortest time


class _Answers(NamedTuple):
    texts: list[str]
    seconds: float  # the shortest call
    cpu_seconds: float  # the least of a call


def run(state: RunState, logs: Path) -> None:
    """Audit every variant that is still in the run, the reference first; fill each result's `audit`.

    Args:
        logs: folder for what the workers print.
    """
    plan = state.plan
    spoken = [clip for clip in plan.clips if clip.reference != ""]
    clips = sorted(spoken, key=lambda clip: (clip.audio_seconds, clip.name))[:CLIPS]
    seed = secrets.randbits(32)
    audio = {clip.name: _recordings(number, clips, seed) for number, clip in enumerate(clips)}
    texts = Texts(state.record, plan.normalizer)
    alive = [variant for variant in plan.variants if str(variant) in state.names]
    for variant in alive:
        is_auditable = variant.device != REMOTE and not plan.checkpoint_of(variant).is_of_engine
        state.results[str(variant)]["audit"] = _blank(is_auditable, clips)
    for model in dict.fromkeys(variant.model for variant in alive):
        of_model = [variant for variant in alive if variant.model == model]
        if plan.checkpoint_of(of_model[0]).is_of_engine:
            continue
        with reachable_folder("audit") as folder, process_tree.subreaper():
            derived = _derived(state, of_model, folder)
            if derived is None:
                continue
            truth: dict[str, list[str]] = {}
            reference = record.reference_name(state.record, state.results[str(of_model[0])])
            try:
                for variant in sorted(of_model, key=lambda variant: str(variant) != reference):
                    name = str(variant)
                    audit = state.results[name]["audit"]
                    if not audit["auditable"]:
                        continue
                    state.progress.note(f"auditing {name}")
                    audit["checkpoint_sha256"] = derived.sha256
                    try:
                        answers = _answers(state, variant, derived, clips, audio, logs)
                    except WorkerError as error:
                        audit["error"] = str(error)
                        continue
                    audit["error"] = None
                    _compare(state, name, reference, audit, answers, truth, texts)
            finally:
                exchanged.forget(derived)


def _recordings(number: int, clips: Sequence[Clip], seed: int) -> list[np.ndarray]:
    """Return a copy of a clip, and further ones that end like other clips, if there are others."""
    first = clips[number]
    samples, others = first.samples(), [clip.samples() for clip in clips if clip is not first]
    made = [samples, *(splice(samples, other) for other in others)]
    return [altered(made[copy % len(made)], [seed, number, copy]) for copy in range(RECORDINGS)]


def _blank(is_auditable: bool, clips: Sequence[Clip]) -> Audit:
    return {
        "auditable": is_auditable,
        "error": "the run ended before" if is_auditable else None,
        "checkpoint_sha256": None,
        "clips": [clip.name for clip in clips],
        "words": 0,
        "changed_words": 0,
        "usual_changed_words": 0,
        "over_run": None,
    }


def _derived(state: RunState, variants: Sequence[Variant], folder: Path) -> Checkpoint | None:
    """Return a checkpoint derived from that of the variants; if it cannot be, their audits say why."""
    try:
        return exchanged.derive(state.plan.checkpoint_of(variants[0]), folder, secrets.randbits(32))
    except AsrgateError as error:
        for variant in variants:
            state.results[str(variant)]["audit"]["error"] = str(error)
        return None


def _answers(
    state: RunState,
    variant: Variant,
    derived: Checkpoint,
    clips: Sequence[Clip],
    audio: Mapping[str, Sequence[np.ndarray]],
    logs: Path,
) -> dict[str, _Answers]:
    """Return clip name -> what an engine with the derived checkpoint answers to the recordings like it.

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
                answer = worker.call(copy, clip.call_language, f"answering {clip.name} in its audit")
                if answer["error"] is not None:
                    raise WorkerError(answer["error"])
                answers.append(answer)
            texts = [answer["text"] for answer in answers]
            wall, cpu = (min(answer[name] for answer in answers) for name in ("wall_seconds", "cpu_seconds"))
            found[clip.name] = _Answers(texts, wall, cpu)
        return found
    finally:
        worker.stop()
        process_tree.kill_strays(before)


def _compare(
    state: RunState,
    name: str,
    reference: str,
    audit: Audit,
    answers: Mapping[str, _Answers],
    truth: dict[str, list[str]],
    texts: Texts,
) -> None:
    """Fill an audit from its answers; those of the reference, which comes first, become the `truth`.

    The reference's own are compared with what it wrote with the run's checkpoint, without splices, which have
    other words anyway.
    """
    usual = {
        who: {clip: sample["text"] or "" for clip, sample in first_answers(state.results[who]).items()}
        for who in (name, reference)
    }
    is_reference = name == reference
    if is_reference:
        truth.update({clip: answer.texts for clip, answer in answers.items()})
    if not truth:
        audit["error"] = "the reference has no answers to compare with"
        return
    for clip, answer in answers.items():
        usually = texts.edits(usual[reference].get(clip, ""), usual[name].get(clip, ""), clip)
        pairs = list(zip(answer.texts, truth[clip], strict=True))
        for heard, true in pairs[:1] if is_reference else pairs:
            expected = usual[reference].get(clip, "") if is_reference else true
            audit["words"] += texts.words(true, clip)
            audit["changed_words"] += texts.edits(expected, heard, clip)
            audit["usual_changed_words"] += usually
    if state.plan.scenario.times_clips:
        audit["over_run"] = _over_run(state.results[name], answers)


def _over_run(result: Result, answers: Mapping[str, _Answers]) -> float | None:
    """Return how much longer the answers took than in the run.

    Of an engine that computes, the smaller ratio of wall and processor time counts: other work on the machine
    disturbs only wall time.
    """
    walls: dict[str, list[float]] = {}
    cpus: dict[str, list[float]] = {}
    for sample in timed(result):
        walls.setdefault(sample["clip"], []).append(sample["wall_seconds"])
        cpus.setdefault(sample["clip"], []).append(sample["cpu_seconds"] or 0.0)
    known = [(clip, answer) for clip, answer in answers.items() if clip in walls]
    if not known:
        return None
    over = statistics.median(answer.seconds / statistics.median(walls[clip]) for clip, answer in known)
    if all(answer.cpu_seconds < COMPUTING_FRACTION * answer.seconds for _, answer in known):
        return over
    usual = {clip: max(statistics.median(cpus[clip]), LEAST_SECONDS) for clip, _ in known}
    return min(over, statistics.median(answer.cpu_seconds / usual[clip] for clip, answer in known))
