"""Units of a table for actors of two kinds, decoders and predictors; their rows in order, whatever ends in between.

Knows Ray as a module that it is given, and nothing of what actors do: `model.inference.cluster` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from model.errors import DecodingStoppedError, ModelError
from model.inference.bulk import Item, RowMaker
from model.inference.output import Block

UNIT_ROWS = 512
"""Listings of a unit, about: of 224 × 224 pixels, they are 77 MB."""

DEPTH = 2
"""Units that an actor has at once: it is at one, and the next one lies ready."""

ATTEMPTS = 5
"""How often a unit is begun, and how many actors may end one after the other with nothing done, until the run ends."""

# --- crews: actors that are replaced when they end ---------------------------------------------------------


@dataclass(eq=False)
class Worker:
    """An actor, whether it has been started, and how many units it has."""

    handle: Any
    starting: Any
    """The reference to what its start returns; None once it has been started."""
    units: int = 0


class LostError(Exception):
    """What was asked of an actor is lost, through no fault of our code; `ended`: so is the actor."""

    def __init__(self, *, ended: bool) -> None:
        super().__init__()
        self.ended = ended


@dataclass(frozen=True)
class Share:
    """How many actors there are of a kind, and what Ray sets aside for each."""

    count: int
    options: dict[str, float]


class Crew:
    """Actors of one kind; each one that ends is replaced."""

    def __init__(
        self,
        ray: Any,
        kind: type,
        arguments: tuple[Any, ...],
        share: Share,
        check: Callable[[Any, Any], None],
    ) -> None:
        """check: is given what the first actor's start returned, and what another one's did; may raise."""
        self._ray, self._arguments, self._check = ray, arguments, check
        # Ray itself would run again what an actor was at, however often that ends it: `Schedule` does, and counts.
        self._kind = ray.remote(**share.options, max_restarts=0, max_task_retries=0)(kind)
        self.workers: list[Worker] = []
        self._first: Any = None
        self._ended = 0
        for _ in range(share.count):
            self._add()

    def _add(self) -> None:
        handle = self._kind.remote(*self._arguments)
        self.workers.append(Worker(handle, handle.start.remote()))

    def first(self) -> Any:
        """Wait until one of the actors has been started, and return what its start returned."""
        while True:
            starting = {worker.starting: worker for worker in self.workers if worker.starting is not None}
            (reference, *_), _ = self._ray.wait(list(starting), num_returns=1)
            if self.started(starting[reference]):
                return self._first

    def started(self, worker: Worker) -> bool:
        """Take note that an actor has been started; False where it ended before, and another one is being started.

        Raises what its start raised, and what `check` does.
        """
        try:
            found = self.result(worker.starting)
        except LostError:
            self.replace(worker)
            return False
        worker.starting = None
        self._first = found if self._first is None else self._first
        self._check(self._first, found)
        return True

    def free(self) -> Worker | None:
        """Return the actor that has the fewest units, if it can take another one."""
        ready = [worker for worker in self.workers if worker.starting is None]
        least = min(ready, key=lambda worker: worker.units, default=None)
        return least if least is not None and least.units < DEPTH else None

    def replace(self, worker: Worker) -> None:
        """Put another actor in the place of one that has ended. Raises `ModelError` where that never helps."""
        if worker not in self.workers:
            return
        self._ended += 1
        if self._ended >= ATTEMPTS + len(self.workers):
            raise ModelError("the cluster's actors end again and again with nothing done; their logs say why")
        self.workers.remove(worker)
        self._ray.kill(worker.handle)
        self._add()

    def result(self, reference: Any) -> Any:
        """Return what a call returned. Raises `LostError`, or what the call raised."""
        errors = self._ray.exceptions
        try:
            found = self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, DecodingStoppedError):
                raise LostError(ended=True) from None
            if isinstance(error.cause, errors.RayError):
                raise LostError(ended=False) from None
            if isinstance(error.cause, ModelError):
                raise error.cause from None
            raise
        except errors.RayActorError:
            raise LostError(ended=True) from None
        except errors.RayError:
            raise LostError(ended=False) from None
        self._ended = 0
        return found

    def end(self) -> None:
        """End all actors."""
        for worker in self.workers:
            self._ray.kill(worker.handle)


class Crews:
    """All crews of a run, which end with it."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._all: list[Crew] = []

    def __enter__(self) -> Crews:
        return self

    def __exit__(self, *_: object) -> None:
        for crew in self._all:
            crew.end()

    def hire(
        self,
        kind: type,
        arguments: tuple[Any, ...],
        share: Share,
        check: Callable[[Any, Any], None] = lambda first, other: None,
    ) -> Crew:
        """Start a crew (`Crew`)."""
        crew = Crew(self._ray, kind, arguments, share, check)
        self._all.append(crew)
        return crew


