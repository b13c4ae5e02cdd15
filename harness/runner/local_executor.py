"""Measures a run on this machine: one worker process per variant, one of them busy at a time."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness import record
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.corpus.sample_cache import Decoded
from asrgate.harness.metrics import normalizers, word_times
from asrgate.harness.record import probes_of
from asrgate.harness.record_types import ProbeRecord, Result, Sample, WordAnswer, WordAnswers
from asrgate.harness.runner import warm_up
from asrgate.harness.runner.executor import Executor
from asrgate.harness.runner.run_state import RunState
from asrgate.harness.scenarios.scenario import Load
from asrgate.harness.scoring import cache_probes
from asrgate.harness.scoring.cache_probes import Probe, Usual
from asrgate.harness.worker import meters, process_tree
from asrgate.harness.worker.client import Worker, WorkerError

LEAST_MEMORY = 0.05  # of the machine's, that should be left once all engines are loaded


class LocalExecutor(Executor):
    """Workers of this process, which is the parent of everything that they start."""

    def __init__(self, state: RunState, logs: Path):
        """Prepare to measure.

        Args:
            logs: folder for what the workers print.
        """
        self._state = state
        self._logs = logs
        self._workers: dict[str, Worker] = {}
        self._before = process_tree.own_children()
        self._subreaper = contextlib.ExitStack()
        self._subreaper.enter_context(process_tree.subreaper())

    def load(self) -> None:
        """As Executor."""
        state, plan = self._state, self._state.plan
        state.progress.note(f"preparing {len(plan.clips)} clips")
        audio = Decoded(plan.clips)
        self._warmup = state.warmup_clip(audio[state.middle_clip.name])
        for variant in plan.variants:
            if str(variant) not in state.failed:
                self._start(variant)
        if (left := meters.available_fraction()) < LEAST_MEMORY:
            state.record["warnings"].append(
                f"once {len(self._workers)} engines were loaded, {left:.0%} of the memory was left: the "
                "system may swap or end one; measure fewer variants or models at once"
            )
        strangers = meters.foreign_gpu_pids([worker.pid for worker in self._workers.values()])
        if strangers and any(worker.variant.device == "cuda" for worker in self._workers.values()):
            pids = ", ".join(map(str, strangers))
            state.record["warnings"].append(
                f"other processes are using the GPU ({pids}): times are disturbed"
            )
        seed = state.audio_seed = secrets.randbits(32)
        rounds = plan.rounds if plan.stopping is None else None
        load = Load(plan.clips, audio, rounds, plan.seed, seed, state.progress.stage)
        self._generator = plan.scenario.load_generator(load)
        self._probes = cache_probes.prepare(plan.clips, audio, seed)
        self._probed = {probe.clip.name for probe in self._probes}
        later = [number for number in state.rounds_left if 0 < number < plan.certain_rounds]
        self._mixed_in: dict[int, list[tuple[int, Probe]]] = {}
        self._splices = [probe for probe in self._probes if probe.kind == "spliced"]
        # to what was mixed in, and the measured call before
        self._answers: dict[str, list[tuple[Probe, dict[str, Any], Sample]]] = {}
        if self._generator.can_mix_in and later:
            self._mixed_in = cache_probes.schedule(self._splices, later, self._generator.calls, seed)
            self._probes = [probe for probe in self._probes if probe.kind != "spliced"]

    @property
    def calls(self) -> int:
        """As Executor."""
        return self._generator.calls

    @property
    def probe_calls(self) -> int:
        """As Executor."""
        certain = 0 if self._has_rounds else 2 * len(self._probes)
        return certain + sum(map(len, self._mixed_in.values()))

    @property
    def _has_rounds(self) -> bool:
        return self._state.plan.scenario.has_rounds and self._state.plan.certain_rounds > 1

    def round(self, number: int, order: list[str]) -> dict[str, float | None]:
        """As Executor."""
        state = self._state
        mixed_in = self._mixed_in_round(number)
        load = meters.LoadMonitor([worker.pid for worker in self._workers.values()])
        for name in order:
            with self._turn(name, "measuring") as worker:
                if worker is None:
                    continue
                is_done = functools.partial(state.is_done, name, number)
                answers = self._generator.measure(worker, number, is_done, state.results[name])
                waiting = list(mixed_in)
                for count, (clip, answer, fields) in enumerate(answers, start=1):
                    state.answered(name, number, clip, answer, fields)
                    while waiting and waiting[0][0] <= count:
                        self._mix_in(worker, waiting.pop(0)[1])
                for _, probe in waiting:  # the round began before the run was cut off
                    self._mix_in(worker, probe)
        return load.finish()

    def _mixed_in_round(self, number: int) -> list[tuple[int, Probe]]:
        """Return what is mixed into a round, for all variants alike: (after how many answers, probe).

        A round that need not have come has a splice of its own: an engine must not tell it by having none.
        """
        if number >= self._state.plan.certain_rounds and self._splices and self._generator.can_mix_in:
            seed = self._state.audio_seed + number
            further = [cache_probes.another_splice(self._splices, seed)]
            return cache_probes.schedule(further, [number], self._generator.calls, seed)[number]
        return self._mixed_in.get(number, [])

    def _mix_in(self, worker: Worker, probe: Probe) -> None:
        """Ask for a copy in the middle of a round."""
        prober = self._generator.prober(worker, self._probed, secrets.randbits(32))
        what = f"answering a {probe.kind} copy of {probe.clip.name}"
        answer = prober.ask(probe.clip, probe.copy, True, what)
        self._state.progress.advance(1)
        name = str(worker.variant)
        before = self._state.results[name]["samples"][-1]
        self._answers.setdefault(name, []).append((probe, answer, before))

    def _mixed_in_entries(self, name: str, normalize: Callable[[str, str], str]) -> Iterator[ProbeRecord]:
        """Weigh copies against what their clips usually take, longer where the call before took longer.

        An engine does not know then that a copy comes next.
        """
        samples = self._state.results[name]["samples"]
        for probe, answer, before in self._answers.get(name, []):
            usual, usual_before = (cache_probes.usual(samples, c) for c in (probe.clip.name, before["clip"]))
            if usual is not None:
                seen = usual.slowed(before, usual_before)
                yield cache_probes.entry_of(probe, seen._asdict(), answer, normalize)

    def check(self) -> None:
        """As Executor."""
        state = self._state
        normalize = normalizers.normalizer(state.plan.normalizer)
        for name in state.names:
            with self._turn(name, "checking its answers") as worker:
                if worker is None:
                    continue
                result = state.results[name]
                found = [] if self._is_cleared(result) else self._probe(name, worker, normalize)
                found += self._mixed_in_entries(name, normalize)
                state.checked(name, found)
                result["resources"].update(cast(Any, worker.resources()))
                result["resources"]["peak_vram_process_bytes"] = meters.process_vram_bytes(worker.pid)
        self._ask_for_further_splices(normalize)

    def _is_cleared(self, result: Result) -> bool:
        """Whether rounds after the first, with copies of all clips, took no longer: no more are needed."""
        if not self._has_rounds:
            return False
        ratio = cache_probes.later_over_first(result["samples"])
        if ratio is not None and ratio <= cache_probes.UNSEEN_OVER_SEEN_LIMIT:
            return True
        self._state.progress.more(2 * len(self._probes))
        return False

    def _probe(self, name: str, worker: Worker, normalize: Callable[[str, str], str]) -> list[ProbeRecord]:
        self._state.progress.stage(name, "checking for cached and late answers")
        prober = self._generator.prober(worker, self._probed, secrets.randbits(32))
        found = cache_probes.run(prober, self._probes, normalize)
        self._state.progress.advance(2 * len(self._probes))
        return found

    def _ask_for_further_splices(self, normalize: Callable[[str, str], str]) -> None:
        """Ask the engines whose splices were slow for more of them, one by one, and a witness for the same.

        They are weighed against the clips' times in the rounds, so working honestly from now on helps no
        engine; but what slows the witness slows the machine.
        """
        state = self._state
        slow = [n for n in state.names if cache_probes.were_splices_slow(probes_of(state.results[n]))]
        witnesses = {name: self._witness(name) for name in slow}
        for name in slow:
            if (witness := witnesses[name]) is not None:
                witnesses.setdefault(witness, name)  # whose times count as well
        names = list(witnesses)
        for _ in range(cache_probes.FURTHER if slow else 0):
            probe = cache_probes.another_splice(self._splices, secrets.randbits(32))
            answers = {name: self._answer_to(probe, name) for name in names}
            for name, answer in answers.items():
                usual = self._usual(name, probe)
                if answer is None or usual is None or name not in state.names:
                    continue
                seen = usual
                if (witness := witnesses[name]) is not None:
                    seen = usual.slowed(answers[witness], self._usual(witness, probe))
                entry = cache_probes.entry_of(probe, seen._asdict(), answer, normalize)
                probes_of(state.results[name]).append(entry)

    def _witness(self, name: str) -> str | None:
        """Return who shows if the machine is slower than it was: the reference, or else another engine."""
        state = self._state
        reference = record.reference_name(state.record, state.results[name])
        names = (reference, *state.names)
        return next((other for other in names if other in state.names and other != name), None)

    def _answer_to(self, probe: Probe, name: str) -> dict[str, Any] | None:
        with self._turn(name, "checking its answers") as worker:
            if worker is None:
                return None
            self._state.progress.stage(name, "checking for known answers once more")
            prober = self._generator.prober(worker, self._probed, secrets.randbits(32))
            return prober.ask(probe.clip, probe.copy, True, f"answering a spliced copy of {probe.clip.name}")
        return None

    def _usual(self, name: str, probe: Probe) -> Usual | None:
        """Return what a probed clip usually takes: in the rounds, or where those do not tell when probed."""
        result = self._state.results[name]
        if self._generator.can_mix_in:
            return cache_probes.usual(result["samples"], probe.clip.name)
        of_clip = (p for p in probes_of(result) if (p["kind"], p["clip"]) == ("spliced", probe.clip.name))
        first = next(of_clip, None)
        if first is None:
            return None
        text = next((s["text"] for s in result["samples"] if s["clip"] == probe.clip.name), None)
        return Usual(text, first["seen_seconds"], first["seen_cpu_seconds"] or 0.0)

    def time_words(self) -> None:
        """As Executor. A worker is asked for nothing after it: whatever goes wrong spoils no other figure."""
        state = self._state
        clips = [clip for clip in state.plan.clips if word_times.of_clip(clip.tags)]
        audio = Decoded(clips)
        for name in state.names:
            worker = self._workers[name]
            kept: WordAnswers = {"available": True, "error": None, "answers": []}
            state.results[name]["word_answers"] = kept
            if not backends.describe(worker.variant.backend).times_words:
                kept["available"] = False
                continue
            state.progress.stage(name, "timing words")
            before = process_tree.own_children()
            worker.resume()
            try:
                for number, clip in enumerate([clips[0], *clips]):
                    what = f"timing the words of {clip.name}"
                    answer = worker.call_words(audio[clip.name], clip.call_language, what)
                    if number:  # the first call was to warm up: engines compile what they need for this
                        kept["answers"].append(_word_answer(clip, answer))
            except WorkerError as error:
                kept["error"] = str(error)
            finally:
                worker.stop()
                process_tree.kill_strays(before)

    def close(self) -> None:
        """As Executor; what the workers sent away ends too."""
        for worker in self._workers.values():
            worker.stop()
        process_tree.kill_strays(self._before)
        self._subreaper.close()

    def _start(self, variant: Variant) -> None:
        state, plan = self._state, self._state.plan
        name = str(variant)
        result = state.results[name]
        state.progress.note(f"loading {name}")
        worker = self._workers[name] = Worker(
            variant,
            self._logs / f"{name.replace('/', '_')}.log",
            plan.settings.threads,
            plan.timeout_seconds,
            quote_log=plan.texts,
            denied=[*plan.denied, state.folder],
        )
        with self._turn(name, "loading"):
            warm_up.load(
                worker,
                plan.checkpoint_of(variant),
                plan.settings,
                self._warmup,
                state.language,
                plan.warmup,
                said=lambda text: state.progress.note(f"{name}: {text}"),
                row=result,
            )
            result["status"], result["error"] = "ok", None
            self._say_first_figure(name, result)

    def _say_first_figure(self, name: str, result: Result) -> None:
        """Others may have to be compiled yet; who waits may know already what this one needs for a clip."""
        took = result["load"]["warm_call_seconds"] or result["load"]["first_call_seconds"]
        if took:
            length = len(self._warmup) / SAMPLE_RATE_HZ
            figure = f"{length:.1f} s of speech in {took:.2f} s (RTFx {length / took:.1f})"
            self._state.progress.note(f"{name} warmed up: {figure}")

    @contextlib.contextmanager
    def _turn(self, name: str, doing: str) -> Iterator[Worker | None]:
        """Give one worker the machine; a WorkerError inside ends it and becomes its result's error."""
        worker = self._workers.get(name)
        if worker is None:
            yield None
            return
        before = process_tree.own_children()
        worker.resume()
        try:
            yield worker
            worker.pause()
            strays = process_tree.kill_strays([*before, worker.pid])
            if strays:
                raise WorkerError(
                    f"processes that it had sent away while {doing} would have gone on beside the others "
                    f"({len(strays)} of them); stopped"
                )
        except WorkerError as error:
            worker.stop()
            process_tree.kill_strays(before)
            del self._workers[name]
            self._state.failure(name, doing, error)


def _word_answer(clip: Clip, answer: Mapping[str, Any]) -> WordAnswer:
    return {
        "clip": clip.name,
        "wall_seconds": answer["wall_seconds"],
        "text": answer["text"],
        "words": [{"word": word, "start": start, "end": end} for word, start, end in answer["words"]],
        "error": answer["error"],
    }
