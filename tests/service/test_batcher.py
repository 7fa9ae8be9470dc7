"""The micro-batcher by itself: when batches leave, who is in them, and that everyone gets exactly one answer."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DeadlineExceeded, Draining, InferenceFailed, NotReady, Overloaded, ServiceError
from service.scheduling.batcher import BatchCost, Lane, MicroBatcher
from tests.service.conftest import until

FAR = 1e9  # a deadline that never comes
Batcher = MicroBatcher[int, list[int], int]


class Device:
    """Squares integers; batches hang while `free` is cleared; `trouble` sees every item that is computed."""

    def __init__(self, trouble: Callable[[int], None] = lambda item: None) -> None:
        self.trouble = trouble
        self.free = threading.Event()
        self.free.set()
        self.collated: list[list[int]] = []
        self.batches: list[list[int]] = []
        self.probes = 0

    def collate(self, items: Sequence[int]) -> list[int]:
        self.collated.append(list(items))
        return list(items)

    def compute(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        assert self.free.wait(20)
        for item in batch:
            self.trouble(item)
        return [item * item for item in batch]

    def probe(self) -> None:
        self.probes += 1


@asynccontextmanager
async def running(
    device: Device, *, max_batch_size: int = 4, max_wait: float = 0.0, work: Callable[[int], int] = lambda item: 1
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        collate=device.collate,
        compute=device.compute,
        probe=device.probe,
        max_batch_size=max_batch_size,
        max_wait=max_wait,
        work=work,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        device.free.set()
        batcher.close()


async def ask(batcher: Batcher, item: int, *, deadline: float = FAR, lane: Lane = Lane.CALLERS) -> int:
    return (await batcher.submit(item, deadline=deadline, lane=lane)).result


def asking(batcher: Batcher, items: Sequence[int], **options: Any) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(ask(batcher, item, **options)) for item in items]


async def outcomes(tasks: Sequence[asyncio.Task[int]]) -> list[int | BaseException]:
    async with asyncio.timeout(20):
        return list(await asyncio.gather(*tasks, return_exceptions=True))


# ── when batches leave ───────────────────────────────────────────────────────────────────────────────────────────


async def test_an_idle_device_takes_what_comes_at_once() -> None:
    device = Device()
    async with running(device) as batcher:
        assert await ask(batcher, 3) == 9
        assert await ask(batcher, 4) == 16
    assert device.batches == [[3], [4]]


async def test_what_arrives_during_a_batch_leaves_together_in_order_when_it_ends() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=8) as batcher:
        first = asking(batcher, [0])
        await until(lambda: device.batches)
        rest = asking(batcher, range(1, 6))
        await until(lambda: batcher.waiting == 5)
        assert device.collated == [[0]]  # a partial batch stays open for more
        device.free.set()
        assert await outcomes(first + rest) == [n * n for n in range(6)]
    assert device.batches == [[0], [1, 2, 3, 4, 5]]


async def test_a_full_batch_is_collated_while_its_predecessor_computes() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=4) as batcher:
        tasks = asking(batcher, [0])
        await until(lambda: device.batches)
        tasks += asking(batcher, range(1, 11))
        await until(lambda: len(device.collated) == 2)
        assert device.batches == [[0]]  # still computing
        await asyncio.sleep(0.02)
        assert len(device.collated) == 2  # one ahead, no more: the rest may still have company
        device.free.set()
        assert await outcomes(tasks) == [n * n for n in range(11)]
    assert device.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


async def test_much_work_fills_a_batch_and_too_much_goes_alone() -> None:
    """Items of 10 fill ten places of four; items of 3 fill three."""
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=4, work=lambda item: item or 1) as batcher:
        tasks = asking(batcher, [0])
        await until(lambda: device.batches)
        tasks += asking(batcher, [1, 3, 1, 10, 3, 3, 1])
        await until(lambda: batcher.waiting == 7)
        device.free.set()
        assert await outcomes(tasks) == [n * n for n in (0, 1, 3, 1, 10, 3, 3, 1)]
    assert device.batches == [[0], [1, 3], [1], [10], [3], [3, 1]]


async def test_a_configured_wait_gathers_company_for_an_idle_device() -> None:
    device = Device()
    async with running(device, max_batch_size=4, max_wait=0.2) as batcher:
        tasks = asking(batcher, [1])
        await asyncio.sleep(0.02)
        assert device.batches == []
        tasks += asking(batcher, [2, 3])
        assert await outcomes(tasks) == [1, 4, 9]
        assert device.batches == [[1, 2, 3]]
        assert await outcomes(asking(batcher, [1, 2, 3, 4])) == [1, 4, 9, 16]  # a full batch waits for nobody
    assert device.batches[1:] == [[1, 2, 3, 4]]


async def test_an_idle_device_does_not_miss_the_moment_that_a_listing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever time passes between looking at the clock and going to sleep."""
    look = MicroBatcher._until_due

    def slowly(batcher: Batcher) -> float | None:
        due = look(batcher)
        time.sleep(0.02)
        return due

    monkeypatch.setattr(MicroBatcher, "_until_due", slowly)
    async with running(Device(), max_wait=0.01) as batcher:
        await asyncio.sleep(0.2)  # until the threads are asleep
        async with asyncio.timeout(5):
            assert await ask(batcher, 3) == 9


