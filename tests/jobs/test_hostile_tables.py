"""Tables and zips that are made to do harm, handed in as jobs: each is refused, or its rows fail, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import struct
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.jobs import jobs
from tests.service.conftest import Client, encoded, in_process, on_port
from tests.service.test_jobs import ended, hand_in, rows_of

MEBI = 2**20


@pytest.fixture
async def service(store_url: str, tmp_path: Path) -> AsyncIterator[Client]:
    async with in_process(store=store_url, store_files=str(tmp_path / "files")) as client:
        yield client


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return packed.getvalue()


async def errors(client: Client, answer: httpx.Response) -> list[str]:
    """What is wrong with each row of a job that was accepted."""
    assert answer.status_code == 202, answer.text
    job = await ended(client, answer.json()["id"])
    assert job["status"] == "done"
    return [row["error"] for row in await rows_of(client, job["id"])]


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def scratch(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "files").glob("scratch-*"))


# --- zips --------------------------------------------------------------------------------------------------


async def test_an_image_that_unpacks_to_a_hundred_times_its_size_is_an_error_of_its_row(service: Client) -> None:
    images = zipped({"good.png": encoded(), "bomb.png": bytes(100 * MEBI)})
    assert len(images) < MEBI
    found = await errors(service, await hand_in(service, "id,image\na,good.png\nb,bomb.png\n", images=images))
    assert not found[0]
    assert "bomb.png" in found[1]


@pytest.mark.parametrize("claimed", [10, 2**31])
async def test_a_size_that_is_a_lie_is_an_error_of_its_row(service: Client, claimed: int) -> None:
    images = bytearray(zipped({"good.png": encoded(), "liar.png": bytes(MEBI)}))
    entry = images.rindex(b"PK\x01\x02")  # the last one of the directory
    images[entry + 24 : entry + 28] = struct.pack("<I", claimed)
    found = await errors(service, await hand_in(service, "id,image\na,good.png\nb,liar.png\n", images=bytes(images)))
    assert not found[0]
    assert "liar.png" in found[1]


async def test_names_that_lead_out_of_the_zip_lead_nowhere(service: Client, tmp_path: Path) -> None:
    names = ["../up.png", "/etc/absolute.png", "a/../../up.png", "C:\\windows.png"]
    images = zipped(dict.fromkeys(names, encoded()))
    before = files_below(tmp_path)
    table = json.dumps([{"id": str(at), "image": name} for at, name in enumerate(names)])
    await errors(service, await hand_in(service, table, name="table.json", images=images))
    after = files_below(tmp_path) - before
    assert not [path for path in after if path.suffix == ".png"]
    assert all(path.is_relative_to(tmp_path / "files") or path.name.startswith("store.db") for path in after)


@pytest.mark.parametrize("images", [b"", b"no zip", b"PK\x05\x06" + bytes(18)[:-4]])
async def test_what_is_no_zip_is_refused(service: Client, images: bytes, tmp_path: Path) -> None:
    answer = await hand_in(service, "id,image\na,a.png\n", images=images)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert str(tmp_path) not in answer.text
    assert not scratch(tmp_path)


async def test_paths_of_this_machine_are_names_that_no_zip_has(service: Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded())
    names = [
        str(secret),
        f"file://{secret}",
        "/proc/self/environ",
        "../secret.png",
        "~/secret.png",
        "\\\\host\\share.png",
    ]
    table = json.dumps([{"id": str(at), "image": name} for at, name in enumerate(names)])
    for images in (None, zipped({"good.png": encoded()})):
        found = await errors(service, await hand_in(service, table, name="table.json", images=images))
        assert all(found), found


async def test_urls_into_this_network_are_refused_row_by_row(service: Client) -> None:
    table = "id,image\na,http://127.0.0.1:1/x.png\nb,http://169.254.169.254/latest/\n"
    assert all(
        "not accepted" in each or "not public" in each for each in await errors(service, await hand_in(service, table))
    )


# --- tables ------------------------------------------------------------------------------------------------


async def test_a_table_that_unpacks_to_more_than_a_job_may_have_is_refused(store_url: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"store": store_url, "store_files": str(tmp_path / "files"), "max_job_bytes": MEBI // 8}
    bomb = gzip.compress(b"id,title\n" + b"1,a title of a listing\n" * 20_000)
    assert len(bomb) < MEBI // 16
    async with in_process(**options) as client:
        answer = await hand_in(client, bomb, name="table.csv.gz")
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert "CMA_CLIP_MAX_JOB_BYTES" in answer.json()["detail"]
    assert not scratch(tmp_path)


async def test_a_cell_without_end_is_no_listing(service: Client) -> None:
    table = gzip.compress(b"id,title\na,red dress\nb," + b"x" * (20 * MEBI) + b"\nc,blue dress\n")
    answer = await hand_in(service, table, name="table.csv.gz")
    assert [bool(each) for each in await errors(service, answer)] == [False, True, False]


async def test_titles_and_ids_have_the_limits_that_requests_have(service: Client) -> None:
    table = f"id,title\na,{'x' * 4097}\n{'b' * 257},red dress\nc,{'x' * 4096}\n"
    answer = await hand_in(service, table)
    assert [(each["line"], each["reason"].partition(": ")[2]) for each in answer.json()["table"]["problems"]] == [
        (2, "the title has 4,097 characters; at most 4,096 are accepted"),
        (3, "the id has 257 characters; at most 256 are accepted"),
    ]
    assert [bool(each) for each in await errors(service, answer)] == [True, True, False]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"", "has no column 'id'"),
        (b"\x00" * 1000, "has no column"),
        (b"id;title\n1;x\n" * 2, ""),
        (b"\x1f\x8b\x08\x00broken gzip", ""),
        (b"PAR1" + b"\x00" * 100 + b"PAR1", ""),
        (b"[{\"id\": 1", ""),
        (b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>", ""),
        (("id,title\n" + "," * 100_000).encode(), ""),
        (b"id,id,title,title\n1,2,a,b\n", ""),
    ],
)  # fmt: skip
async def test_what_is_no_table_is_refused_with_a_reason(
    service: Client, tmp_path: Path, table: bytes, says: str
) -> None:
    answer = await hand_in(service, table)
    assert answer.status_code in {202, 422}, answer.text
    assert "root:" not in answer.text
    assert str(tmp_path) not in answer.text
    if answer.status_code == 422:
        assert says in answer.json()["detail"]
        assert answer.json()["code"] == "invalid_request"


async def test_fifty_thousand_rows_are_checked_at_once_with_their_lines(service: Client) -> None:
    service.predictor.free.clear()  # nothing of it is to be computed here
    rows = [f"sku-{number},{'' if number % 1000 == 999 else 'a title'}" for number in range(50_000)]
    answer = await hand_in(service, "id,title\n" + "\n".join(rows) + "\n")
    assert answer.status_code == 202
    assert answer.json()["rows"]["total"] == 50_000
    table = answer.json()["table"]
    assert table["invalid"] == 50
    assert [each["line"] for each in table["problems"]] == [number + 2 for number in range(999, 50_000, 1000)]
    await service.delete(f"/v1/jobs/{answer.json()['id']}")


async def test_at_most_two_tables_are_read_at_once(service: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, most = 0, 0
    split = jobs._in_process

    async def watched(*arguments: Any) -> Any:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        try:
            return await split(*arguments)
        finally:
            reading -= 1

    monkeypatch.setattr(jobs, "_in_process", watched)
    answers = await asyncio.gather(*(hand_in(service, f"id,title\n{number},x\n") for number in range(4)))
    assert {answer.status_code for answer in answers} == {202}
    assert most == jobs.SPLITTING


# --- uploads -----------------------------------------------------------------------------------------------


async def test_a_body_larger_than_a_job_may_be_is_not_taken_in_whatever_it_says(store_url: str, tmp_path: Path) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="table"; filename="t.csv"\r\n\r\nid,title\n'
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield head
        while sent < 16:
            sent += 1
            yield b"1,x\n" * (MEBI // 4)

    options: dict[str, Any] = {"store": store_url, "store_files": str(tmp_path / "files"), "max_job_bytes": 2 * MEBI}
    async with on_port(**options) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = await client.post("/v1/jobs", content=body(), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
        declared = await client.post("/v1/jobs", content=b"x" * (3 * MEBI), headers=headers)
        assert declared.status_code == 413
    assert not scratch(tmp_path)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"--b\r\n", 422),
        (b'--b\r\nContent-Disposition: form-data; name="table"\r\n\r\nx\r\n--b--\r\n', 422),
        (b'--b\r\nContent-Disposition: form-data; name="table"; filename="t"\r\n\r\nid,title\n1,x\n', 422),
        (b"--b\r\n" + b"X-Header: " + b"x" * 100_000 + b"\r\n\r\n--b--\r\n", 422),
        (b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\n' + b"x" * 20_000 + b"\r\n--b--\r\n", 413),
    ],
)
async def test_forms_that_are_none_are_refused_and_leave_nothing(
    service: Client, tmp_path: Path, body: bytes, status: int
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await service.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert not scratch(tmp_path)
    assert (await service.get("/v1/jobs")).json()["jobs"] == []
