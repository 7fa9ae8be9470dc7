"""Listings that are computed in one batch, in their order, whatever else waits for the device.

What a batch consists of shows in the last digits of its confidences. So a job, whose results must be the same however
often its replicas die, says which listings make a batch. Each of them is prepared by itself, and some turn out to be no
listings; once all others are there, they go to the device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from model.inference.predictions import Prediction, Prepared
from service.errors import InferenceFailed, Overloaded, Unavailable
from service.scheduling.batcher import Answer

Compute = Callable[[Sequence[Prepared]], Awaitable[Answer[Sequence[Prediction]]]]

REST_SECONDS = 1.0
"""The longest pause before a batch is tried again that nothing was wrong with."""


class Together:
    """So many places, each for a listing that arrives or leaves."""

    def __init__(self, places: int, compute: Compute) -> None:
        """compute: what computes listings in one batch"""
        self._missing = set(range(places))
        self._compute = compute
        self._prepared: dict[int, Prepared] = {}
        self._answers: dict[int, asyncio.Future[Answer[Prediction]]] = {}
        self._complete = asyncio.Event()

    def place(self, number: int) -> Place:
        """Return a place, counted from 0."""
        return Place(self, number)

    async def run(self) -> None:
        """Wait until nobody is missing any more, compute, and answer all who are there."""
        await self._complete.wait()
        if not self._prepared:
            return
        numbers = sorted(self._prepared)
        try:
            found = await self._computed(numbers)
        except (InferenceFailed, Overloaded):
            await self._one_by_one(numbers)
            return
        for number, prediction in zip(numbers, found.result, strict=True):
            self._answers[number].set_result(Answer(prediction, found.queue_seconds, found.inference_seconds))

    async def _one_by_one(self, numbers: Sequence[int]) -> None:
        """Find the listing that the model fails on, since it alone fails; or use less of the device's memory."""
        for number in numbers:
            try:
                found = await self._computed([number])
            except InferenceFailed as error:
                self._answers[number].set_exception(error)
            else:
                answer = Answer(found.result[0], found.queue_seconds, found.inference_seconds)
                self._answers[number].set_result(answer)

    async def _computed(self, numbers: Sequence[int]) -> Answer[Sequence[Prediction]]:
        while True:
            try:
                return await self._compute([self._prepared[number] for number in numbers])
            except Unavailable as error:  # no fault of these listings
                if isinstance(error, Overloaded) and len(numbers) > 1:
                    raise
                await asyncio.sleep(min(REST_SECONDS, error.retry_after or REST_SECONDS))

    async def infer(self, number: int, prepared: Prepared) -> Answer[Prediction]:
        """Arrive, and wait for the answer. Raises `InferenceFailed`."""
        self._prepared[number] = prepared
        self._answers[number] = asyncio.get_running_loop().create_future()
        self.leave(number)
        return await self._answers[number]

    def leave(self, number: int) -> None:
        """Have nobody wait for a listing; one that has arrived stays."""
        self._missing.discard(number)
        if not self._missing:
            self._complete.set()


class Place:
    """A listing's place in a batch."""

    def __init__(self, together: Together, number: int) -> None:
        self._together, self._number = together, number

    async def infer(self, prepared: Prepared) -> Answer[Prediction]:
        """Return its answer, once the batch is complete and computed. Raises `InferenceFailed`."""
        return await self._together.infer(self._number, prepared)

    def leave(self) -> None:
        """Have the others not wait for it any longer, unless it is there."""
        self._together.leave(self._number)
