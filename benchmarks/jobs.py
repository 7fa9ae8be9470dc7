"""What a job costs callers, and how much of an idle device it uses: the figures of docs/jobs.md.

    python -m benchmarks.jobs [--out benchmarks/results/jobs.json]
    python -m docs.jobs

One server (`cma-clip serve`, with an SQLite store) has all cores of this machine but one, on which the client runs; if
there is only one, they share it. First, callers send single listings at times fixed in advance, a third of what the
server can answer at most, in turns without a job and while one is computed. Then jobs have the server to themselves, in
turns with `cma-clip label`, which labels the same table on the same cores. Takes about five minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks.capacity import IMAGE_SIZES, TITLE, machine, on_cores, write_image
from benchmarks.server import Server, server
from model.device import pick_device
from service.commands.bench import Bodies, Listing, Load, run

LOAD = 1 / 3
"""Share of what the server can answer that callers send."""

CALLERS = 32
"""As many as find out what it can answer."""

IMAGES = 100
IMAGE = "60 × 80"
FEW, MANY = 64, 3000
"""Rows that are labelled for the difference between the times, which is free of what starting takes."""

LONG = 20_000
"""Rows of the job that goes on in the background: more than it computes meanwhile."""

POLL_SECONDS = 0.05


class Shop:
    """Tables with images, in one zip file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images.zip"
        with zipfile.ZipFile(self.images, "w") as packed:
            write_image(folder / "image.jpg", IMAGE_SIZES[IMAGE])
            for number in range(IMAGES):
                packed.write(folder / "image.jpg", f"{number}.jpg")

    def table(self, rows: int) -> Path:
        """Return a table of so many rows."""
        path = self.folder / f"{rows}.csv"
        lines = (f"{row},{TITLE} {row},{row % IMAGES}.jpg" for row in range(rows))
        path.write_text("\n".join(["id,title,image", *lines, ""]), encoding="utf-8")
        return path

    def catalogue(self, rows: int) -> Path:
        """Return the TOML file of a catalogue of so many rows."""
        table, path = self.table(rows), self.folder / f"{rows}.toml"
        keys = {"table": table.name, "images": self.images.name, "image": "{image}", "id": "id", "title": "title"}
        text = "\n".join(f'{name} = "{value}"' for name, value in keys.items())
        path.write_text(f"[catalogue]\n{text}\nattributes = []\n", encoding="utf-8")
        return path


class Jobs:
    """The jobs of a server."""

    def __init__(self, running: Server, shop: Shop) -> None:
        self._shop, self._client = shop, httpx.Client(base_url=running.url, timeout=300)

    def hand_in(self, rows: int) -> str:
        """Hand a table in, and return the job's id once its first rows are being computed."""
        with self._shop.table(rows).open("rb") as table, self._shop.images.open("rb") as images:
            answer = self._client.post("/v1/jobs", files={"table": table, "images": images}).raise_for_status()
        job = str(answer.json()["id"])
        self.wait_for(job, {"running", "done"})
        return job

    def wait_for(self, job: str, statuses: set[str]) -> dict[str, Any]:
        """Return a job once it has one of these statuses."""
        while (found := self._client.get(f"/v1/jobs/{job}").json())["status"] not in statuses:
            time.sleep(POLL_SECONDS)
        return dict(found)

    @contextmanager
    def one_running(self) -> Iterator[None]:
        """Have a job computed for as long as the context lasts. Exits with status 1 if it ends before."""
        job = self.hand_in(LONG)
        time.sleep(1)
        yield
        if self._client.get(f"/v1/jobs/{job}").json()["status"] != "running":
            sys.exit("failed: the job ended before the load did")
        self._client.delete(f"/v1/jobs/{job}").raise_for_status()
        time.sleep(1)

    def rate(self) -> float:
        """Return the rows per second of a job that has the server to itself."""
        found = self.wait_for(self.hand_in(MANY), {"done"})
        if found["rows"]["failed"]:
            sys.exit(f"failed: {found['rows']['failed']} rows of a job have errors")
        return float(found["rate"])


