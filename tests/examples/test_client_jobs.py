"""The example client's way with jobs, against the real application, on a real port."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from examples import client as example
from examples.client import main
from tests.service.conftest import Client, encoded, on_port, until


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Client]:
    store = f"sqlite:///{tmp_path / 'store' / 'store.db'}"
    async with on_port(store=store, store_files=str(tmp_path / "store" / "files")) as client:
        yield client


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "LOOK_SECONDS", 0.05)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "listings.csv"
    rows = (f"{number},shirt {number},{'a.png' if number % 2 else ''}\n" for number in range(40))
    path.write_text(f"sku,name,picture\n{''.join(rows)},x,\n")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("a.png", encoded())
    return path


async def run(service: Client, *arguments: str | Path) -> int:
    return await asyncio.to_thread(main, [*map(str, arguments), "--url", str(service.base_url)])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


COLUMNS = ("--id", "sku", "--title", "name", "--image", "picture")


async def test_a_table_becomes_a_job_and_its_results(
    service: Client, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.csv"
    more = ("--images", tmp_path / "images.zip", "--attribute", "season", "--target-precision", "0.9")
    assert await run(service, table, out, "--as-job", *more, *COLUMNS) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["id"] for row in rows] == [*map(str, range(40)), ""]
    assert [bool(row["error"]) for row in rows] == [False] * 40 + [True]
    assert "season_abstention" in rows[0]
    assert "baseColour" not in rows[0]
    assert names(tmp_path) == {"listings.csv", "images.zip", "labels.csv", "store"}
    said = capsys.readouterr().err
    assert "1 rows are no listings" in said
    assert "line 42: empty id" in said
    assert "done: 41 of 41 rows" in said


async def test_after_ctrl_c_the_same_command_goes_on_with_the_same_job(
    service: Client, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.predictor.free.clear()
    wait_for = example.wait_for

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "wait_for", interrupt)
    command = (table, tmp_path / "labels.jsonl", "--as-job", "--images", tmp_path / "images.zip", *COLUMNS)
    assert await run(service, *command) == 130
    (job,) = (await service.get("/v1/jobs")).json()["jobs"]
    assert f"--job {job['id']}" in capsys.readouterr().err
    monkeypatch.setattr(example, "wait_for", wait_for)
    service.predictor.free.set()
    assert await run(service, *command) == 0
    assert len((await service.get("/v1/jobs")).json()["jobs"]) == 1
    assert len([json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]) == 41
    assert await run(service, tmp_path / "again.csv", "--job", job["id"]) == 0
    assert (tmp_path / "again.csv").exists()


async def test_an_answer_that_was_lost_makes_no_second_job(
    service: Client, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, lost = httpx.Client.send, list[httpx.Response]()

    def lose(self: httpx.Client, request: httpx.Request, **options: object) -> httpx.Response:
        response = send(self, request, **options)  # type: ignore[arg-type]
        if request.method == "POST" and not lost:
            lost.append(response)
            raise httpx.ReadTimeout("lost")
        return response

    monkeypatch.setattr(httpx.Client, "send", lose)
    command = (table, tmp_path / "labels.csv", "--as-job", *COLUMNS)
    assert await run(service, *command) == 1
    assert (tmp_path / "labels.csv.job").exists()
    assert await run(service, *command) == 0
    assert len((await service.get("/v1/jobs")).json()["jobs"]) == 1


async def test_a_job_that_was_cancelled_or_deleted_is_said_to_be(
    service: Client, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.predictor.free.clear()
    running = asyncio.create_task(run(service, table, tmp_path / "labels.csv", "--as-job", *COLUMNS))
    known = tmp_path / "labels.csv.job"
    await until(lambda: known.exists() and json.loads(known.read_text())["id"])
    job = json.loads(known.read_text())["id"]
    await service.delete(f"/v1/jobs/{job}")
    assert await running == 1
    assert f"job {job} is cancelled" in capsys.readouterr().err
    await service.delete(f"/v1/jobs/{job}")
    assert await run(service, table, tmp_path / "labels.csv", "--as-job", *COLUMNS) == 1
    said = capsys.readouterr().err
    assert f"knows no job {job}" in said
    assert "remove it to begin anew" in said


async def test_mistakes_are_one_line(
    service: Client, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(service, table, tmp_path / "labels.xml", "--as-job") == 1
    assert "must end in .csv, .jsonl or .parquet" in capsys.readouterr().err
    assert await run(service, table, tmp_path / "labels.csv", "--as-job") == 1
    assert "has no column 'id'" in capsys.readouterr().err
    assert await run(service, tmp_path / "labels.csv") == 2
    assert "name the table" in capsys.readouterr().err
