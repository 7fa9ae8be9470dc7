"""Labelling on Ray itself, with the shipped checkpoint: the bytes of one machine, though workers are killed.

Run by `make test-ray`, which installs Ray and a small server that speaks S3.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import s3fs
from moto.server import ThreadedMotoServer

from model.errors import CheckpointError
from model.inference import cluster, parts, schedule
from model.inference.cluster import Cluster, label_on_cluster
from model.inference.label import label
from tests.conftest import draw, write_catalogue

CHECKPOINT = Path(__file__).parents[2] / "weights" / "fashion"
ROWS = 200

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")  # Ray's own


@pytest.fixture(scope="module", autouse=True)
def on_ray() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "UNIT_ROWS", 16)
    monkeypatch.setattr(parts, "PART_ROWS", 64)


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a catalogue with a damaged image, an absent one and a row without a title."""
    folder = tmp_path_factory.mktemp("ray") / "shop"
    toml = write_catalogue(folder, ROWS)
    (folder / "images" / "sku-7.png").write_bytes(b"torn")
    (folder / "images" / "sku-30.png").unlink()
    table = folder / "table.csv"
    table.write_text(table.read_text().replace("Plain Blue Circle number 9", "") + "sku-torn,Red\n")
    draw("Red", "Circle").save(folder / "images" / "sku-99.png")
    return toml


@pytest.fixture(scope="module")
def one_machine(toml: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine writes, and reports."""
    folder, found = tmp_path_factory.mktemp("one"), {}
    for suffix in (".csv", ".parquet"):
        out = folder / f"labels{suffix}"
        found["report"] = str(label(CHECKPOINT, toml, out, batch_size=8).report).encode()
        found[suffix] = out.read_bytes()
    return found


def on_cluster(toml: Path, out: str | Path, *, checkpoint: Path = CHECKPOINT) -> Any:
    return label_on_cluster(
        checkpoint, toml, out, Cluster(address="auto", workers=2, decoders=1), batch_size=8, progress=False
    )


def processes(kind: str) -> list[int]:
    """The processes of this cluster's actors of a kind: Ray names them, and they descend from this one."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(status[1])
            if (entry / "cmdline").read_bytes().startswith(f"ray::{kind}".encode()):
                found.append(int(entry.name))
    return [pid for pid in found if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kill a process of each of these kinds, one after the other, each time that two units have been finished."""
    kinds: list[str] = []
    finish, finished = schedule.Schedule._finish, 0

    def finish_and_kill(self: schedule.Schedule, reference: Any, call: schedule.Call) -> None:
        nonlocal finished
        finish(self, reference, call)
        finished += call.crew is self.predictors
        if kinds and finished >= 2:
            finished = 0
            os.kill(processes(kinds.pop())[0], signal.SIGKILL)

    monkeypatch.setattr(schedule.Schedule, "_finish", finish_and_kill)
    return kinds


def test_the_bytes_are_those_of_one_machine_though_workers_are_killed(
    toml: Path, tmp_path: Path, one_machine: dict[str, bytes], kills: list[str]
) -> None:
    kills += ["PredictActor", "DecodeActor", "PredictActor"]
    done = on_cluster(toml, tmp_path / "labels.csv")
    assert not kills, "all were killed"
    assert (tmp_path / "labels.csv").read_bytes() == one_machine[".csv"]
    assert str(done.report).encode() == one_machine["report"]
    assert (done.rows, done.failed) == (ROWS + 1, 2)


def test_a_checkpoint_that_is_not_there_is_one_line(toml: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        on_cluster(toml, tmp_path / "labels.csv", checkpoint=tmp_path / "nowhere")


def test_a_checkpoint_that_ends_every_actor_ends_the_run(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that doesn't fit the memory."""

    class Ends(cluster.PredictActor):
        def start(self) -> Any:
            os._exit(1)

    monkeypatch.setattr(cluster, "PredictActor", Ends)
    with pytest.raises(Exception, match="end again and again with nothing done"):
        on_cluster(toml, tmp_path / "labels.csv")


# --- an object store ---------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A bucket `shop` of a server on this machine, found by the variables that AWS's own programs read."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    if store.exists("shop"):  # of an earlier test: the server's memory is this process's
        store.rm("shop", recursive=True)
    store.mkdir("shop")
    yield store
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_in_s3_is_that_of_one_machine(
    toml: Path, one_machine: dict[str, bytes], bucket: s3fs.S3FileSystem, suffix: str
) -> None:
    on_cluster(toml, f"s3://shop/today/labels{suffix}")
    bucket.invalidate_cache()
    assert bucket.find("shop") == [f"shop/today/labels{suffix}"]
    assert bucket.cat_file(f"shop/today/labels{suffix}") == one_machine[suffix]


def test_parts_in_s3_are_those_of_one_machine(toml: Path, tmp_path: Path, bucket: s3fs.S3FileSystem) -> None:
    on_cluster(toml, "s3://shop/labels/")
    label(CHECKPOINT, toml, f"{tmp_path}/labels/", batch_size=8)
    here = {each.name: each.read_bytes() for each in (tmp_path / "labels").iterdir() if each.name != "_lock"}
    bucket.invalidate_cache()
    assert {Path(each).name: bucket.cat_file(each) for each in bucket.find("shop/labels")} == here
    assert len(here) == 4 + 2