def label_rate(shop: Shop, checkpoint: Path, cores: Sequence[int]) -> float:
    """Return the rows per second of `cma-clip label` on some cores."""
    seconds = []
    for rows in (FEW, MANY):
        out = shop.folder / "labels.csv"
        out.unlink(missing_ok=True)
        program = "from service.cli import main; main()"
        command = ["label", str(shop.catalogue(rows)), "--out", str(out), "--checkpoint", str(checkpoint)]
        pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))]
        begin = time.monotonic()
        subprocess.run(  # noqa: S603 - this project's program
            [*pinned, sys.executable, "-c", program, *command],
            env={**os.environ, "OMP_NUM_THREADS": str(len(cores))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        seconds.append(time.monotonic() - begin)
    return (MANY - FEW) / (seconds[1] - seconds[0])


def load(url: str, listing: Listing, seconds: float, *, callers: int = 1, rate: float | None = None) -> dict[str, Any]:
    """Return the figures of a load. Exits with status 1 if any request was not answered with 200."""
    figures = run(Load(url=url, bodies=Bodies.single([listing]), callers=callers, rate=rate, seconds=seconds)).summary()
    if set(figures["statuses"]) != {"200"}:
        sys.exit(f"failed: not every request was answered: {figures['statuses']}")
    return figures


def callers_and_jobs(running: Server, jobs: Jobs, listing: Listing, *, turns: int, seconds: float) -> dict[str, Any]:
    """Return callers' latencies without a job and with one, turn by turn."""
    most = load(running.url, listing, 10.0, callers=CALLERS)["requests_per_second"]
    found: dict[str, list[dict[str, float]]] = {"alone": [], "with a job": []}
    for _ in range(turns):
        found["alone"].append(load(running.url, listing, seconds, rate=LOAD * most)["latency_ms"])
        with jobs.one_running():
            found["with a job"].append(load(running.url, listing, seconds, rate=LOAD * most)["latency_ms"])
    medians = {
        name: {which: round(statistics.median(turn[which] for turn in each), 1) for which in ("p50", "p99")}
        for name, each in found.items()
    }
    ratios = [job["p99"] / alone["p99"] for alone, job in zip(*found.values(), strict=True)]
    return {
        "requests_per_second_at_most": most,
        "requests_per_second": round(LOAD * most, 1),
        "turns": found,
        "median_ms": medians,
        "p99_ratio": round(statistics.median(ratios), 3),
        "p99_ratios": [round(ratio, 3) for ratio in ratios],
    }


def idle_device(jobs: Jobs, shop: Shop, checkpoint: Path, cores: Sequence[int], *, turns: int) -> dict[str, Any]:
    """Return the rows per second of jobs and of `cma-clip label`, turn by turn."""
    rates: dict[str, list[float]] = {"job": [], "label": []}
    for _ in range(turns):
        rates["job"].append(round(jobs.rate(), 1))
        rates["label"].append(round(label_rate(shop, checkpoint, cores), 1))
    share = statistics.median(rates["job"]) / statistics.median(rates["label"])
    return {"rows": MANY, "rows_per_second": rates, "share": round(share, 3)}


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    turns: Annotated[int, typer.Option(min=1, help="of callers without and with a job")] = 6,
    seconds: Annotated[float, typer.Option(min=1, help="duration of each load, in seconds")] = 12,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure both; nothing else should be running on this machine."""
    cores = sorted(os.sched_getaffinity(0))
    ours, rest = cores[: max(1, len(cores) - 1)], cores[max(1, len(cores) - 1) :]
    with tempfile.TemporaryDirectory() as name, on_cores(rest or ours):
        shop = Shop(Path(name))
        listing = Listing(TITLE, (shop.folder / "image.jpg").read_bytes())
        settings = {"store": f"sqlite:///{name}/store.db", "review_share": 0.0, "request_timeout_ms": 60_000}
        with server(checkpoint, cores=ours, **settings) as running:
            jobs = Jobs(running, shop)
            load(running.url, listing, 3.0, callers=CALLERS)
            callers = callers_and_jobs(running, jobs, listing, turns=turns, seconds=seconds)
            idle = idle_device(jobs, shop, checkpoint, ours, turns=2)
    version = json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8"))["version"]
    found = {
        "machine": machine(pick_device("cpu")),
        "model": version,
        "cores": len(ours),
        "client_has_a_core": bool(rest),
        "image": IMAGE,
        "seconds": seconds,
        "callers": callers,
        "idle": idle,
    }
    print(json.dumps({"callers": callers["median_ms"], "p99_ratio": callers["p99_ratio"], "share": idle["share"]}))
    if out is not None:
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
