"""A stand-in for Ray whose actors live in this process, answer in a seeded order and are lost when told."""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class RayError(Exception):
    pass


class ActorUnavailableError(RayError):
    """The actor was lost; Ray starts it again."""


class ActorDiedError(RayError):
    """The actor was lost, and Ray does not start it again."""


class RayTaskError(RayError):
    """The method raised."""

    def __init__(self, cause: BaseException):
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Call:
    """A reference: what is asked for is done when it is asked after."""

    actor: Actor
    method: str
    arguments: tuple[Any, ...]


@dataclass
class Method:
    actor: Actor
    name: str

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *arguments: Any) -> Call:
        return Call(self.actor, self.name, arguments)


class Actor:
    """A handle; `number` counts the actors from 0, `state` is the object that Ray would have elsewhere."""

    def __init__(self, number: int, make: Callable[[], Any]):
        self.number, self.make, self.state, self.is_dead = number, make, make(), False

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class FakeRay(types.ModuleType):
    """Put in place of the module `ray`.

    Attributes:
        alive: nodes as `ray.nodes()` gives their resources.
        lost: told of each call; returns the error that it fails with, None where it is to be done.
        before: told of each call that is done; returns the arguments it gets.
        after: told of each call and what it gave; returns what the caller gets.
        is_full: there is room for no actor.
    """

    def __init__(self, seed: int = 0):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(
            RayError=RayError,
            ActorUnavailableError=ActorUnavailableError,
            ActorDiedError=ActorDiedError,
            RayTaskError=RayTaskError,
        )
        self.random = random.Random(seed)
        self.alive: list[Mapping[str, float]] = [{"CPU": 3.0}]
        self.actors: list[Actor] = []
        self.lost: Callable[[Call], RayError | None] = lambda call: None
        self.before: Callable[[Call], tuple[Any, ...]] = lambda call: call.arguments
        self.after: Callable[[Call, Any], Any] = lambda call, reply: reply
        self.is_full = False
        self.running = 0
        self.needs: dict[str, Any] = {}

    def init(self, **_: Any) -> None:
        self.running += 1

    def shutdown(self) -> None:
        self.running -= 1

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.alive]

    def remote(self, **options: Any) -> Callable[[Callable[[], Any]], Any]:
        self.needs = options

        def factory(make: Callable[[], Any]) -> Any:
            def start() -> Actor:
                self.actors.append(Actor(len(self.actors), make))
                return self.actors[-1]

            return types.SimpleNamespace(remote=start)

        return factory

    def put(self, value: Any) -> Any:
        return value

    def wait(
        self, calls: Sequence[Call], num_returns: int, timeout: float | None
    ) -> tuple[list[Call], list[Call]]:
        if self.is_full:
            assert timeout is not None, "waits for ever"
            return [], list(calls)
        if num_returns > 1:  # nobody looks at what these give
            for call in calls:
                getattr(call.actor.state, call.method)(*call.arguments)
            return list(calls), []
        chosen = self.random.choice(list(calls))
        return [chosen], [call for call in calls if call is not chosen]

    def get(self, call: Call) -> Any:
        error = ActorDiedError() if call.actor.is_dead else self.lost(call)
        if error is not None:
            call.actor.state.close()
            call.actor.state = call.actor.make()
            raise error
        try:
            reply = getattr(call.actor.state, call.method)(*self.before(call))
        except Exception as error:
            raise RayTaskError(error) from error
        return self.after(call, reply)

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True
        actor.state.close()
