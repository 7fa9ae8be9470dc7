"""The store's files in S3: a real server of it, and a job from its table to its results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from service.store.files import Files
from tests.service.conftest import in_process
from tests.service.test_jobs import TABLE, ended, hand_in, rows_of
from tests.store_files import check_whole_or_not_at_all

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # botocore's own

STORE = "s3://jobs/store"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A bucket `jobs` of a server on this machine, found by the variables that AWS's own programs read."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    if store.exists("jobs"):  # of an earlier test: the server's memory is this process's
        store.rm("jobs", recursive=True)
    store.mkdir("jobs")
    yield store
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_file_is_there_whole_or_not_at_all(bucket: s3fs.S3FileSystem) -> None:
    def names() -> list[str]:
        bucket.invalidate_cache()
        return [path.removeprefix("jobs/store/") for path in bucket.find("jobs/store")]

    check_whole_or_not_at_all(Files(STORE), names)


def test_removing_a_folder_takes_what_others_have_written_too(bucket: s3fs.S3FileSystem) -> None:
    files = Files(STORE)
    files.write_bytes("a/b/c", b"")
    files.write_bytes("other", b"")
    files.remove("nothing")
    bucket.pipe_file("jobs/store/a/b/another's", b"x")
    files.remove("a")
    files.remove("a")
    bucket.invalidate_cache()
    assert bucket.find("jobs/store") == ["jobs/store/other"]


def test_scratch_is_on_this_machine(bucket: s3fs.S3FileSystem) -> None:
    with Files(STORE).scratch() as folder:
        assert folder.is_dir()
    assert not folder.exists()
    assert Files(STORE).sweep_scratch() == 0


async def test_a_job_lives_in_s3_and_leaves_nothing_there(bucket: s3fs.S3FileSystem, tmp_path: Path) -> None:
    async with in_process(store=f"sqlite:///{tmp_path / 'store.db'}", store_files=STORE) as client:
        job = (await hand_in(client, TABLE)).json()["id"]
        assert (await ended(client, job))["status"] == "done"
        assert len(await rows_of(client, job)) == 600
        bucket.invalidate_cache()
        names = {Path(each).parent.name for each in bucket.find("jobs/store")}
        assert names == {"shards", "results"}
        client.lifecycle.jobs.store.files.remove(f"jobs/{job}")
        bucket.invalidate_cache()
        assert bucket.find("jobs/store") == []
