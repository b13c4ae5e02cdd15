"""A run on the actors of a cluster: clips given out in chunks, answers merged as of one process."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from asrgate.backends.base import Checkpoint
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.corpus.sample_cache import Decoded
from asrgate.harness.record_types import Retry
from asrgate.harness.runner.cluster import connect
from asrgate.harness.runner.cluster.actor import LACKS_AUDIO, Job
from asrgate.harness.runner.cluster.actor_pool import ActorPool, Answer, Handle, Hooks, Reply
from asrgate.harness.runner.cluster.connect import ClusterError
from asrgate.harness.runner.executor import Executor
from asrgate.harness.runner.run_state import RunState
from asrgate.harness.scoring import cache_probes, machines
from asrgate.harness.worker.client import WorkerError

CHUNK_CLIPS = 16  # given to an actor at once: more would make the cost of that smaller, and a loss larger
CHUNK_SECONDS = 240.0  # of audio, likewise
CHUNKS_PER_ACTOR = 4  # at least, in a round, so that nobody waits long for the last one
MOST_TRIES = 4  # of a chunk: one that ends every process it is given to must not end all of them


@dataclass
class Chunk:
    """Clips given to an actor at once; with their samples if the machine lacks the files."""

    clips: list[Clip]
    samples: dict[str, np.ndarray] | None = None
    tries: int = 0


class ClusterExecutor(Executor):
    """Measures a run on the actors of a cluster; to be used while connect.connected().

    Its methods raise ClusterError when there is no actor or none is left, nodes have unlike software, or an
    actor has failed; AudioError when a clip's file is not what it was when it was loaded.
    """

    def __init__(self, state: RunState):
        """Prepare to measure."""
        self.state = state
        self.plan = state.plan
        self.record = state.record
        self.numbers: dict[str, int] = {}  # machine -> number of its host in the record
        self.loads: list[tuple[int, Reply]] = []
        self.sends_samples = False
        self.pool: ActorPool[Chunk] | None = None

    def load(self) -> None:
        """As Executor: request actors, and wait until each has loaded the engines or has failed."""
        plan, progress = self.plan, self.state.progress
        audio = Decoded(plan.clips, kept_bytes=0)
        warmup = self.state.warmup_clip(audio[self.state.middle_clip.name])
        self.state.audio_seed = secrets.randbits(32)
        prepared = cache_probes.prepare(plan.clips, audio, self.state.audio_seed)
        self.copies = [dataclasses.replace(probe, clip=_absolute(probe.clip)) for probe in prepared]
        count, needs = connect.room(plan.variants, plan.settings.threads, plan.most_workers)
        progress.note(f"requesting {count} actor{'s' if count > 1 else ''} from the cluster")
        hooks = Hooks(lambda: self.state.names, self._came_up, self._opened, progress.note)
        self.pool = ActorPool(self._job(warmup), count, needs, plan.timeout_seconds, hooks)
        while self.state.names and not self.pool.idle:
            self.pool.next_answer()

    @property
    def calls(self) -> int:
        """As Executor."""
        return len(self.plan.clips)

    @property
    def probe_calls(self) -> int:
        """As Executor."""
        return 2 * len(self.copies)

    def close(self) -> None:
        """As Executor."""
        self._sort()
        if self.pool is not None:
            self.pool.close()

    def _job(self, warmup: np.ndarray) -> Job:
        plan = self.plan
        return Job(
            plan.variants,
            _reachable(plan.checkpoint),
            plan.settings,
            plan.timeout_seconds,
            warmup,
            plan.warmup,
            self.state.language,
            plan.normalizer,
            plan.texts,
            {name: _reachable(checkpoint) for name, checkpoint in plan.models.items()},
            [path.absolute() for path in plan.denied],
        )

    def round(self, number: int, order: list[str]) -> dict[str, Any]:
        """As Executor: give out the clips in chunks, those of a lost actor again."""
        pool, state = self._pool, self.state
        missing = [
            clip for clip in self.plan.clips if not all(state.is_done(name, number, clip) for name in order)
        ]
        self.loads = []
        waiting = deque(chunks(missing, len(pool.all)))
        state.progress.note(f"round {number + 1}/{self.plan.rounds}")
        while state.names and (waiting or pool.is_anyone("measure")):
            while waiting and pool.idle:
                self._give(pool.idle.popleft(), waiting.popleft(), number, order)
            self._take(pool.next_answer(), number, order, waiting)
        return self._load_of_round()

    @property
    def _pool(self) -> ActorPool[Chunk]:
        assert self.pool is not None, "load() comes first"
        return self.pool

    def _give(self, handle: Handle, chunk: Chunk, number: int, order: Sequence[str]) -> None:
        if self.sends_samples and chunk.samples is None:
            chunk.samples = {clip.name: clip.samples() for clip in chunk.clips}
        others = [s for s in self._pool.all if s is not handle and s.machine == handle.machine]
        neighbours = [pid for other in others for pid in other.pids]
        alive = [name for name in order if name not in self.state.failed]
        clips = [_absolute(clip) for clip in chunk.clips]
        seed = (self.state.audio_seed, number)
        self._pool.ask(handle, "measure", alive, clips, neighbours, seed, chunk.samples, work=chunk)

    def _take(self, answer: Answer[Chunk], number: int, order: Sequence[str], waiting: deque[Chunk]) -> None:
        handle, chunk, reply = answer.handle, answer.work, answer.reply
        if chunk is None:
            return
        if reply is None:
            self._lost(number, handle, chunk)
            waiting.appendleft(chunk)
        elif reply.get("lacks") == LACKS_AUDIO:
            self.sends_samples = True
            self._give(handle, chunk, number, order)
        else:
            self._keep(number, handle, chunk, reply)
            self._pool.idle.append(handle)

    def _keep(self, number: int, handle: Handle, chunk: Chunk, reply: Reply) -> None:
        handle.losses = 0
        where = {"host": self._number(handle)}
        for name, answers in reply["answers"].items():
            if name in self.state.failed:
                continue  # out since it was given the chunk
            for clip, answer in zip(chunk.clips, answers, strict=False):  # fewer: it failed on the way
                if not self.state.is_done(name, number, clip):
                    self.state.answered(name, number, clip, answer, where)
        self._fail(reply["failures"], "measuring")
        self.loads.append((where["host"], reply))

    def _lost(self, number: int, handle: Handle, chunk: Chunk) -> None:
        chunk.tries += 1
        names = [clip.name for clip in chunk.clips]
        entry: Retry = {"round": number, "host": self._number(handle), "clips": names}
        self.record["retries"].append(entry)
        self.state.note("retry", entry)
        self.state.progress.note(f"an actor was lost with {len(names)} clips; they go to another")
        if chunk.tries >= MOST_TRIES:
            more = " …" if len(names) > 3 else ""
            raise ClusterError(
                f"{MOST_TRIES} actors were lost while they had the clips {', '.join(names[:3])}{more}. The "
                "usual cause is a machine with too little memory for them. Leave these clips out or give the "
                "actors more memory, then run again"
            )

    def check(self) -> None:
        """As Executor; each engine at one actor, of the kind of machine whose times count."""
        self._probe(self.copies)
        self._collect_resources()

    def _probe(self, copies: Sequence[cache_probes.Probe]) -> None:
        while self.state.names:
            handle = self._handle_of_chosen_kind()
            self.state.progress.note("checking for cached and late answers")
            self._pool.ask(handle, "probe", self.state.names, copies)
            while (answer := self._pool.next_answer()).doing != "probe":
                pass
            if answer.reply is None:
                continue
            for row in self.record["results"]:
                name = row["variant"]
                if name in answer.reply["probes"]:
                    self.state.checked(name, answer.reply["probes"][name])
                    row["load"] = handle.loads[name]["load"]
                    self.state.progress.advance(2 * len(copies))
            self._fail(answer.reply["failures"], "checking its answers")
            self._pool.idle.append(handle)
            return

    def _handle_of_chosen_kind(self) -> Handle:
        while not self._pool.idle:
            self._pool.next_answer()
        kinds, chosen = machines.class_of(self.record), machines.choice(self.record)
        idle = self._pool.idle
        handle = next((s for s in idle if kinds[self._number(s)] == chosen), idle[0])
        idle.remove(handle)
        return handle

    def _collect_resources(self) -> None:
        while self._pool.idle:
            self._pool.ask(self._pool.idle.popleft(), "resources")
        told: list[Reply] = [{} for _ in self.record["retries"]]
        while self._pool.is_anyone("resources"):
            answer = self._pool.next_answer()
            if answer.doing == "resources":
                told.append({} if answer.reply is None else answer.reply["resources"])
        for row in self.record["results"]:
            of_actors = [actor.get(row["variant"], {}) for actor in told]
            row["resources"].update(cast(Any, machines.resources(self.record, row, of_actors)))

    def _came_up(self, handle: Handle, found: Reply) -> None:
        assert handle.machine is not None
        if found["shares_cores"]:
            told = (
                f"a machine has fewer free cores than its actors have threads ({self.plan.settings.threads} "
                "each), so they share cores: pass fewer --workers, or start Ray with "
                "--num-cpus=PHYSICAL_CORES"
            )
            if told not in self.record["warnings"]:
                self.record["warnings"].append(told)
        known = self.record["hosts"]
        if handle.machine not in self.numbers:
            self.numbers[handle.machine] = len(known)
            known.append(
                {"number": len(known), "actors": 0, "host": found["host"], "versions": found["versions"]}
            )
        entry = known[self.numbers[handle.machine]]
        together = sum(other.machine == handle.machine for other in self._pool.all)
        if together > entry["actors"]:
            entry["actors"] = together
            self.state.note("host", entry)

    def _opened(self, handle: Handle, reply: Reply) -> None:
        for row in self.record["results"]:
            name, told = row["variant"], reply["loads"].get(row["variant"])
            if told is None or name in self.state.failed:
                continue
            if name in reply["failures"]:
                continue
            if row["applied_settings"] is None:
                row.update(cast(Any, told | {"status": "ok", "error": None}))
            elif row["applied_settings"] != told["applied_settings"]:
                unlike = f"{row['applied_settings']} at one actor and {told['applied_settings']} at another"
                self.state.failure(
                    name, "loading", WorkerError(f"it ran with {unlike}, so the engines are not the same")
                )
        self._fail(reply["failures"], "loading")

    def _fail(self, failures: Mapping[str, Reply], doing: str) -> None:
        for name, failure in failures.items():
            if name not in self.state.failed:
                self.state.failure(name, doing, WorkerError(**failure))

    def _number(self, handle: Handle) -> int:
        assert handle.machine is not None
        return self.numbers[handle.machine]

    def _sort(self) -> None:
        """Put samples in the order of one process, so that sums of floats are its, too."""
        order = {clip.name: n for n, clip in enumerate(self.plan.clips)}
        for row in self.record["results"]:
            row["samples"].sort(key=lambda sample: (sample["round"], order[sample["clip"]]))

    def _load_of_round(self) -> dict[str, float | None]:
        """Return what other programs took of the busiest machine, each on average over the round."""
        shares: dict[int, list[tuple[float, float]]] = {}
        for number, reply in self.loads:
            if reply["load"]["foreign_cpu_fraction"] is not None:
                share = (reply["load"]["foreign_cpu_fraction"], reply["wall_seconds"])
                shares.setdefault(number, []).append(share)
        means = [sum(f * s for f, s in of) / sum(s for _, s in of) for of in shares.values()]
        averages = [reply["load"]["load_average_1min"] for _, reply in self.loads]
        return {
            "foreign_cpu_fraction": max(means, default=None),
            "load_average_1min": max((a for a in averages if a is not None), default=None),
        }


def chunks(clips: Sequence[Clip], actors: int) -> Iterator[Chunk]:
    """Divide clips, in their order, into chunks: every actor gets some, and the loss of one costs little."""
    most = max(1, min(CHUNK_CLIPS, math.ceil(len(clips) / (actors * CHUNKS_PER_ACTOR))))
    held: list[Clip] = []
    for clip in clips:
        if held and (len(held) == most or sum(c.audio_seconds for c in held) > CHUNK_SECONDS):
            yield Chunk(held)
            held = []
        held.append(clip)
    if held:
        yield Chunk(held)


def _reachable(checkpoint: Checkpoint) -> Checkpoint:
    return dataclasses.replace(checkpoint, path=checkpoint.path.absolute())


def _absolute(clip: Clip) -> Clip:
    return dataclasses.replace(clip, path=clip.path.absolute())
