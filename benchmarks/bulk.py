"""Bulk labelling on one machine and on a Ray cluster of this machine, side by side: listings per second, and CPU time.

    python -m benchmarks.bulk [--rows 2048] [--side 600] [--out benchmarks/results/bulk.json]

Labels the first rows of the fashion set with the shipped checkpoint, on one thread each: in one process, and on a
cluster of one and of two workers. `--side` enlarges every image so that its longer side has so many pixels, as a shop's
photos have: the set's own are thumbnails. Wall time depends on what else runs; CPU time hardly does. It is counted by
what spends it: the process that reads the table and writes the labels, the predictors, and the decoders with their
worker processes. Counted is the middle half of the rows: at its begin and at its end as many are on the way.

`--reading N` measures the first of these alone, on a made-up table of N rows and with actors that do nothing: how many
workers one such process can feed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from benchmarks.tables import make
from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import open_images
from model.catalogue.listings import Listing, ReadReport, iter_listings
from model.inference import schedule
from model.inference.cluster import Cluster, label_on_cluster
from model.inference.label import label
from model.inference.output import Block
from model.inference.schedule import cut
from model.threads import settle_threads

CHECKPOINT = "weights/fashion"
CATALOGUE = Path(__file__).with_name("fashion.toml")

TICK = os.sysconf("SC_CLK_TCK")

OTHERS = "Ray itself"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run. `cpu_ms` is CPU time in milliseconds a listing, by what spent it."""

    what: str
    workers: int
    decoders: int
    rows: int
    side: int
    wall_seconds: float
    rows_per_second: float
    rows_per_second_and_worker: float
    cpu_ms: Mapping[str, float]


# --- what is labelled --------------------------------------------------------------------------------------


def write_catalogue(folder: Path, rows: int, side: int) -> Path:
    """Write the first listings with title and image of the fashion set, images enlarged; return the TOML file."""
    config = CatalogueConfig.load(CATALOGUE).without_labels()
    images = open_images(config.images)
    (folder / "images").mkdir(parents=True)
    written = 0
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title"])
        for item in iter_listings(config, images, ReadReport("fashion")):
            if written == rows:
                break
            if isinstance(item, Listing) and item.title and item.image:
                data = images.read(item.image)
                (folder / "images" / f"{item.id}.jpg").write_bytes(enlarged(data, side))
                writer.writerow([item.id, item.title])
                written += 1
    toml = folder / "catalogue.toml"
    toml.write_text(
        '[catalogue]\ntable = "table.csv"\nimages = "images"\nimage = "{id}.jpg"\nid = "id"\ntitle = "title"\n'
    )
    return toml


def enlarged(data: bytes, side: int) -> bytes:
    """Return an image file enlarged so that its longer side has so many pixels; 0: as it is."""
    if not side:
        return data
    with Image.open(io.BytesIO(data)) as image:
        scale = side / max(image.size)
        large = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)
    return file.getvalue()


# --- CPU time by what spends it ----------------------------------------------------------------------------


class Spent:
    """CPU time of this process and of all that it has started, by kind; sampled, since processes end."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._kinds: dict[int, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Spent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self._sample()

    def _sample(self) -> None:
        parents, seconds, names = {}, {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    pid = int(entry.name)
                    parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICK
                    names[pid] = (entry / "cmdline").read_bytes().decode(errors="replace")
        for pid, spent in seconds.items():
            if kind := _kind(pid, parents, names):
                self._seconds[pid] = spent
                if kind != OTHERS or pid not in self._kinds:  # one that is just ending has lost its name
                    self._kinds[pid] = kind

    def until_now(self) -> dict[int, float]:
        """Return the seconds of each process."""
        self._sample()
        return dict(self._seconds)

    def between(self, before: Mapping[int, float], after: Mapping[int, float]) -> dict[str, float]:
        """Return the seconds by kind that were spent between two moments."""
        total: dict[str, float] = {}
        for pid, seconds in after.items():
            kind = self._kinds[pid]
            total[kind] = total.get(kind, 0.0) + seconds - before.get(pid, 0.0)
        return total


def _kind(pid: int, parents: Mapping[int, int], names: Mapping[int, str]) -> str | None:
    """Say what a process is that descends from this one; None where it doesn't."""
    at = pid
    while at != os.getpid():
        if at not in parents:
            return None
        at = parents[at]
    for name, kind in (
        ("model.inputs.worker", "decoders"),
        ("ray::DecodeActor", "decoders"),
        ("ray::PredictActor", "predictors"),
    ):
        if name in names[pid]:
            return kind
    return "this process" if pid == os.getpid() else OTHERS


# --- runs --------------------------------------------------------------------------------------------------


