"""Callbacks of jobs, through the real application to a real HTTP server that says what it got."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import update

from service.jobs import callbacks, queue
from service.jobs.callbacks import Patience
from service.store import tables
from service.store.store import Store
from tests.service.conftest import Client, in_process
from tests.service.test_jobs import PIN, accepted, ended, hand_in

SECRET = "a secret of the shop"  # noqa: S105 - of tests


@dataclass
class Receiver:
    """What arrived, and the statuses to answer with: the last one again and again."""

    port: int = 0
    statuses: list[int] = field(default_factory=lambda: [204])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/done?token=mine"

    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = found.statuses[0] if len(found.statuses) == 1 else found.statuses.pop(0)
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            found.got.append(({**self.headers, "path": self.path}, body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@asynccontextmanager
async def service(store_url: str, tmp_path: Path, **settings: Any) -> AsyncIterator[Client]:
    options = {"callback_secret": SECRET, "allow_private_image_hosts": True, **settings}
    async with in_process(store=store_url, store_files=str(tmp_path / "files"), **options) as client:
        yield client


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for callbacks often, and send them again at once."""
    monkeypatch.setattr(callbacks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(callbacks, "Patience", lambda: Patience(first=0.0))


async def delivered(client: Client, job: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not (found := (await client.get(f"/v1/jobs/{job}")).json())["callback"]["delivered"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    answer: dict[str, Any] = found
    return answer


async def test_the_end_of_a_job_is_told_once_and_signed(store_url: str, tmp_path: Path, receiver: Receiver) -> None:
    async with service(store_url, tmp_path) as client:
        client.predictor.free.clear()
        answer = await hand_in(client, "id,title\n1,x\n", callback_url=receiver.url)
        client.predictor.free.set()
        assert answer.json()["callback"] == {
            "url": receiver.url, "attempts": 0, "delivered": None, "next": None, "error": None,
        }  # fmt: skip
        job = await delivered(client, answer.json()["id"])
        assert (job["callback"]["attempts"], job["callback"]["next"]) == (1, None)
    ((headers, body),) = receiver.got
    assert headers["path"] == "/done?token=mine"
    assert headers["Content-Type"] == "application/json"
    timestamp = headers["X-CMA-CLIP-Timestamp"]
    assert abs(int(timestamp) - time.time()) < 60
    expected = hmac.new(SECRET.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-CMA-CLIP-Signature"] == f"v1={expected}"
    told = json.loads(body)
    assert told == {name: value for name, value in job.items() if name != "callback"}
    assert (told["status"], told["rows"]["done"]) == ("done", 1)


async def test_a_cancelled_and_a_failed_job_are_told_too(store_url: str, tmp_path: Path, receiver: Receiver) -> None:
    async with service(store_url, tmp_path) as client:
        client.predictor.free.clear()
        ids = [
            (await hand_in(client, f"id,title\n{number},x\n", callback_url=receiver.url)).json()["id"]
            for number in range(2)
        ]
        await client.delete(f"/v1/jobs/{ids[0]}")
        with client.lifecycle.jobs.store.database.transaction() as connection:
            queue._fail(connection, ids[1], "rows 1 to 1 could not be computed")
        client.predictor.free.set()
        for job in ids:
            await delivered(client, job)
    told = {each["id"]: (each["status"], each["error"]) for each in receiver.jobs()}
    assert told == {ids[0]: ("cancelled", None), ids[1]: ("failed", "rows 1 to 1 could not be computed")}


async def test_a_receiver_in_trouble_is_told_again_and_redirects_are_not_followed(
    store_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    receiver.statuses = [500, 302, 200]
    async with service(store_url, tmp_path) as client:
        job = (await hand_in(client, "id,title\n1,x\n", callback_url=receiver.url)).json()["id"]
        assert (await delivered(client, job))["callback"]["attempts"] == 3
    bodies = {body for _, body in receiver.got}
    assert len(receiver.got) == 3
    assert len(bodies) == 1  # whoever is told twice can tell


async def test_a_host_that_is_not_there_is_an_error_to_be_seen(store_url: str, tmp_path: Path) -> None:
    async with service(store_url, tmp_path) as client:
        job = (await hand_in(client, "id,title\n1,x\n", callback_url="http://127.0.0.1:1/")).json()["id"]
        await ended(client, job)
        async with asyncio.timeout(20):
            while (found := (await client.get(f"/v1/jobs/{job}")).json()["callback"])["error"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert found["error"] == "the connection to the host failed"
        assert found["next"] is not None


@pytest.mark.parametrize(
    ("url", "settings", "says"),
    [
        ("http://127.0.0.1/", {"allow_private_image_hosts": False}, "not public"),
        ("http://example.com:81/", {"image_ports": "80,443"}, "port 81"),
        ("http://example.com/", {"image_hosts": "cdn.example.org"}, "CMA_CLIP_IMAGE_HOSTS"),
        ("ftp://example.com/", {}, "must be http or https"),
        ("http://user:password@example.com/", {}, "no credentials"),
        ("done", {}, "must be http or https"),
        ("http://127.0.0.1/", {"callback_secret": None}, "CMA_CLIP_CALLBACK_SECRET"),
    ],
)
async def test_a_url_that_may_not_be_called_is_refused_at_once(
    store_url: str, tmp_path: Path, url: str, settings: dict[str, Any], says: str
) -> None:
    async with service(store_url, tmp_path, **settings) as client:
        answer = await hand_in(client, "id,title\n1,x\n", callback_url=url)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert "callback_url" in answer.json()["detail"]
        assert says in answer.json()["detail"]
        assert (await client.get("/v1/jobs")).json()["jobs"] == []


# --- in the database ---------------------------------------------------------------------------------------


def due(store: Store, *, seconds: float = 60.0) -> list[queue.Job]:
    with store.database.transaction() as connection:
        return list(callbacks.take(connection, count=9, seconds=seconds))


def finished(store: Store) -> None:
    """Finish the only shard of the job that is there."""
    with store.database.transaction() as connection:
        lease = queue.lease(connection, PIN, seconds=60)
        assert lease is not None
        assert queue.finish(connection, lease, result="x", failed=0)


def test_a_callback_is_due_when_the_end_is_committed_and_only_one_replica_sends_it(store: Store) -> None:
    accepted(store, shards=1, callback_url="http://example.com/")
    assert due(store) == []
    finished(store)
    assert [job["callback_attempts"] for job in due(store, seconds=-1)] == [1]
    assert [job["callback_attempts"] for job in due(store)] == [2]  # the first replica has died
    assert due(store) == []


def test_what_a_replica_records_late_does_not_count(store: Store) -> None:
    accepted(store, shards=1, callback_url="http://example.com/")
    finished(store)
    (late,) = due(store, seconds=-1)
    (newer,) = due(store)
    patience = Patience()
    with store.database.transaction() as connection:
        callbacks.record(connection, late, error="late", patience=patience)
        callbacks.record(connection, newer, error=None, patience=patience)
        found = queue.find(connection, "", job="job")
    assert found is not None
    assert (found["callback_error"], found["callback_due"]) == (None, None)
    assert found["callback_delivered"] > 0


def test_after_a_day_nothing_more_is_sent(store: Store) -> None:
    accepted(store, shards=1, callback_url="http://example.com/")
    finished(store)
    with store.database.transaction() as connection:
        connection.execute(update(tables.jobs).values(finished=tables.jobs.c.finished - 86_401))
    (job,) = due(store)
    with store.database.transaction() as connection:
        callbacks.record(connection, job, error="gone", patience=Patience())
        found = queue.find(connection, "", job="job")
    assert found is not None
    assert (found["callback_error"], found["callback_due"]) == ("gone", None)


def test_waits_double_from_ten_seconds_up_to_an_hour() -> None:
    waits = [Patience().wait(attempts) for attempts in range(1, 12)]
    assert waits[:4] == [10, 20, 40, 80]
    assert waits[-1] == 3600
    assert Patience().wait(10_000) == 3600
