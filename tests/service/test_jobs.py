"""Jobs from the first byte to the last row, through the real application with the fake predictor."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from service.jobs import queue
from service.jobs.queue import Pin
from service.jobs.worker import Room
from service.store import removals, tables
from service.store.store import Store
from tests.service.conftest import Client, encoded, in_process, until
from tests.service.fake_predictor import INFO

PIN = Pin(version=INFO.version, engine=INFO.engine, dtype=INFO.dtype, calibration=INFO.calibration)

TABLE = "id,title\n" + "".join(f"sku-{number},dress number {number}\n" for number in range(600))


@pytest.fixture
async def service(store_url: str, tmp_path: Path) -> AsyncIterator[Client]:
    async with in_process(store=store_url, store_files=str(tmp_path / "files")) as client:
        yield client


async def hand_in(client: Client, table: str | bytes, *, name: str = "table.csv", images: bytes | None = None,
                  headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:  # fmt: skip
    files: dict[str, Any] = {"table": (name, table)}
    if images is not None:
        files["images"] = ("images.zip", images)
    return await client.post("/v1/jobs", files=files, data=fields, headers=headers or {})


async def ended(client: Client, job: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (found := (await client.get(f"/v1/jobs/{job}")).json())["status"] in queue.OPEN:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    answer: dict[str, Any] = found
    return answer


async def rows_of(client: Client, job: str) -> list[dict[str, str]]:
    text = (await client.get(f"/v1/jobs/{job}/results")).text
    return list(csv.DictReader(io.StringIO(text)))


async def test_a_table_becomes_a_table_of_labels_in_its_order_as_callers_get_them(service: Client) -> None:
    answer = await hand_in(service, TABLE, target_precision="0.9")
    assert answer.status_code == 202, answer.text
    job = await ended(service, answer.json()["id"])
    assert job["status"] == "done"
    assert job["rows"] == {"total": 600, "done": 600, "failed": 0}
    assert job["model"]["calibration"] == INFO.calibration
    rows = await rows_of(service, job["id"])
    assert [row["id"] for row in rows] == [f"sku-{number}" for number in range(600)]
    one = (await service.classify(title="dress number 17", target_precision=0.9)).json()["attributes"]["season"]
    assert rows[17]["season"] == one["label"]
    assert float(rows[17]["season_confidence"]) == pytest.approx(one["confidence"], abs=1e-6)
    assert await service.metric("cma_clip_job_listings_total", outcome="done") == 600
    listed = (await service.get("/v1/jobs")).json()["jobs"]
    assert [each["id"] for each in listed] == [job["id"]]


async def test_what_a_batch_consists_of_does_not_depend_on_what_else_there_is_to_do(service: Client) -> None:
    handed_in = [await hand_in(service, TABLE.replace("dress", word)) for word in ("dress", "skirt")]
    for answer in handed_in:
        await ended(service, answer.json()["id"])
    found = [[int(str(title).split()[-1]) for title in batch] for batch in service.predictor.batches]
    shards = [range(0, 256), range(256, 512), range(512, 600)]
    wanted = [list(shard[first : first + 16]) for shard in shards for first in range(0, len(shard), 16)]
    assert sorted(found) == sorted(wanted * 2)


async def test_results_come_as_json_lines_and_parquet_with_the_same_columns(service: Client) -> None:
    import pyarrow.parquet  # noqa: PLC0415

    job = (await hand_in(service, "id,title\na,red dress\nb,blue dress\n")).json()["id"]
    await ended(service, job)
    lines = (await service.get(f"/v1/jobs/{job}/results?format=jsonl")).text.splitlines()
    parquet = (await service.get(f"/v1/jobs/{job}/results?format=parquet")).content
    table = pyarrow.parquet.read_table(io.BytesIO(parquet)).to_pylist()
    assert [json.loads(line) for line in lines] == table
    assert list(table[0]) == list((await rows_of(service, job))[0])


async def test_what_is_wrong_with_rows_is_said_at_once_and_stands_in_their_place(service: Client) -> None:
    answer = await hand_in(service, "id,title\na,red dress\n,no id\nc,\n")
    table = answer.json()["table"]
    assert table["invalid"] == 2
    assert [(each["line"], each["reason"]) for each in table["problems"]] == [
        (3, "line 3: empty id"), (4, "line 4: neither title nor image"),
    ]  # fmt: skip
    job = await ended(service, answer.json()["id"])
    assert job["rows"]["failed"] == 2
    assert [bool(row["error"]) for row in await rows_of(service, job["id"])] == [False, True, True]


async def test_rows_of_one_id_have_each_its_own_embedded_image(service: Client) -> None:
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    images = [{"bytes": encoded((200, 0, 0)), "path": None}, {"bytes": b"no image", "path": None}]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", "a"], "title": ["", ""], "image": images}), file)
    job = await ended(service, (await hand_in(service, file.getvalue(), name="table.parquet")).json()["id"])
    assert [bool(row["error"]) for row in await rows_of(service, job["id"])] == [False, True]


async def test_images_come_from_the_zip_and_never_from_a_path(service: Client, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.png", encoded((200, 0, 0)))
        file.writestr("broken.png", b"no image")
    table = f"sku,picture\na,a.png\nb,broken.png\nc,{tmp_path / 'secret.png'}\nd,../secret.png\n"
    answer = await hand_in(service, table, images=packed.getvalue(), id="sku", image="picture")
    job = await ended(service, answer.json()["id"])
    assert [bool(row["error"]) for row in await rows_of(service, job["id"])] == [False, True, True, True]


@pytest.mark.parametrize(
    ("table", "fields", "code", "says"),
    [
        ("id,title\n", {}, "invalid_request", "no rows"),
        ("a,b\n1,2\n", {}, "invalid_request", "has no column 'id'"),
        ("id,title\n1,2\n", {"title": "name"}, "invalid_request", "has no column 'name'"),
        ("id,title\n1,x\n", {"attributes": "sleeve"}, "unknown_attribute", "sleeve"),
        ("id,title\n1,x\n", {"target_precision": "high"}, "invalid_request", "target_precision"),
        ("id,title\n1,x\n", {"titel": "name"}, "invalid_request", "did you mean title"),
    ],
)
async def test_a_table_that_cannot_be_used_is_refused_and_leaves_nothing(
    service: Client, tmp_path: Path, table: str, fields: dict[str, str], code: str, says: str
) -> None:
    answer = await hand_in(service, table, headers=None, images=None, **fields)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert says in answer.json()["detail"]
    assert str(tmp_path) not in answer.text
    assert (await service.get("/v1/jobs")).json()["jobs"] == []


async def test_a_job_larger_than_allowed_is_refused(store_url: str, tmp_path: Path) -> None:
    async with in_process(store=store_url, store_files=str(tmp_path / "files"), max_job_bytes=2000) as client:
        answer = await hand_in(client, TABLE)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_the_same_idempotency_key_makes_one_job_and_never_another(service: Client) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first, second = [await hand_in(service, "id,title\n1,x\n", headers=headers) for _ in range(2)]
    assert first.json()["id"] == second.json()["id"]
    other = await hand_in(service, "id,title\n1,y\n", headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "invalid_request")
    assert len((await service.get("/v1/jobs")).json()["jobs"]) == 1


async def test_a_key_sees_its_own_jobs_alone(store_url: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"store": store_url, "store_files": str(tmp_path / "files")}
    async with in_process(api_keys="ann:one,bob:two", **options) as client:
        ann, bob = {"X-API-Key": "one"}, {"X-API-Key": "two"}
        job = (await hand_in(client, "id,title\n1,x\n", headers=ann)).json()["id"]
        assert (await client.get(f"/v1/jobs/{job}", headers=bob)).status_code == 404
        assert (await client.delete(f"/v1/jobs/{job}", headers=bob)).status_code == 404
        assert (await client.get("/v1/jobs", headers=bob)).json()["jobs"] == []
        assert (await client.get("/v1/jobs")).status_code == 401
        assert (await client.get(f"/v1/jobs/{job}", headers=ann)).status_code == 200


async def test_a_cancelled_job_stops_and_a_deleted_one_is_gone_with_its_files(service: Client, tmp_path: Path) -> None:
    service.predictor.free.clear()
    job = (await hand_in(service, TABLE)).json()["id"]
    early = await service.get(f"/v1/jobs/{job}/results")
    assert (early.status_code, early.json()["code"]) == (409, "job_not_done")
    assert (await service.delete(f"/v1/jobs/{job}")).status_code == 204
    assert (await service.get(f"/v1/jobs/{job}")).json()["status"] == "cancelled"
    service.predictor.free.set()
    assert (await service.delete(f"/v1/jobs/{job}")).status_code == 204
    assert (await service.get(f"/v1/jobs/{job}")).status_code == 404


async def test_jobs_are_off_without_a_store(client: Client) -> None:
    for answer in (await client.get("/v1/jobs"), await client.post("/v1/jobs"), await client.get("/v1/jobs/x")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "CMA_CLIP_STORE" in answer.json()["detail"]


async def test_a_bug_stops_no_jobs_for_good(service: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.jobs.REST_SECONDS", 0.0)
    lease, failures = queue.lease, [ValueError("a bug")]

    def fail_once(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return lease(*args, **options)

    monkeypatch.setattr(queue, "lease", fail_once)
    service.lifecycle.jobs.worker.wake.set()
    await until(lambda: not failures)
    job = (await hand_in(service, "id,title\n1,x\n")).json()["id"]
    assert (await ended(service, job))["status"] == "done"


# --- leases ------------------------------------------------------------------------------------------------


def accepted(store: Store, job: str = "job", *, shards: int = 2, callback_url: str | None = None) -> None:
    with store.database.transaction() as connection:
        removals.announce(connection, queue.folder_of(job))
        values = {
            "id": job, "key": "", "fingerprint": "", "batch": 16, "model": "fake",
            "attributes": ["season"], "separators": {}, "target_precision": 0.9, "report": {},
            "callback_url": callback_url,
        }  # fmt: skip
        assert queue.accept(connection, values, PIN, [10] * shards)


def test_a_replica_that_lost_its_lease_records_nothing(store: Store) -> None:
    accepted(store, shards=1)
    with store.database.transaction() as connection:
        late = queue.lease(connection, PIN, seconds=-1)
    with store.database.transaction() as connection:
        newer = queue.lease(connection, PIN, seconds=60)
    assert late is not None
    assert newer is not None
    assert (late.place, late.token, newer.token) == (newer.place, 1, 2)
    with store.database.transaction() as connection:
        assert not queue.extend(connection, late, seconds=60)
        assert not queue.finish(connection, late, result="late", failed=0)
        assert queue.finish(connection, newer, result="newer", failed=0)
        assert not queue.finish(connection, newer, result="twice", failed=0)
        assert queue.finish(connection, newer, result="newer", failed=0)  # the answer to the first call was lost
        assert queue.results(connection, "job") == ["newer"]
        found = queue.find(connection, "", job="job")
    assert found is not None
    assert (found["status"], found["rows_done"]) == ("done", 10)


def test_a_shard_is_computed_by_one_replica_at_a_time_and_jobs_take_turns(store: Store) -> None:
    accepted(store, "first")
    accepted(store, "second")
    with store.database.transaction() as connection:
        taken = [queue.lease(connection, PIN, seconds=60) for _ in range(5)]
    assert [(lease.job, lease.place) for lease in taken if lease] == [
        ("first", 0), ("second", 0), ("first", 1), ("second", 1),
    ]  # fmt: skip
    assert taken[-1] is None


def test_a_job_waits_for_what_it_is_pinned_to(store: Store) -> None:
    accepted(store)
    for change in ({"version": "x"}, {"engine": "x"}, {"dtype": "x"}, {"calibration": "x"}):
        with store.database.transaction() as connection:
            other = Pin(**{**{name: getattr(PIN, name) for name in PIN.__slots__}, **change})
            assert queue.lease(connection, other, seconds=60) is None


def test_a_shard_that_every_replica_dies_of_ends_its_job(store: Store) -> None:
    accepted(store, shards=1)
    with store.database.transaction() as connection:
        connection.execute(update(tables.shards).values(token=queue.MOST_LEASES))
        assert queue.lease(connection, PIN, seconds=60) is None
        found = queue.find(connection, "", job="job")
    assert found is not None
    assert found["status"] == "failed"
    assert re.fullmatch(r"rows 1 to [\d,]+ could not be computed", found["error"])


def test_jobs_that_ended_long_ago_are_purged_with_their_files(store: Store) -> None:
    accepted(store, shards=1)
    store.files.write_bytes("jobs/job/results/x", b"")
    with store.database.transaction() as connection:
        assert queue.purge(connection, older_than=0) == 0
        lease = queue.lease(connection, PIN, seconds=60)
        assert lease is not None
        queue.finish(connection, lease, result="x", failed=0)
        connection.execute(update(tables.jobs).values(finished=tables.jobs.c.finished - 90))
        assert queue.purge(connection, older_than=100) == 0
        assert queue.purge(connection, older_than=80) == 1
    removals.sweep(store.database, store.files)
    with pytest.raises(FileNotFoundError):
        store.files.read_bytes("jobs/job/results/x")


async def test_images_wait_for_room_except_those_of_the_oldest_batch_which_others_wait_for() -> None:
    room, order, closed = Room(10), list[str](), asyncio.Event()

    async def hold(name: str, nbytes: int, batch: int) -> None:
        async with room.held(nbytes, batch):
            order.append(name)
            await closed.wait()

    async with asyncio.timeout(5), room.batch() as older, room.batch() as newer, asyncio.TaskGroup() as group:
        for name, nbytes, batch in (("older", 99, older), ("newer", 1, newer), ("older too", 99, older)):
            group.create_task(hold(name, nbytes, batch))
        await until(lambda: len(order) == 2)
        assert order == ["older", "older too"]
        closed.set()
    assert order == ["older", "older too", "newer"]


async def test_what_an_image_turns_out_not_to_need_is_free_for_others() -> None:
    room, order = Room(10), list[int]()

    async def hold(nbytes: int, actual: int, batch: int) -> None:
        async with room.held(nbytes, batch) as held:
            order.append(nbytes)
            await held.shrink(actual)
            await asyncio.sleep(0)

    async with asyncio.timeout(5), room.batch(), room.batch() as second, asyncio.TaskGroup() as group:
        for nbytes, actual in ((9, 1), (8, 8)):
            group.create_task(hold(nbytes, actual, second))
    assert order == [9, 8]