async def test_who_waits_for_company_is_not_put_off_by_each_newcomer() -> None:
    device = Device()
    async with running(device, max_batch_size=1000, max_wait=0.3) as batcher:
        first = asyncio.create_task(ask(batcher, 1))
        others: list[asyncio.Task[int]] = []
        while not first.done() and len(others) < 200:
            others += asking(batcher, [2])
            await asyncio.sleep(0.02)
        assert len(others) < 200
        assert await outcomes(others) == [4] * len(others)


async def test_time_is_told_apart_into_queue_and_inference() -> None:
    device = Device(lambda item: time.sleep(0.03))
    async with running(device) as batcher:
        first = asyncio.create_task(batcher.submit(1, deadline=FAR))
        await until(lambda: device.batches)
        second = await batcher.submit(2, deadline=FAR)
        assert (await first).queue_seconds < second.queue_seconds
        assert second.inference_seconds >= 0.03


# ── who is left out ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_listing_whose_deadline_passed_is_not_computed() -> None:
    device = Device()
    device.free.clear()
    async with running(device) as batcher:
        first = asking(batcher, [0])
        await until(lambda: device.batches)
        late = asking(batcher, [1], deadline=time.monotonic() + 0.01)
        intime = asking(batcher, [2])
        await asyncio.sleep(0.03)
        device.free.set()
        found = await outcomes(first + late + intime)
    assert found[0] == 0
    assert isinstance(found[1], DeadlineExceeded)
    assert found[2] == 4
    assert device.batches == [[0], [2]]


async def test_a_cancelled_listing_gives_up_its_place_and_is_not_computed() -> None:
    device = Device()
    device.free.clear()
    async with running(device) as batcher:
        first = asking(batcher, [0])
        await until(lambda: device.batches)
        gone, stays = asking(batcher, [1, 2])
        await until(lambda: batcher.waiting == 2)
        gone.cancel()
        await until(lambda: batcher.waiting == 1)
        device.free.set()
        assert await outcomes([*first, stays]) == [0, 4]
    assert device.batches == [[0], [2]]


async def test_who_leaves_a_collated_batch_is_taken_out_of_it() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=3) as batcher:
        tasks = asking(batcher, [0])
        await until(lambda: device.batches)
        tasks += asking(batcher, [1, 2, 3])
        await until(lambda: len(device.collated) == 2)
        tasks[2].cancel()
        await asyncio.sleep(0.01)
        device.free.set()
        assert [await tasks[n] for n in (0, 1, 3)] == [0, 1, 9]
    assert device.batches == [[0], [1, 3]]


async def test_a_batch_that_nobody_wants_any_more_is_not_computed() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=2) as batcher:
        first = asking(batcher, [0])
        await until(lambda: device.batches)
        gone = asking(batcher, [1, 2])
        await until(lambda: len(device.collated) == 2)
        for task in gone:
            task.cancel()
        await asyncio.sleep(0.01)
        device.free.set()
        await outcomes(first)
        assert await ask(batcher, 3) == 9
    assert device.batches == [[0], [3]]


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────


