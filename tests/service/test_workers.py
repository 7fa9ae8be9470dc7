"""Decode workers behind the service: who is at fault fails alone, and a pool that hangs is seen."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from model.inputs import pool as pool_module
from model.inputs.limits import MEBI
from model.inputs.pool import DecodePool, Kill
from service.pipeline.prepare import _taken
from tests.model.test_pool import avif_that_lies, jpeg_of_hidden_scans, webp_of_38_bytes
from tests.service.conftest import Client, as_base64, encoded, in_process, until
from tests.service.test_routes import check_problem

GOOD = as_base64(encoded())


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """The service with workers of its own."""
    async with in_process(share_workers=False) as client:
        yield client


async def test_hostile_images_fail_alone_and_are_counted(client: Client) -> None:
    images = [GOOD, as_base64(jpeg_of_hidden_scans(1500)), as_base64(avif_that_lies(5000, 5000)), GOOD]
    listings = [{"title": "shirt", "image": {"base64": image}} for image in images]
    answer = await client.post("/v1/classify/batch", json={"listings": listings})
    results = answer.json()["results"]
    assert [each.get("error", {}).get("code") for each in results] == [
        None, "undecodable_image", "undecodable_image", None
    ]  # fmt: skip
    assert await client.metric("cma_clip_decode_kills_total", reason=Kill.CPU_TIME) == 1
    assert await client.metric("cma_clip_decode_restarts_total") >= 1
    assert await client.metric("cma_clip_decode_resident_memory_bytes") > 20 * MEBI
    assert (await client.get("/readyz")).status_code == 200


async def test_requests_are_answered_while_their_workers_are_killed(client: Client) -> None:
    alone = (await client.classify(title="a", image={"base64": GOOD})).json()
    waiting = [asyncio.create_task(client.classify(title="a", image={"base64": GOOD})) for _ in range(60)]
    killed = 0
    while not all(each.done() for each in waiting):
        if killed < 3 and await client.metric("cma_clip_decode_restarts_total") == killed:
            for pid in client.pipeline.decoding.processes[:1]:
                os.kill(pid, signal.SIGKILL)
                killed += 1
        await asyncio.sleep(0.001)
    assert killed
    for each in waiting:
        assert (await each).json() == alone


async def test_while_all_workers_hang_it_is_not_ready(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "STUCK_SECONDS", 0.05)
    decoding = client.pipeline.decoding
    assert await client.metric("cma_clip_in_flight") == 0
    stopped = decoding.processes
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(client.classify(title="a", image={"base64": GOOD})) for _ in stopped]
    await until(lambda: decoding.trouble)
    problem = await client.get("/readyz")
    check_problem(problem, 503, "not_ready")
    assert "decode workers hang" in problem.json()["detail"]
    assert (await client.get("/healthz")).status_code == 200
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert {(await each).status_code for each in waiting} == {200}
    assert (await client.get("/readyz")).status_code == 200


async def test_a_title_waits_for_no_image(client: Client) -> None:
    stopped = client.pipeline.decoding.processes
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(client.classify(title="a", image={"base64": GOOD})) for _ in range(4)]
    await until(lambda: client.pipeline.admission.listings == 4)
    assert (await client.classify(title="title alone")).status_code == 200
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert {(await each).status_code for each in waiting} == {200}


class Counting(DecodePool):
    """Counts how many large images are being decoded."""

    def __init__(self) -> None:
        super().__init__(4, memory=300 * MEBI)
        self.large, self.most = 0, 0

    def attempt(self, *args: object, memory: int = pool_module.SMALL_BYTES) -> pool_module.DecodedImage:
        large = memory > pool_module.SMALL_BYTES
        self.large += large
        self.most = max(self.most, self.large)
        try:
            return super().attempt(*args, memory=memory)  # type: ignore[arg-type]
        finally:
            self.large -= large


async def test_large_images_are_decoded_one_after_the_other() -> None:
    """Each of these files has 38 bytes or so, and takes up to 240 MiB."""
    with Counting() as pool:
        async with in_process(decoding=pool) as client:
            image = as_base64(webp_of_38_bytes(2800))
            answers = await asyncio.gather(*(client.classify(title="a", image={"base64": image}) for _ in range(3)))
            assert {answer.status_code for answer in answers} <= {200, 422}
            assert pool.most == 1


async def test_who_hangs_up_while_waiting_for_memory_holds_none() -> None:
    budget = pool_module.MemoryBudget(10, places=2)
    held = budget.take(10).result()
    waiting = [asyncio.create_task(_taken(budget, 10)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    held.release()
    assert (await waiting[1]).nbytes == 10
    assert waiting[0].cancelled()
    given_up = asyncio.create_task(_taken(budget, 1))
    await asyncio.sleep(0)
    waiting[1].result().release()  # granted, and cancelled before it could be told
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert budget.take(10).done()
