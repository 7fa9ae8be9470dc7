"""Writes the measured figures of docs/operations.md, and the plan that follows from them.

    python -m benchmarks.capacity --out benchmarks/results/capacity.json
    python -m benchmarks.capacity --device cuda --out benchmarks/results/capacity_cuda.json    (where there is a GPU)
    python -m benchmarks.soak --out benchmarks/results/soak.json
    python -m docs.capacity

Where there are no figures, the page says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.blocks import between
from model.inputs.pool import SMALL_BYTES, memory_for, worker_count
from service.settings import Settings

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/operations.md"
CAPACITY = ROOT / "benchmarks/results/capacity.json"
GPU_CAPACITY = ROOT / "benchmarks/results/capacity_cuda.json"
SOAK = ROOT / "benchmarks/results/soak.json"
BLOCKS = ("sizing", "growth", "plan")

PEAKS = (1, 100, 10_000)
"""Listings per second that the plan is made for."""

SHARE = 0.6
"""How much of what a replica can compute is planned with."""

CORES = 2
"""Of a replica in docker-compose.yml and in Kubernetes' CPU overlay."""

NOT_MEASURED = (
    "*Not measured yet.* Run `{command}` on an idle machine, then `python -m docs.capacity` to write the figures here."
)

Figures = Mapping[str, Any]


def main() -> None:
    """Write the blocks into the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_figures(page, read(CAPACITY), read(SOAK), read(GPU_CAPACITY)), encoding="utf-8")
    print(PAGE)


def read(path: Path) -> Figures | None:
    """Return what was measured, or None where nothing was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def with_figures(page: str, capacity: Figures | None, soak: Figures | None, gpu_capacity: Figures | None) -> str:
    """Return `page` with each of `BLOCKS` between its markers."""
    measure = NOT_MEASURED.format(command="python -m benchmarks.capacity --out benchmarks/results/capacity.json")
    watch = NOT_MEASURED.format(command="python -m benchmarks.soak --minutes 15 --out benchmarks/results/soak.json")
    texts = {
        "sizing": f"{sizing(capacity)}\n\n{on_gpus(gpu_capacity)}" if capacity else measure,
        "growth": growth(soak) if soak else watch,
        "plan": plan(capacity) if capacity else measure,
    }
    for name in BLOCKS:
        page = between(page, name, texts[name], command="docs.capacity")
    return page


# ── sizing ──────────────────────────────────────────────────────────────────────────────────────────────────


def sizing(capacity: Figures) -> str:
    """Return the table of what was measured, and on what."""
    machine, rows = capacity["machine"], capacity["rows"]
    heads = ("replica", "image", "listings/s", "in batches", "p50, ms", "p99, ms", "MiB, warm", "loaded", "peak")
    lines = [_row(*heads), _row("---", "---", *["---:"] * (len(heads) - 2))]
    for row in rows:
        latency, memory = row["half_load"]["latency_ms"], row["memory_mib"]
        lines.append(
            _row(
                _replica(row),
                f"{row['image']} ({row['image_bytes'] / 1e3:.0f} kB)",
                *(f"{row[load]['listings_per_second']:.1f}" for load in ("single", "batches")),
                *(f"{latency[percentile]:.0f}" for percentile in ("p50", "p99")),
                *(f"{memory[moment]:.0f}" for moment in ("warm", "loaded", "peak")),
            )
        )
    return "\n".join([*lines, "", _conditions(machine, capacity), *_shared(rows)])


def _replica(row: Figures) -> str:
    if row["device"] != "cpu":
        return f"GPU, {row['dtype']}, batch {row['batch']}"
    return f"{row['cores']} core{'s' if row['cores'] > 1 else ''}, {row['engine']}"


def on_gpus(capacity: Figures | None) -> str:
    """Return the same for GPUs, or say that nothing was measured on one."""
    return sizing(capacity) if capacity else "**No GPU was available: none of these figures is for one.**"