class Middle:
    """The middle half of a run: its rows, its wall time, and its CPU time by what spent it."""

    def __init__(self, spent: Spent, rows: int) -> None:
        self._spent, self._marks = spent, [rows // 4, rows * 3 // 4]
        self._done = 0
        self._seen: list[tuple[int, float, dict[int, float]]] = []

    def __call__(self, rows: int) -> None:
        """Take note of further rows that are done."""
        self._done += rows
        if self._marks and self._done >= self._marks[0]:
            del self._marks[0]
            self._seen.append((self._done, time.perf_counter(), self._spent.until_now()))

    def measured(self, what: str, *, workers: int, decoders: int, side: int) -> Measured:
        """Return what was measured."""
        (first, began, before), (last, ended, after) = self._seen
        rows, wall = last - first, ended - began
        return Measured(
            what=what,
            workers=workers,
            decoders=decoders,
            rows=rows,
            side=side,
            wall_seconds=round(wall, 2),
            rows_per_second=round(rows / wall, 1),
            rows_per_second_and_worker=round(rows / wall / workers, 1),
            cpu_ms={
                kind: round(1000 * seconds / rows, 3) for kind, seconds in self._spent.between(before, after).items()
            },
        )


def measure(toml: Path, rows: int, side: int, folder: Path) -> list[Measured]:
    """Label on one machine, and on clusters of one worker and of two."""
    import ray  # noqa: PLC0415

    found: list[Measured] = []
    settle_threads(1)
    schedule.UNIT_ROWS = 64  # many units, though the table is small
    for workers, decoders in ((0, 0), (1, 1), (2, 1), (2, 2)):
        out = folder / f"labels-{workers}-{decoders}.csv"
        with Spent() as spent:
            middle = Middle(spent, rows)
            if workers:
                ray.init(address="local", num_cpus=workers + decoders, include_dashboard=False, log_to_driver=False)
                where = Cluster(address="auto", workers=workers, decoders=decoders)
                label_on_cluster(CHECKPOINT, toml, out, where, progress=False, advance=middle)
                ray.shutdown()
            else:
                label(CHECKPOINT, toml, out, threads=1, advance=middle)
            what = "cluster" if workers else "one process"
            found.append(middle.measured(what, workers=max(1, workers), decoders=decoders, side=side))
        assert out.read_bytes() == (folder / "labels-0-0.csv").read_bytes(), "another output"
        print(json.dumps(asdict(found[-1])), flush=True)
    return found


# --- the process that reads ---------------------------------------------------------------------------------


def reading(rows: int, folder: Path) -> dict[str, float]:
    """Read a table, send its units to actors that do nothing, and write labels of theirs; CPU seconds of this process.

    The labels are those of seven attributes, encoded.
    """
    import ray  # noqa: PLC0415

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    folder.mkdir()
    config = CatalogueConfig.load(make(folder, "csv", rows)).without_labels()
    line = ",".join(["sku-1234567", *["Navy Blue,0.973213,true,,0.312345"] * 7, "0.412345", ""]) + "\r\n"
    actor = ray.remote(num_cpus=1)(Idle).remote()
    began, wall = time.process_time(), time.perf_counter()
    with (folder / "labels.csv").open("wb") as out:
        awaited: list[Any] = []
        for unit in cut(iter_listings(config, open_images(config.images), ReadReport("made up")), 32):
            awaited.append(actor.answer.remote(unit.items, line))
            if len(awaited) == 4:
                block: Block = ray.get(awaited.pop(0))
                out.write(block.data)
        for block in ray.get(awaited):
            out.write(block.data)
    seconds = time.process_time() - began
    ray.shutdown()
    return {
        "rows": rows,
        "cpu_seconds": round(seconds, 2),
        "rows_per_cpu_second": round(rows / seconds),
        "wall_seconds": round(time.perf_counter() - wall, 2),
    }


class Idle:
    """An actor whose answers cost nothing."""

    def answer(self, items: list[Any], line: str) -> Block:
        """Return a line for each item."""
        return Block(len(items), 0, (line * len(items)).encode())


def main(
    rows: Annotated[int, typer.Option(min=1024, help="listings to label")] = 2048,
    side: Annotated[int, typer.Option(min=0, help="longer side of the images in pixels; 0: as they are")] = 0,
    reads: Annotated[int, typer.Option("--reading", help="rows of a table that is only read; 0: label instead")] = 0,
    out: Annotated[Path | None, typer.Option(help="add the figures to this JSON file")] = None,
) -> None:
    """Measure bulk labelling on one machine and on a cluster."""
    with tempfile.TemporaryDirectory(prefix="cma-clip-bulk-") as name:
        folder = Path(name)
        if reads:
            found: dict[str, Any] = {"reading": reading(reads, folder / "table")}
        else:
            runs = measure(write_catalogue(folder / "shop", rows, side), rows, side, folder)
            found = {"labelling": [asdict(each) for each in runs]}
    print(json.dumps(found, indent=1))
    if out:
        earlier = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        out.write_text(json.dumps({**earlier, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
