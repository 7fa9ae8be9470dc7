"""This service beside serving frameworks: throughput, latency and processor time, interleaved in one run.

    make bench                            everything: hours
    make bench ARGS=--quick               small images and the shipped checkpoint: minutes
    python -m docs.performance            writes the tables and plots of docs/performance.md

A cell is a checkpoint, an image size and an engine. In each, all servers run, and take turns load by load, so that a
change of the machine's speed affects all of them alike; those that wait take next to no processor time (`idle_cpu`
says how much). Each case is written to the results at once: an interrupted run goes on where it stopped.

The client is that of `cma-clip bench`: at 0.1 ms of the processor a request it shares the servers' cores.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.serving.contenders import CONTENDERS, Contender, Running, StartError, running, version
from benchmarks.serving.environments import ROOT, NotInstallableError
from benchmarks.serving.floor import floor
from benchmarks.serving.material import listings, random_checkpoint
from benchmarks.serving.plan import SHIPPED, Cell, LoadCase, Plan, plan
from benchmarks.serving.processes import cpu_seconds, resident_mib
from benchmarks.serving.results import Results
from service.commands.bench import Bodies, Figures, Load, measure

RESULTS = ROOT / "benchmarks/results/serving.json"

BUSY = 0.3
"""Share of the cores that others may keep busy before a run; if it is more, a warning is printed."""

ANSWERS, MOST_TIMES = 100, 4
"""An open loop goes on until about so many are due, since percentiles of fewer say little, but no longer than so many
times the usual duration."""


class CellRun:
    """One cell: its servers, which run side by side and take turns."""

    def __init__(self, cell: Cell, plan: Plan, contenders: Sequence[Contender], results: Results) -> None:
        self._cell, self._plan, self._contenders, self._results = cell, plan, contenders, results
        self._checkpoint = checkpoint_of(cell)
        sent = listings(cell.image)
        self._bodies = {contender.name: contender.bodies(sent) for contender in contenders}
        self._servers: dict[str, Running] = {}

    def run(self) -> None:
        """Measure what is missing from the results."""
        left = [contender for contender in self._contenders if any(self._missing(contender))]
        if not left and len(self._results.floors(self._cell)) >= self._plan.rounds:
            return
        with contextlib.ExitStack() as stack:
            for server, contender in {each.server: each for each in left}.items():
                self._start(stack, server, self._bodies[contender.name])
            bare = stack.enter_context(floor(self._checkpoint, self._cell.engine, self._cell.image))
            for number in range(self._plan.rounds):
                if len(self._results.floors(self._cell)) <= number:
                    self._results.floors(self._cell).append(bare.measure(2 * self._plan.seconds))
                    self._results.write()
                self._round(number)

    def _missing(self, contender: Contender) -> Iterator[LoadCase]:
        for load in self._plan.loads_of(self._cell, contender):
            if len(self._results.rounds(self._cell, contender, load)) < self._plan.rounds:
                yield load

    def _start(self, stack: contextlib.ExitStack, server: str, probe: Bodies) -> None:
        """Start a server and warm it up; where that cannot be done, the reason goes into the results."""
        self._say(f"starting {server}")
        entry = self._results.server(self._cell, server)
        entry.clear()
        entry["version"] = version(server)
        try:
            found = stack.enter_context(running(server, self._checkpoint, self._cell.engine, probe))
        except (NotInstallableError, StartError) as error:
            entry["error"] = str(error)
            self._say(f"not measured: {error}")
            self._results.write()
            return
        warm = Load(url=found.url, bodies=probe, callers=4, seconds=1)
        measure(warm, warm.requests())
        began, cpu = time.monotonic(), cpu_seconds(found.pid)
        time.sleep(1)
        entry["start_seconds"] = round(found.start_seconds, 2)
        entry["resident_mib"] = round(resident_mib(found.pid))
        entry["idle_cpu"] = round((cpu_seconds(found.pid) - cpu) / (time.monotonic() - began), 3)
        self._servers[server] = found

    def _round(self, number: int) -> None:
        """Measure each load of each route once, unless that has been done. Each round begins with another route."""
        first = number % len(self._contenders)
        for load in self._plan.loads:
            for contender in (*self._contenders[first:], *self._contenders[:first]):
                entries = self._results.rounds(self._cell, contender, load)
                wanted = load in self._plan.loads_of(self._cell, contender) and len(entries) <= number
                if wanted and (sending := self._load(contender, load)) is not None:
                    self._say(f"{contender.title}, {load.name}")
                    entries.append(measured(sending, self._servers[contender.server]))
                    self._results.write()

    def _load(self, contender: Contender, load: LoadCase) -> Load | None:
        """None where the server did not start, or answered nothing: then there is no share of its capacity."""
        server, seconds = self._servers.get(contender.server), self._plan.seconds
        if server is None:
            return None
        bodies = self._bodies[contender.name]
        if load.callers is not None:
            return Load(url=server.url, bodies=bodies, callers=load.callers, seconds=seconds)
        capacity = self._results.capacity(self._cell, contender)
        if not capacity or load.share is None:
            return None
        rate = capacity * load.share / 100
        enough = min(max(seconds, ANSWERS / rate), MOST_TIMES * seconds)
        return Load(url=server.url, bodies=bodies, rate=rate, seconds=enough)

    def _say(self, text: str) -> None:
        print(f"{self._cell.name}: {text}", file=sys.stderr, flush=True)


def checkpoint_of(cell: Cell) -> Path:
    """Return the folder of a cell's checkpoint; one of random weights is made where it is missing."""
    shipped = ROOT / "weights/fashion"
    if cell.checkpoint == SHIPPED:
        return shipped
    return random_checkpoint(ROOT / "build/bench" / cell.checkpoint, cell.checkpoint, like=shipped)


