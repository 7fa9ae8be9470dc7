"""What `model.inference.cluster` uses of Ray, in this process: calls run when they are awaited, in any order.

Actors can be made to end at their n-th call, and pixels to be lost.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


class RayError(Exception):
    """As Ray's: the root of what it raises."""


class RayActorError(RayError):
    """An actor has ended."""


class ObjectLostError(RayError):
    """What a call returned is lost."""


class RayTaskError(RayError):
    """A call raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Exceptions:
    """As `ray.exceptions`."""

    RayError, RayActorError, RayTaskError = RayError, RayActorError, RayTaskError


class Reference:
    """What a call is going to return."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self._finished: tuple[Any, RayError | None] | None = None

    def resolve(self) -> Any:
        if self._finished is None:
            try:
                self._finished = self._run(), None
            except RayError as error:
                self._finished = None, error
        value, error = self._finished
        if error is not None:
            raise error
        return value


class Method:
    """A method of an actor."""

    def __init__(self, actor: Actor, name: str, returned: int = 1) -> None:
        self._actor, self._name, self._returned = actor, name, returned

    def options(self, *, num_returns: int) -> Method:
        return Method(self._actor, self._name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        whole = Reference(lambda: self._actor.call(self._name, arguments))
        if self._returned == 1:
            return whole
        return [Reference(lambda at=at: whole.resolve()[at]) for at in range(self._returned)]  # type: ignore[misc]


class Actor:
    """An actor's handle."""

    def __init__(self, ray: FakeRay, kind: type, arguments: Sequence[Any]) -> None:
        self._ray, self.kind = ray, kind
        self._object = kind(*[each.resolve() if isinstance(each, Reference) else each for each in arguments])
        self.has_ended = False

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    def call(self, name: str, arguments: Sequence[Any]) -> Any:
        self._ray.calls[name] += 1
        if self.has_ended or self._ray.ends(name, self._ray.calls[name]):
            self.has_ended = True
            raise RayActorError(f"{self.kind.__name__} has ended")
        try:
            found = [each.resolve() if isinstance(each, Reference) else each for each in arguments]
            return getattr(self._object, name)(*found)
        except Exception as error:
            raise RayTaskError(error) from error


class FakeRay:
    """As the module `ray`."""

    exceptions = Exceptions

    def __init__(
        self,
        *,
        ends: Callable[[str, int], bool] = lambda name, call: False,
        resources: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """ends: whether an actor ends at a call of this name, the n-th of all actors."""
        self.ends, self.resources = ends, resources or {"CPU": 2.0}
        self.calls: Counter[str] = Counter()
        self.actors: list[Actor] = []
        self.options: dict[str, dict[str, float]] = {}
        self.begun: dict[str, Any] = {}
        self.is_shut_down = self.connected = False
        self._random = random.Random(seed)

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **arguments: Any) -> None:
        self.begun = arguments

    def shutdown(self) -> None:
        self.is_shut_down = True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: Any) -> Callable[[type], Any]:
        ray = self

        def made(kind: type) -> Any:
            ray.options[kind.__name__] = options

            class Kind:
                @staticmethod
                def remote(*arguments: Any) -> Actor:
                    ray.actors.append(Actor(ray, kind, arguments))
                    return ray.actors[-1]

            return Kind

        return made

    def put(self, value: Any) -> Reference:
        return Reference(lambda: value)

    def wait(self, references: Sequence[Reference], *, num_returns: int) -> tuple[list[Reference], list[Reference]]:
        chosen = self._random.sample(references, num_returns)
        for each in chosen:
            with contextlib.suppress(RayError):
                each.resolve()
        return chosen, [each for each in references if each not in chosen]

    def get(self, reference: Reference) -> Any:
        return reference.resolve()

    def kill(self, actor: Actor) -> None:
        actor.has_ended = True
