"""Listings that are computed in one batch: who is in it, in which order, and what becomes of one at fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from service.errors import InferenceFailed, NotReady, Overloaded
from service.pipeline.together import Together
from service.scheduling.batcher import Answer


class Device:
    """Squares numbers; `trouble` sees each batch first."""

    def __init__(self, trouble: Callable[[Sequence[Any]], None] = lambda batch: None) -> None:
        self.trouble = trouble
        self.batches: list[list[Any]] = []

    async def compute(self, batch: Sequence[Any]) -> Answer[Sequence[Any]]:
        self.batches.append(list(batch))
        self.trouble(batch)
        return Answer([item * item for item in batch], 0.0, 0.0)


async def answers(device: Device, order: Sequence[int], *, absent: Sequence[int] = ()) -> dict[int, Any]:
    """What listings get that arrive in this order; the absent ones leave after them."""
    together = Together(len(order) + len(absent), device.compute)

    async def arrive(number: int, item: Any) -> Any:
        try:
            return (await together.place(number).infer(item)).result
        except InferenceFailed as error:
            return error

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(together.run())
        tasks = {number: group.create_task(arrive(number, number)) for number in order}
        await asyncio.sleep(0)
        assert not device.batches or not absent
        for number in absent:
            together.place(number).leave()
    return {number: task.result() for number, task in tasks.items()}


async def test_a_batch_is_in_the_order_of_its_places_and_waits_for_all_that_have_not_left() -> None:
    device = Device()
    assert await answers(device, [3, 0, 4], absent=[2, 1]) == {3: 9, 0: 0, 4: 16}
    assert device.batches == [[0, 3, 4]]


async def test_nothing_is_computed_where_all_have_left() -> None:
    device = Device()
    assert await answers(device, [], absent=[0, 1]) == {}
    assert device.batches == []


async def test_a_listing_that_the_model_fails_on_fails_alone() -> None:
    def trouble(batch: Sequence[int]) -> None:
        if 1 in batch:
            raise InferenceFailed("1")

    found = await answers(Device(trouble), [0, 1, 2])
    assert isinstance(found.pop(1), InferenceFailed)
    assert found == {0: 0, 2: 4}


async def test_a_batch_that_is_too_large_for_the_device_is_computed_one_by_one() -> None:
    def trouble(batch: Sequence[int]) -> None:
        if len(batch) > 1:
            raise Overloaded("out of memory", retry_after=1)

    device = Device(trouble)
    assert await answers(device, [0, 1]) == {0: 0, 1: 1}
    assert device.batches == [[0, 1], [0], [1]]


async def test_a_batch_is_tried_again_where_the_service_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.pipeline.together.REST_SECONDS", 0.0)

    def trouble(batch: Sequence[int]) -> None:
        if len(device.batches) == 1:
            raise NotReady("not yet", retry_after=5)

    device = Device(trouble)
    assert await answers(device, [0, 1]) == {0: 0, 1: 1}
    assert device.batches == [[0, 1], [0, 1]]
