"""The actors of a run as seen from the process that leads it: asked, awaited, and brought up again when lost.

Ray finds each actor (runner.cluster.actor.Actor) a node with what it needs and, when its process or its node
is lost, starts it again wherever there is room. What it was doing then is for the caller to give out anew.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from asrgate.backends.base import AsrgateError
from asrgate.harness.runner import resume
from asrgate.harness.runner.cluster.actor import LACKS_ENGINES, LACKS_WEIGHTS, Actor, Job
from asrgate.harness.runner.cluster.connect import ClusterError

LOSSES_IN_VAIN = 3  # of an actor, with no work done in between: its machine cannot do it
CLOSING_SECONDS = 5.0

Reply = dict[str, Any]
Doing = Literal["begin", "open", "measure", "probe", "resources"]
Work = TypeVar("Work")


@dataclass(eq=False)
class Handle:
    """One actor; Ray may have restarted it anywhere since it last answered.

    Attributes:
        machine: where it is, the same for all actors of one machine; None until it has been up.
        pids: its processes while its engines are loaded.
        loads: variant -> applied_settings and load, as when its engines were last loaded.
        losses: how often it was lost since it last did some work.
    """

    actor: Any
    machine: str | None = None
    pids: list[int] = field(default_factory=list)
    loads: dict[str, Reply] = field(default_factory=dict)
    losses: int = 0


@dataclass
class Hooks:
    """What the owner of handles is told.

    Attributes:
        names: returns the variants that are still in the run.
        up: an actor has come up: its handle, and what Actor.begin says.
        opened: its engines are loaded: its handle, and what Actor.open says.
        note: says one thing that happened.
    """

    names: Callable[[], list[str]]
    up: Callable[[Handle, Reply], None]
    opened: Callable[[Handle, Reply], None]
    note: Callable[[str], None]


@dataclass
class Answer(Generic[Work]):
    """What came of asking a handle; `reply` is None where the actor was lost meanwhile."""

    handle: Handle
    doing: Doing
    work: Work | None
    reply: Reply | None


class ActorPool(Generic[Work]):
    """All actors of a run. Handles in `idle` have their engines loaded and nothing to do."""

    def __init__(
        self, job: Job, count: int, needs: Mapping[str, float], timeout_seconds: float, hooks: Hooks
    ):
        """Ask Ray for the actors.

        Args:
            needs: what Ray is to reserve for each, as options of an actor.
            timeout_seconds: how long to wait for a first actor when there is none.
        """
        import ray

        self._ray = ray
        self._hooks = hooks
        self._checkpoints = list(job.checkpoints.values())
        self._weights: list[Any] = []
        self._timeout_seconds = timeout_seconds
        self._asked: dict[Any, tuple[Handle, Doing, Work | None]] = {}
        self._versions: Mapping[str, str | None] | None = None
        self.idle: deque[Handle] = deque()
        # Ray restarts a lost actor; a call it was at fails, and is not repeated behind our back
        options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, **needs}
        actor: Any = ray.remote(**options)(Actor)
        self._job = ray.put(job)
        self.all = [Handle(actor.remote()) for _ in range(count)]
        for handle in self.all:
            self._begin(handle)

    def ask(self, handle: Handle, doing: Doing, *arguments: Any, work: Work | None = None) -> None:
        """Have a handle do something; its Answer comes from next_answer() with `work` beside."""
        self._asked[getattr(handle.actor, doing).remote(*arguments)] = (handle, doing, work)

    def is_anyone(self, doing: Doing) -> bool:
        """Whether an answer to that is due."""
        return any(now == doing for _, now, _ in self._asked.values())

    def next_answer(self) -> Answer[Work]:
        """Wait for an answer; see to what follows from it for the handle itself.

        A handle that came up is told to load its engines, one that loaded them becomes idle, one that was
        lost is brought up again.

        Raises:
            ClusterError: no actor is left, or nodes have unlike software, or an actor has failed.
        """
        if not self._asked:
            raise ClusterError(
                f"all {len(self.all)} actors of the cluster are lost; check its nodes (`ray status`), then "
                "continue with --resume"
            )
        homeless = all(doing == "begin" for _, doing, _ in self._asked.values())
        timeout = self._timeout_seconds if homeless else None
        try:
            ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=timeout)
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"the cluster no longer answers: {error}") from error
        if not ready:
            raise ClusterError(
                f"the cluster provided no actor within {timeout:g} s: its CPUs or GPUs are in use, or the "
                "nodes that had them are gone (`ray status`); wait longer with --timeout, or continue later "
                "with --resume"
            )
        handle, doing, work = self._asked.pop(ready[0])
        reply = self._reply(handle, ready[0])
        if reply is not None:
            if reply.get("lacks") == LACKS_ENGINES:  # restarted since it began
                self._bring_up(handle, for_good=False)
                reply = None
            elif doing == "begin":
                self._came_up(handle, reply)
            elif doing == "open":
                self._loaded(handle, reply)
        return Answer(handle, doing, work, reply)

    def close(self) -> None:
        """End every actor and its workers, wherever they are."""
        closing = [handle.actor.close.remote() for handle in self.all]
        with contextlib.suppress(Exception):  # whoever does not answer is killed
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSING_SECONDS)
        for handle in self.all:
            with contextlib.suppress(Exception):
                self._ray.kill(handle.actor)

    def _reply(self, handle: Handle, ref: Any) -> Reply | None:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except exceptions.RayTaskError as error:  # raised in the actor: it stands, but cannot do this
            cause = error.cause if isinstance(error.cause, (AsrgateError, OSError)) else error
            raise ClusterError(f"an actor of the cluster cannot continue: {cause}") from error
        except exceptions.RayError as error:
            self._bring_up(handle, for_good=isinstance(error, exceptions.ActorDiedError))
            return None

    def _begin(self, handle: Handle) -> None:
        # to be retried by Ray: it waits until the actor has found a node
        begin = handle.actor.begin.options(max_task_retries=-1)
        self._asked[begin.remote(self._job)] = (handle, "begin", None)

    def _bring_up(self, handle: Handle, for_good: bool) -> None:
        handle.pids = []
        handle.losses += 1
        if for_good or handle.losses >= LOSSES_IN_VAIN:
            self._hooks.note("an actor of the cluster is permanently lost")
            self._ray.kill(handle.actor)
        else:
            self._begin(handle)

    def _came_up(self, handle: Handle, found: Reply) -> None:
        own = {name: v for name, v in found["versions"].items() if name not in resume.OWN_VERSIONS}
        first = self._versions = self._versions or own
        unlike = [name for name in sorted({*own, *first}) if own.get(name) != first.get(name)]
        if unlike:
            listed = ", ".join(f"{name} {first.get(name)} and {own.get(name)}" for name in unlike)
            raise ClusterError(
                f"nodes have different software ({listed}), so their answers would come from different "
                "engines; install the same versions on all nodes"
            )
        handle.machine = found["machine"]
        self._hooks.up(handle, found)
        self.ask(handle, "open", self._hooks.names())

    def _loaded(self, handle: Handle, reply: Reply) -> None:
        if reply.get("lacks") == LACKS_WEIGHTS:
            if not self._weights:
                files = (
                    np.zeros(0, np.uint8) if found.is_of_engine else np.fromfile(found.path, np.uint8)
                    for found in self._checkpoints
                )
                self._weights = [self._ray.put(content) for content in files]
            self.ask(handle, "open", self._hooks.names(), *self._weights)
            return
        handle.pids, handle.loads = reply["pids"], reply["loads"]
        self._hooks.opened(handle, reply)
        self.idle.append(handle)