def measured(load: Load, server: Running) -> dict[str, Any]:
    """Send a load; return its figures, with the processor time of the server and of this client."""
    busy, before, own = os.getloadavg()[0], cpu_seconds(server.pid), time.process_time()
    figures = Figures(load, measure(load, load.requests()))
    spent, own = cpu_seconds(server.pid) - before, time.process_time() - own
    summary = figures.summary()
    answered = len(figures.answered) * load.bodies.listings
    kept = ("requests", "statuses", "seconds", "requests_per_second", "listings_per_second", "latency_ms", "rate")
    return {
        **{name: summary[name] for name in kept},
        "cpu_ms_per_listing": round(1000 * spent / answered, 3) if answered else None,
        "client_cpu_ms_per_request": round(1000 * own / max(1, summary["requests"]), 3),
        "load_average_before": round(busy, 2),
    }


def warn_if_busy() -> None:
    """Say so if other programs keep this machine busy."""
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    if busy > BUSY * cores:
        print(
            f"warning: this machine is busy (load average {busy:.1f} on {cores} cores); wait, or don't use the figures",
            file=sys.stderr,
        )


def main(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="small images, the shipped checkpoint, few loads")] = False,
    engine: Annotated[list[str] | None, typer.Option(help="engines, a table each; default: torch")] = None,
    only: Annotated[list[str] | None, typer.Option(help="these rows alone, by name")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.5, help="duration of each load")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="times that each load is repeated")] = None,
    out: Annotated[Path, typer.Option(help="the results, which a later run goes on with")] = RESULTS,
) -> None:
    """Measure what is missing from the results."""
    names = {contender.name for contender in CONTENDERS}
    if unknown := set(only or ()) - names:
        sys.exit(f"there is no row {', '.join(sorted(unknown))}; the rows are {', '.join(sorted(names))}")
    warn_if_busy()
    chosen = [contender for contender in CONTENDERS if not only or contender.name in only]
    todo, results = plan(quick=quick, engines=engine or ["torch"], seconds=seconds, rounds=rounds), Results(out)
    for cell in todo.cells:
        CellRun(cell, todo, chosen, results).run()
    warn_if_busy()
    print(out)


if __name__ == "__main__":
    typer.run(main)
