"""The micro-batcher: listings wait here, leave in batches, and each waiter gets exactly one answer. No torch.

Two threads work beside the event loop, so that neither side waits for the other:

    event loop                                   compute thread
    submit ──► waiting ──► take ► collate ──► compute ──► answers ──► event loop
                  └──────► take ► collate ──► sealed ──► compute
                           collate thread

There are two lanes: in one wait listings that a caller waits for, in the other those of jobs, which take the time that
is left. A batch is of one lane. One of jobs begins only while no caller waits, so that a caller waits for one of them
at most. It is one item, which a job makes as large as its batches are to be: what a batch consists of shows in the last
digits of its results, and those of a job must not depend on what else waits.

A batch leaves as soon as the device is free, with whatever waits; there is no timer unless one is configured.
A *full* batch is collated while its predecessor computes, in a thread for that. A partial one is not: sealing it early
would save little copying, and keep out every listing that arrives in the meantime. So while the load is light, a
listing passes from the event loop to one thread and back, and no thread is woken up for nothing.

An item with much work (an explanation) fills several places of a batch, or has a batch to itself, so that others
are not slowed down by it. Predictions of the waiting time count its places.

What can go wrong, and what happens then:

* a listing's deadline passes, or its caller disconnects: it is left out at the moment of dispatch;
* a batch raises: it is split and both halves are tried again, until the listing at fault is alone and fails
  alone;
* a listing fails alone *and* the probe (a listing known to be good) fails too: the device is at fault, and the
  thread dies;
* a thread dies, of that or of anything else: every waiter gets an error, and `alive` is false from then on.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

from service.errors import DeadlineExceeded, Draining, InferenceFailed, NotReady, Overloaded, ServiceError

Item = TypeVar("Item")

Batch = TypeVar("Batch")

Result = TypeVar("Result")

log = logging.getLogger(__name__)

PROBES = 3
"""Failed probes after which the device counts as broken: one failure may be chance, three are not."""


class Lane(Enum):
    """Who waits for an item; whoever comes first here goes first."""

    CALLERS = auto()
    JOBS = auto()


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """A listing's result, and where its time went."""

    result: Result
    queue_seconds: float
    inference_seconds: float


@dataclass(eq=False, slots=True)
class Waiter(Generic[Item, Result]):
    """A listing that waits, and the future that will hold its answer."""

    item: Item
    deadline: float  # on time.monotonic's clock, as are all times here
    future: asyncio.Future[Answer[Result]]
    arrived: float = field(default_factory=time.monotonic)


@dataclass(eq=False, slots=True)
class Sealed(Generic[Item, Batch, Result]):
    """A batch that no listing can join any more; `batch` is None where it has yet to be collated."""

    waiters: list[Waiter[Item, Result]]
    batch: Batch | None


class Queue(Generic[Item, Batch, Result]):
    """What waits in one lane, guarded by the batcher's lock: items, and the batch that is ahead of them."""

    def __init__(self, places: Callable[[Iterable[Waiter[Item, Result]]], int], room: int) -> None:
        """
        places: how many places of a batch some waiters fill
        room: how many places a batch has
        """
        self._places, self._room = places, room
        self.waiting: deque[Waiter[Item, Result]] = deque()
        self.sealing: list[Waiter[Item, Result]] = []  # being collated, or collated and waiting for the device
        self.sealed: Sealed[Item, Batch, Result] | None = None

    def __len__(self) -> int:
        return len(self.waiting) + len(self.sealing)

    def is_full(self) -> bool:
        """Whether what waits fills a batch. Each item fills a place at least."""
        if not self.waiting:
            return False
        return len(self.waiting) >= self._room or self._places(self.waiting) >= self._room

    def take(self) -> list[Waiter[Item, Result]]:
        """Take as many items as fit into a batch, the oldest first; one alone may need more places than there are."""
        taken = [self.waiting.popleft()]
        room = self._room - self._places(taken)
        while self.waiting and (needed := self._places([self.waiting[0]])) <= room:
            taken.append(self.waiting.popleft())
            room -= needed
        return taken

    def take_batch(self) -> Sealed[Item, Batch, Result]:
        """Take the batch that has been collated, or else what waits."""
        batch, self.sealed, self.sealing = self.sealed or Sealed(self.take(), None), None, []
        return batch