# --- the schedule ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Unit:
    """Some consecutive items of the table, and how far they are."""

    number: int
    items: list[Item]
    attempts: int = 0
    shown: Any = None
    """The reference to what was decoded."""


@dataclass(frozen=True, slots=True)
class Call:
    """What an awaited reference stands for: a unit's decoding, or prediction, by an actor of a crew."""

    crew: Crew
    worker: Worker
    unit: Unit
    shown: Any = None


def cut(items: Iterator[Item], batch_size: int) -> Iterator[Unit]:
    """Cut the items into units of whole batches: every batch holds the listings that it would on one machine."""
    size = max(1, UNIT_ROWS // batch_size) * batch_size
    for number in count():
        chosen = list(islice(items, size))
        if not chosen:
            return
        yield Unit(number, chosen)


@dataclass
class Schedule:
    """Gives units to actors, and their rows back in order.

    At most so many units are begun and not yet given back as all actors may have, twice: memory doesn't grow with the
    table, and one slow unit doesn't stop the others at once.
    """

    ray: Any
    decoders: Crew
    predictors: Crew
    rows: RowMaker
    suffix: str
    _to_decode: deque[Unit] = field(default_factory=deque)
    _to_predict: deque[Unit] = field(default_factory=deque)
    _calls: dict[Any, Call] = field(default_factory=dict)
    _done: dict[int, Block] = field(default_factory=dict)

    def blocks(self, units: Iterator[Unit]) -> Iterator[Block]:
        """Yield the rows of each unit, in order."""
        most = 2 * DEPTH * (len(self.decoders.workers) + len(self.predictors.workers))
        begun = given = 0
        while True:
            further = list(islice(units, most - (begun - given)))
            if not further and begun == given:
                return
            self._to_decode.extend(further)
            begun += len(further)
            self._assign()
            self._wait()
            while given in self._done:
                yield self._done.pop(given)
                given += 1

    def _assign(self) -> None:
        while self._to_predict and (worker := self.predictors.free()) is not None:
            unit = self._to_predict.popleft()
            reference = worker.handle.predict.remote(unit.shown, self.rows, self.suffix)
            self._begin(reference, Call(self.predictors, worker, unit))
        # Decoded pixels take memory while they wait, so not too many do.
        room = DEPTH * len(self.predictors.workers) - len(self._to_predict)
        while self._to_decode and room > 0 and (worker := self.decoders.free()) is not None:
            unit, room = self._to_decode.popleft(), room - 1
            size, shown = worker.handle.decode.options(num_returns=2).remote(unit.items)
            self._begin(size, Call(self.decoders, worker, unit, shown))  # awaiting the pixels would fetch them here

    def _begin(self, reference: Any, call: Call) -> None:
        call.worker.units += 1
        self._calls[reference] = call

    def _wait(self) -> None:
        """Wait until something has been done, or an actor has been started, and take note of it."""
        starting = {
            worker.starting: (crew, worker)
            for crew in (self.decoders, self.predictors)
            for worker in crew.workers
            if worker.starting is not None
        }
        ready, _ = self.ray.wait([*self._calls, *starting], num_returns=1)
        for reference in ready:
            if reference in starting:
                crew, worker = starting[reference]
                crew.started(worker)
            else:
                self._finish(reference, self._calls.pop(reference))

    def _finish(self, reference: Any, call: Call) -> None:
        call.worker.units -= 1
        unit = call.unit
        try:
            found = call.crew.result(reference)
        except LostError as lost:
            if lost.ended:
                call.crew.replace(call.worker)
            self._again(unit)
            return
        if call.crew is self.decoders:
            unit.shown = call.shown
            self._to_predict.append(unit)
        else:
            unit.shown = None  # so that Ray drops the pixels
            self._done[unit.number] = found

    def _again(self, unit: Unit) -> None:
        unit.attempts += 1
        if unit.attempts == ATTEMPTS:
            first = unit.items[0].id
            raise ModelError(
                f"the {len(unit.items)} listings from {first!r} on were begun {ATTEMPTS} times, and each time the "
                "actor that had them ended; Ray's logs say why, and what was finished is kept"
            )
        unit.shown = None
        self._to_decode.appendleft(unit)