def _conditions(machine: Figures, capacity: Figures) -> str:
    sizes = sorted({row["batch"] for row in capacity["rows"]})
    on_gpu = any(row["device"] != "cpu" for row in capacity["rows"])
    batches = " or ".join(map(str, sizes))
    callers = "twice as many callers as a batch has places" if on_gpu else f"{batches} callers"
    return (
        f"Measured on {_hardware(machine)} with torch {machine['torch']}, checkpoint "
        f"`{capacity['model']}`, {capacity['seconds']:.0f} s of each load; each listing has a title and the image. "
        f"*listings/s*: {callers}, one listing per request; *in batches*: two callers, {batches} listings per request. "
        "*p50*, *p99*: latency of single requests at half of that load. *loaded*: the maximum after a load; *peak*: "
        "the maximum at any time, including while the checkpoint is loaded."
    )


def _hardware(machine: Figures) -> str:
    cores = f"{machine['cores']} cores of {machine['processor']}"
    return f"{machine['gpu']} and {cores}" if "gpu" in machine else cores


def _shared(rows: Sequence[Figures]) -> Iterator[str]:
    if any(not row["client_has_a_core"] for row in rows):
        yield (
            "Where the replica used all cores, the client ran on the same ones: a replica that doesn't share its cores "
            "is faster."
        )


# ── growth ──────────────────────────────────────────────────────────────────────────────────────────────────


def growth(soak: Figures) -> str:
    """Return what the memory did over minutes of mixed load."""
    slope, rested = soak["growth"], soak["rested_mib"][soak["warm_up_minutes"] :]
    return (
        f"In a soak test of {len(rested)} minutes (`python -m benchmarks.soak`: eight callers, listings of every kind, "
        f"including damaged and hostile ones, {sum(soak['answers'].values()):,} requests), a replica used at most "
        f"{max(soak['loaded_mib']):.0f} MiB under load, and {rested[-1]:.0f} MiB when idle at the end. The idle "
        "memory changed by {mib_per_minute:+.1f} MiB a minute (95 % interval {low:+.1f} to {high:+.1f}).".format(
            **slope
        )
    )


# ── plan ────────────────────────────────────────────────────────────────────────────────────────────────────


def replicas(peak: float, listings_per_second: float) -> int:
    """Return how many replicas answer `peak` listings per second, one of them being replaced; two at least."""
    return max(2, math.ceil(peak / (SHARE * listings_per_second)) + 1)


def most_memory_gib(row: Figures, settings: Settings) -> float:
    """Return what a replica can hold at most: what it was seen to hold, and full buffers and decoders besides."""
    large = memory_for(settings.max_image_pixels, settings.max_image_bytes)
    decoding = worker_count(row["cores"]) * SMALL_BYTES + large
    return float(row["memory_mib"]["peak"] / 2**10 + (settings.max_inflight_bytes + decoding) / 2**30)


def plan(capacity: Figures) -> str:
    """Return replicas, cores and memory for each of `PEAKS`, computed from the measured figures."""
    heads = ["", *(f"{peak:,} listing{'s' if peak > 1 else ''} per second" for peak in PEAKS)]
    lines = [_row(*heads), _row("---", *["---:"] * len(PEAKS))]
    for row in _planned_with(capacity["rows"]):
        rate = row["single"]["listings_per_second"]
        numbers = [replicas(peak, rate) for peak in PEAKS]
        memory = most_memory_gib(row, Settings.model_construct())  # the defaults, whatever is set here
        of = f"{row['image']}, *r* = {rate:.1f}"
        lines += [
            _row(f"{of}: replicas of {_replica(row)}", *(f"{number:,}" for number in numbers)),
            _row(f"{of}: cores", *(f"{number * row['cores']:,}" for number in numbers)),
            _row(f"{of}: maximum memory, GiB", *(f"{number * memory:,.0f}" for number in numbers)),
        ]
    said = (
        "*r* is the rate of single requests in the table of [Sizing](#sizing). Memory: the peak in that table, plus "
        "eight bodies of `CMA_CLIP_MAX_BODY_BYTES`, and all that the decode workers may take. Ten thousand listings "
        "per second need GPUs; their number cannot be computed from CPU figures: measure *r* on one GPU with "
        "`cma-clip bench`."
    )
    return "\n".join([*lines, "", said])


def _planned_with(rows: Sequence[Figures]) -> list[Figures]:
    """For each image the row of a replica as it is deployed, or else of the largest that was measured."""
    plain = [row for row in rows if row["engine"] == rows[0]["engine"]]
    cores = CORES if any(row["cores"] == CORES for row in plain) else max(row["cores"] for row in plain)
    return [row for row in plain if row["cores"] == cores]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