class BatchCost:
    """How long a batch takes, by the number of its filled places, from recent measurements.

    One row per power of two, so that a full batch's cost is remembered while the load is light; the median of
    the last few, so that a single stall does not turn callers away; linear interpolation between known sizes.
    """

    def __init__(self) -> None:
        self._seen: dict[int, deque[float]] = {}
        self._updated: dict[int, float] = {}

    def observe(self, size: int, seconds: float) -> None:
        row = self._row(size)
        self._seen.setdefault(row, deque(maxlen=5)).append(seconds)
        self._updated[row] = time.monotonic()

    def seconds(self, size: int) -> float:
        """Expected seconds of a batch of `size`; 0 before anything was measured."""
        rows = sorted((row, statistics.median(seen)) for row, seen in list(self._seen.items()))
        if not rows:
            return 0.0
        above = bisect.bisect_left(rows, (size, 0.0))
        if above == 0 or above == len(rows):
            return rows[min(above, len(rows) - 1)][1]
        (low, fast), (high, slow) = rows[above - 1], rows[above]
        return fast + (slow - fast) * (size - low) / (high - low)

    def age(self, size: int) -> float:
        """Seconds since the newest measurement that `seconds(size)` uses: of the next larger known size, if any."""
        rows = sorted(self._updated.items())
        if not rows:
            return float("inf")
        above = bisect.bisect_left(rows, (size, 0.0))
        return time.monotonic() - rows[min(above, len(rows) - 1)][1]

    @staticmethod
    def _row(size: int) -> int:
        return 1 << (size - 1).bit_length()  # the smallest power of two that holds it