def raising(error: BaseException, *items: int) -> Callable[[int], None]:
    def trouble(item: int) -> None:
        if item in items:
            raise error

    return trouble


@pytest.mark.parametrize("culprits", [(0,), (5,), (7,), (2, 3), (0, 7), tuple(range(8))])
async def test_only_the_listings_at_fault_fail(culprits: tuple[int, ...]) -> None:
    device = Device(raising(ValueError("bad"), *culprits))
    device.free.clear()
    async with running(device, max_batch_size=8) as batcher:
        blocker = asking(batcher, [100])
        await until(lambda: device.batches)
        tasks = asking(batcher, range(8))
        await until(lambda: batcher.waiting == 8)
        device.free.set()
        found = await outcomes(tasks)
        await outcomes(blocker)
        for item, outcome in enumerate(found):
            if item in culprits:
                assert isinstance(outcome, InferenceFailed)
            else:
                assert outcome == item * item
        assert batcher.alive
        assert device.probes == len(culprits)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError()])
async def test_a_batch_too_large_for_the_device_is_split(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()

    def compute(batch: list[int]) -> list[int]:
        device.batches.append(batch)
        if len(batch) > 2:
            raise error
        return [item * item for item in batch]

    monkeypatch.setattr(device, "compute", compute)
    async with running(device, max_batch_size=8, max_wait=0.05) as batcher:
        assert await outcomes(asking(batcher, range(8))) == [n * n for n in range(8)]
    assert [len(batch) for batch in device.batches] == [8, 4, 2, 2, 4, 2, 2]


async def test_a_listing_too_large_by_itself_is_refused_as_overload() -> None:
    device = Device(raising(MemoryError(), 1))
    async with running(device) as batcher:
        found = await outcomes(asking(batcher, [1, 2]))
        assert isinstance(found[0], Overloaded)
        assert found[0].retry_after
        assert found[1] == 4


async def test_a_collate_that_raises_is_sorted_out_like_a_batch_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()

    def collate(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise ValueError("bad")
        return list(items)

    monkeypatch.setattr(device, "collate", collate)
    async with running(device, max_wait=0.05) as batcher:
        found = await outcomes(asking(batcher, [1, 2, 3, 4]))
        assert isinstance(found[1], InferenceFailed)
        assert [found[0], *found[2:]] == [1, 9, 16]


async def test_a_model_that_answers_too_few_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(device, "compute", lambda batch: [item * item for item in batch if item != 2])
    async with running(device, max_wait=0.05) as batcher:
        found = await outcomes(asking(batcher, [1, 2, 3]))
        assert isinstance(found[1], InferenceFailed)
        assert [found[0], found[2]] == [1, 9]


async def test_a_probe_that_keeps_failing_means_the_device_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def trouble(item: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = Device(trouble)
    monkeypatch.setattr(device, "probe", lambda: trouble(0))
    async with running(device, max_wait=0.05) as batcher:
        found = await outcomes(asking(batcher, range(8)))
        assert [type(outcome) for outcome in found] == [NotReady] * 8
        assert not batcher.alive


async def test_a_probe_that_fails_once_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(raising(ValueError(), 1))

    def probe() -> None:
        device.probes += 1
        if device.probes == 1:
            raise RuntimeError("by chance")

    monkeypatch.setattr(device, "probe", probe)
    async with running(device) as batcher:
        assert isinstance((await outcomes(asking(batcher, [1])))[0], InferenceFailed)
        assert batcher.alive
        assert await ask(batcher, 2) == 4


@pytest.mark.parametrize("death", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("where", ["compute", "collate"])
async def test_when_a_thread_dies_every_waiter_is_told_and_no_more_come_in(death: BaseException, where: str) -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=2) as batcher:
        tasks = asking(batcher, [0])
        await until(lambda: device.batches)

        def die(batch: Sequence[int]) -> list[int]:
            raise death

        setattr(device, where, die)
        batcher._compute, batcher._collate = device.compute, device.collate  # what the threads will call next
        tasks += asking(batcher, range(1, 8))
        await until(lambda: batcher.waiting == 7 or not batcher.alive)
        device.free.set()
        found = await outcomes(tasks)
        assert found[0] == 0 or where == "collate"
        assert {type(outcome) for outcome in found[1:]} == {NotReady}
        assert not batcher.alive
        with pytest.raises(NotReady):
            await ask(batcher, 9)
        await until(lambda: not any(thread.is_alive() for thread in batcher._threads))


async def test_closing_answers_those_waiting_and_ends_the_threads() -> None:
    device = Device()
    device.free.clear()
    async with running(device) as batcher:
        tasks = asking(batcher, range(10))
        await until(lambda: device.batches)
        batcher.close()
        assert {type(outcome) for outcome in await outcomes(tasks)} == {Draining}
        with pytest.raises(Draining):
            await ask(batcher, 1)
        device.free.set()
        await until(lambda: not any(thread.is_alive() for thread in batcher._threads))
        assert batcher.alive  # closed is not dead


# ── the lane of jobs ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_callers_overtake_jobs_whatever_came_first() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=4) as batcher:
        tasks = asking(batcher, [0], lane=Lane.JOBS)
        await until(lambda: device.batches)
        tasks += asking(batcher, range(10, 19), lane=Lane.JOBS)
        await until(lambda: len(device.collated) == 2)  # a batch of jobs is ready for the device
        tasks += asking(batcher, range(1, 6))
        await until(lambda: batcher.waiting == 5)
        device.free.set()
        assert await outcomes(tasks) == [n * n for n in (0, *range(10, 19), *range(1, 6))]
    assert device.batches == [[0], [1, 2, 3, 4], [5], *([number] for number in range(10, 19))]


async def test_each_item_of_a_job_is_a_batch_and_the_next_one_is_collated_ahead() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=4) as batcher:
        tasks = asking(batcher, [0], lane=Lane.JOBS)
        await until(lambda: device.batches)
        tasks += asking(batcher, range(1, 4), lane=Lane.JOBS)
        await until(lambda: len(device.collated) == 2)
        device.free.set()
        assert await outcomes(tasks) == [n * n for n in range(4)]
    assert device.batches == [[0], [1], [2], [3]]


async def test_jobs_do_not_count_as_waiting_callers_but_the_batch_that_is_computed_does() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=4) as batcher:
        batcher.cost.observe(1, 1.0)
        batcher.cost.observe(4, 4.0)
        tasks = asking(batcher, [0], lane=Lane.JOBS)
        await until(lambda: batcher.computing_for > 0.01)
        tasks += asking(batcher, range(1, 3), lane=Lane.JOBS)
        await asyncio.sleep(0)
        assert batcher.waiting == 0
        assert 1.9 < batcher.expected_seconds(1) < 1.99
        device.free.set()
        await outcomes(tasks)


@given(
    arrivals=st.lists(st.tuples(st.sampled_from(Lane), st.integers(1, 9)), min_size=1, max_size=12),
    room=st.integers(1, 5),
)
def test_no_batch_of_jobs_begins_while_a_caller_waits_and_nothing_is_lost(
    arrivals: list[tuple[Lane, int]], room: int
) -> None:
    """Whatever arrives in whatever order while the device computes, one arrival during each batch."""

    async def scenario() -> None:
        device, lanes, waiting = Device(), dict[int, Lane](), Counter[Lane]()
        step, finished = threading.Semaphore(0), list[list[int]]()

        def compute(batch: list[int]) -> list[int]:
            lane = lanes[batch[0]]
            assert {lanes[item] for item in batch} == {lane}
            assert lane is Lane.CALLERS or not waiting[Lane.CALLERS]
            assert batch == sorted(batch)
            waiting[lane] -= len(batch)
            device.batches.append(batch)
            assert step.acquire(timeout=20)
            finished.append(batch)
            return [item * item for item in batch]

        async with running(device, max_batch_size=room) as batcher:
            batcher._compute = compute
            tasks: list[asyncio.Task[int]] = []
            for lane, count in arrivals:
                items = range(len(lanes), len(lanes) + count)
                lanes |= dict.fromkeys(items, lane)
                waiting[lane] += count
                tasks += asking(batcher, items, lane=lane)
                await asyncio.sleep(0)  # all of them have been submitted
                await until(lambda: len(device.batches) > len(finished))
                begun = len(device.batches)
                step.release()
                await until(lambda: len(device.batches) > begun or (len(finished) == begun and not waiting.total()))  # noqa: B023 - awaited here
            step.release(len(lanes))
            assert await outcomes(tasks) == [item * item for item in range(len(lanes))]
        assert sorted(item for batch in device.batches for item in batch) == list(range(len(lanes)))

    asyncio.run(scenario())


async def test_under_random_faults_everyone_gets_exactly_the_right_answer() -> None:
    chance = random.Random(7)

    def trouble(item: int) -> None:
        if item % 17 == 0:
            raise ValueError(item)
        if item % 13 == 0:
            time.sleep(0.001)

    device = Device(trouble)
    async with running(device, max_batch_size=8) as batcher:

        async def caller(item: int) -> str:
            await asyncio.sleep(chance.random() * 0.5)
            try:
                async with asyncio.timeout(0.002 if item % 5 == 0 else None):
                    assert await ask(batcher, item) == item * item
            except ServiceError as error:
                assert item % 17 == 0
                return type(error).__name__
            except TimeoutError:
                return "gave up"
            return "answered"

        async with asyncio.timeout(30):
            found = Counter(await asyncio.gather(*(caller(item) for item in range(2000))))
    assert found.total() == 2000
    assert set(found) <= {"answered", "gave up", "InferenceFailed"}
    assert found["answered"] > 1000
    assert max(map(len, device.batches)) > 1


# ── what is predicted ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cost_of_a_batch_is_the_median_of_the_last_few_of_its_size() -> None:
    cost = BatchCost()
    assert cost.seconds(5) == 0
    for seconds in (1.0, 1.0, 1.0, 9.0, 1.0):
        cost.observe(8, seconds)
    assert cost.seconds(8) == 1.0
    for _ in range(3):
        cost.observe(8, 2.0)
    assert cost.seconds(8) == 2.0


def test_an_estimate_is_as_old_as_the_batches_that_it_goes_by() -> None:
    cost = BatchCost()
    assert cost.age(1) == float("inf")
    cost.observe(1, 1.0)
    cost.observe(32, 4.0)
    cost._updated[32] -= 60
    assert cost.age(1) < 30
    assert cost.age(2) >= 60
    assert cost.age(32) >= 60
    assert cost.age(1000) >= 60


def test_between_known_sizes_the_cost_is_a_straight_line() -> None:
    cost = BatchCost()
    cost.observe(1, 1.0)
    cost.observe(32, 4.1)
    assert cost.seconds(1) == 1.0
    assert cost.seconds(11) == pytest.approx(2.0)
    assert cost.seconds(32) == cost.seconds(40) == pytest.approx(4.1)


async def test_the_predicted_wait_counts_batches_and_what_is_left_of_the_present_one() -> None:
    device = Device()
    async with running(device, max_batch_size=4) as batcher:
        assert batcher.expected_seconds(100) == 0
        batcher.cost.observe(1, 1.0)
        batcher.cost.observe(4, 4.0)
        assert batcher.expected_seconds(1) == 1.0
        assert batcher.expected_seconds(9) == 9.0
        device.free.clear()
        task = asking(batcher, [0])
        await until(lambda: batcher.computing_for > 0.01)
        assert 4.9 < batcher.expected_seconds(5) < 4.99
        device.free.set()
        await outcomes(task)
        await until(lambda: batcher.computing_for == 0)


async def test_the_predicted_wait_counts_much_work_for_what_it_is() -> None:
    device = Device()
    device.free.clear()
    async with running(device, max_batch_size=4, work=lambda item: item) as batcher:
        batcher.cost.observe(1, 1.0)
        batcher.cost.observe(4, 4.0)
        tasks = asking(batcher, [1])
        await until(lambda: batcher.computing_for > 0.01)
        tasks += asking(batcher, [8, 1])
        await until(lambda: batcher.waiting == 2)
        assert 9.9 < batcher.expected_seconds(3) < 9.99
        device.free.set()
        await outcomes(tasks)
        await until(lambda: batcher.computing_for == 0)
        assert batcher.cost.seconds(4) == 4.0  # as before
        assert batcher.cost.seconds(8) < 1.0  # as seen