class MicroBatcher(Generic[Item, Batch, Result]):
    """Collects listings into batches for one device. `submit` on the event loop; all else happens on two threads."""

    def __init__(
        self,
        *,
        collate: Callable[[Sequence[Item]], Batch],
        compute: Callable[[Batch], Sequence[Result]],
        probe: Callable[[], object],
        max_batch_size: int,
        max_wait: float = 0.0,
        work: Callable[[Item], int] = lambda item: 1,
        on_batch: Callable[[Sequence[Item]], None] = lambda items: None,
    ) -> None:
        """
        collate: puts items together; runs concurrently with `compute`, in another thread
        compute: answers a batch, in its order
        probe: computes a listing known to be good; raises if the device is at fault
        max_batch_size: places in a batch
        max_wait: seconds that an idle device waits for more items
        work: how many places an item fills; one that needs more than a batch has is computed alone
        on_batch: called with the items of each batch computed
        """
        self._collate, self._compute, self._probe = collate, compute, probe
        self._max_batch_size, self._max_wait, self._on_batch = max_batch_size, max_wait, on_batch
        self._work = work
        self.cost = BatchCost()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(step,), name=name, daemon=True)
            for name, step in (("collate", self._collate_next), ("compute", self._compute_next))
        ]
        # What the threads share, guarded by one lock; each condition is for one thread.
        self._lock = threading.Lock()
        self._may_compute, self._may_collate = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queues: dict[Lane, Queue[Item, Batch, Result]] = {
            Lane.CALLERS: Queue(self._places, max_batch_size),
            Lane.JOBS: Queue(self._places, 1),
        }
        self._computing: list[Waiter[Item, Result]] = []
        self._computing_since = 0.0
        self._computing_queue = self._queues[Lane.CALLERS]
        self._closed: Callable[[], ServiceError] | None = None  # makes the error for items that come too late
        self._dead = False

    # ── on the event loop ───────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start the threads; their answers go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    async def submit(self, item: Item, *, deadline: float, lane: Lane = Lane.CALLERS) -> Answer[Result]:
        """Wait for `item`'s answer. If cancelled, it leaves the queue; past `deadline` it is no longer computed.

        Raises `DeadlineExceeded`, `InferenceFailed` (it makes the model raise), `Overloaded` (out of memory,
        even alone), `NotReady` (a thread has died) or `Draining` (closed).
        """
        waiter = Waiter[Item, Result](item, deadline, asyncio.get_running_loop().create_future())
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            queue = self._queues[lane]
            queue.waiting.append(waiter)
            if not self._computing and not queue.sealing:  # the device is idle, or waits for a batch of the other lane
                self._may_compute.notify()
            elif self._collates_next() is queue:
                self._may_collate.notify()
        try:
            return await waiter.future
        finally:
            if waiter.future.cancelled():
                self._forget(waiter, queue)

    def close(self) -> None:
        """Accept no more items, fail those that still wait, and let the threads end."""
        self._fail_all(lambda: Draining("the service has stopped", retry_after=1))

    @property
    def alive(self) -> bool:
        """False once a thread has died: only a new process helps then."""
        return not self._dead

    @property
    def waiting(self) -> int:
        """Listings that callers wait for, and that wait for the device."""
        with self._lock:
            return len(self._queues[Lane.CALLERS])

    @property
    def computing_for(self) -> float:
        """Seconds that the current batch has been computing; 0 if there is none."""
        with self._lock:
            return time.monotonic() - self._computing_since if self._computing else 0.0

    def expected_seconds(self, listings: int) -> float:
        """Predict how long until `listings` of callers are answered, those included that are here already.

        What waits in the lane of jobs comes later; of a batch of it that is being computed, the rest is waited for.
        """
        with self._lock:
            computing, elapsed = self._places(self._computing), time.monotonic() - self._computing_since
            callers = self._queues[Lane.CALLERS]
            answered = self._computing if self._computing_queue is callers else []
            here = [*callers.waiting, *callers.sealing, *answered]
        remaining = max(0.0, self.cost.seconds(computing) - elapsed) if computing else 0.0
        places = listings + self._places(here) - len(here)  # those that are not here yet count as one place each
        full, partial = divmod(max(0, places - self._places(answered)), self._max_batch_size)
        return (
            remaining
            + full * self.cost.seconds(self._max_batch_size)
            + (self.cost.seconds(partial) if partial else 0.0)
        )

    def _places(self, waiters: Iterable[Waiter[Item, Result]]) -> int:
        return sum(self._work(waiter.item) for waiter in waiters)

    def _forget(self, waiter: Waiter[Item, Result], queue: Queue[Item, Batch, Result]) -> None:
        with self._lock:
            if waiter in queue.waiting:
                queue.waiting.remove(waiter)

    # ── on the threads ──────────────────────────────────────────────────────────────────────────────────────

    def _run(self, step: Callable[[], bool]) -> None:
        """Repeat `step` until it returns False; whatever kills the thread, no item is left waiting."""
        try:
            while step():
                pass
        except BaseException:
            log.critical("the %s thread has died", threading.current_thread().name, exc_info=True)
            self._dead = True
            self._fail_all(lambda: NotReady("the inference thread has died", retry_after=5))

    def _collate_next(self) -> bool:
        """Collate a full batch while its predecessor computes."""
        with self._lock:
            while (queue := self._collates_next()) is None and self._closed is None:
                self._may_collate.wait()
            if queue is None or self._closed is not None:
                return False
            queue.sealing = taken = queue.take()
        wanted = self._still_wanted(taken)
        sealed = Sealed(wanted, self._try_to_collate(wanted)) if wanted else None
        with self._lock:
            queue.sealed, queue.sealing = sealed, wanted
            if not self._computing:  # it has ended meanwhile, and waits for this one
                self._may_compute.notify()
        return True

    def _compute_next(self) -> bool:
        """Compute the batch that is sealed, or whatever waits."""
        with self._lock:
            # The clock is read once, to decide and to set the time-out: between two readings, the moment could pass.
            while (queue := self._computes_next(due := self._until_due())) is None and self._closed is None:
                self._may_compute.wait(due)
            if queue is None or self._closed is not None:
                return False
            sealed = queue.take_batch()
            self._computing, self._computing_since, self._computing_queue = sealed.waiters, time.monotonic(), queue
            if self._collates_next() is not None:  # the slot is free
                self._may_collate.notify()
        self._answer(sealed)
        with self._lock:
            self._computing = []
        return True

    def _collates_next(self) -> Queue[Item, Batch, Result] | None:
        """Return the queue of which a full batch waits, while the device computes and the slot ahead of it is free."""
        if not self._computing:
            return None
        return next((queue for queue in self._queues.values() if not queue.sealing and queue.is_full()), None)

    def _computes_next(self, due: float | None) -> Queue[Item, Batch, Result] | None:
        """Return the queue that the device may begin with: the first one in which something waits, once that may leave.

        due: what `_until_due` has just returned; a full batch doesn't wait for it
        """
        for queue in self._queues.values():
            if queue.sealed is not None:
                return queue
            if queue.sealing:  # it will be there in a moment
                return None
            if queue.waiting:
                return queue if due is None or queue.is_full() else None
        return None

    def _until_due(self) -> float | None:
        """Seconds that a caller's oldest item still waits for more; None if there is nothing to wait for."""
        waiting = self._queues[Lane.CALLERS].waiting
        if not self._max_wait or not waiting:
            return None
        left = waiting[0].arrived + self._max_wait - time.monotonic()
        return left if left > 0 else None

    def _still_wanted(self, waiters: list[Waiter[Item, Result]]) -> list[Waiter[Item, Result]]:
        """Leave out those whose caller has gone, and those whose deadline has passed (which get their error)."""
        now = time.monotonic()
        late = [waiter for waiter in waiters if waiter.deadline <= now]
        if late:
            self._deliver([(waiter, _too_late()) for waiter in late])
        return [waiter for waiter in waiters if waiter.deadline > now and not waiter.future.done()]

    def _try_to_collate(self, waiters: list[Waiter[Item, Result]]) -> Batch | None:
        """Collate; None on failure, so that `_answer` tries again where failures are handled."""
        try:
            return self._collate([waiter.item for waiter in waiters])
        except Exception:
            return None

    def _answer(self, sealed: Sealed[Item, Batch, Result]) -> None:
        """Compute a batch and answer it; if it raises, split it until the listing at fault is alone."""
        wanted = self._still_wanted(sealed.waiters)
        if not wanted:
            return
        started = time.monotonic()
        try:
            if sealed.batch is None or len(wanted) < len(sealed.waiters):
                sealed.batch = self._collate([waiter.item for waiter in wanted])
            results = self._compute(sealed.batch)
            if len(results) != len(wanted):
                raise RuntimeError(f"the model answered {len(results)} of {len(wanted)} listings")
        except Exception as error:
            log.warning("a batch of %d listings has failed: %s", len(wanted), type(error).__name__, exc_info=True)
            out_of_memory = _is_out_of_memory(error)
        else:
            self._deliver_results(wanted, results, started)
            return
        # Here, and not in the except block: there the traceback would keep the failed batch's memory in use.
        sealed.batch = None
        if len(wanted) == 1:
            self._blame(wanted[0], out_of_memory=out_of_memory)
        else:
            half = len(wanted) // 2
            self._answer(Sealed(wanted[:half], None))
            self._answer(Sealed(wanted[half:], None))

    def _blame(self, waiter: Waiter[Item, Result], *, out_of_memory: bool) -> None:
        """Fail a listing that fails alone, unless the device fails a good listing too: then the thread dies.

        After some device errors (of CUDA: an illegal address, a failed assertion) every further call fails.
        That must not be blamed on callers' listings, and only a restart helps.
        """
        self._check_device()
        if out_of_memory:
            self._deliver([(waiter, Overloaded("the device is out of memory", retry_after=1))])
        else:
            self._deliver([(waiter, InferenceFailed("the model failed on this listing"))])

    def _check_device(self) -> None:
        for attempt in range(1, PROBES + 1):
            try:
                self._probe()
                return
            except Exception:
                if attempt == PROBES:
                    raise

    def _deliver_results(self, waiters: list[Waiter[Item, Result]], results: Sequence[Result], started: float) -> None:
        seconds = time.monotonic() - started
        self.cost.observe(self._places(waiters), seconds)
        self._on_batch([waiter.item for waiter in waiters])
        self._deliver(
            [
                (waiter, Answer(result, started - waiter.arrived, seconds))
                for waiter, result in zip(waiters, results, strict=True)
            ]
        )

    def _fail_all(self, reason: Callable[[], ServiceError]) -> None:
        with self._lock:
            self._closed = self._closed or reason
            waiters = list(self._computing)
            for queue in self._queues.values():
                waiters += [*queue.waiting, *queue.sealing]
                queue.waiting.clear()
            self._may_compute.notify()
            self._may_collate.notify()
        self._deliver([(waiter, reason()) for waiter in waiters])

    def _deliver(self, outcomes: list[tuple[Waiter[Item, Result], Answer[Result] | ServiceError]]) -> None:
        """Pass answers to the event loop: one wake-up for a whole batch."""
        if self._loop is None or self._loop.is_closed():
            return  # nothing can be waiting
        try:
            self._loop.call_soon_threadsafe(_settle, outcomes)
        except RuntimeError:
            log.debug("the event loop closed before the last answers")


def _settle(outcomes: list[tuple[Waiter[Item, Result], Answer[Result] | ServiceError]]) -> None:
    for waiter, outcome in outcomes:
        if waiter.future.done():
            continue  # the caller has gone, or has its answer already
        if isinstance(outcome, ServiceError):
            waiter.future.set_exception(outcome)
        else:
            waiter.future.set_result(outcome)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while the listing waited for the device")


def _is_out_of_memory(error: Exception) -> bool:
    """By name, since torch's class must not be imported here."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
