"""Writes the figures of docs/bulk.md, what `benchmarks.bulk` measured and what follows for large catalogues on paper,
and those of docs/train.md about loading images (`benchmarks.loading`).

python -m docs.bulk_figures
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.blocks import between

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "bulk.md"
TRAINING = ROOT / "docs" / "train.md"
RESULTS = ROOT / "benchmarks" / "results"

CORES, BUSY = 8, 0.8
"""The machines of the estimate: their cores, and the share of the time that these compute."""

CASES = ((5_000_000, 1), (5_000_000, 4), (1_000_000_000, 25), (1_000_000_000, 60))
"""Listings and machines."""


def main() -> None:
    """Write the figures into the pages."""
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    TRAINING.write_text(with_loading(TRAINING.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE, TRAINING, sep="\n")


def with_figures(page: str) -> str:
    """Return docs/bulk.md with both tables between their markers."""
    found = json.loads((RESULTS / "bulk.json").read_text(encoding="utf-8"))
    for name, text in (("bulk", measured(found)), ("bulk on paper", on_paper(found))):
        page = between(page, name, text, command="docs.bulk_figures")
    return page


def measured(found: Mapping[str, Any]) -> str:
    """Return the runs side by side."""
    runs = found["labelling"]
    lines = [
        "| | workers | decoders | listings/s | per worker | CPU ms a listing: predict | decode |",
        "| --- |" + " ---: |" * 6,
    ]
    for run in runs:
        cpu, here = run["cpu_ms"], run["what"] == "one process"
        predict = "in one: " + str(round(cpu["this process"], 1)) if here else f"{cpu['predictors']:.1f}"
        cells = [run["rows_per_second"], run["rows_per_second_and_worker"], predict, f"{cpu['decoders']:.1f}"]
        workers = ["1", "-"] if here else [str(run["workers"]), str(run["decoders"])]
        lines.append(f"| {run['what']} | {' | '.join([*workers, *map(str, cells)])} |")
    reading = found["reading"]
    said = (
        f"The middle {runs[0]['rows']:,} listings of a table of the fashion set, images enlarged to {runs[0]['side']} "
        "pixels, one thread for each worker, one run of each (`python -m benchmarks.bulk`). **The machine has two "
        "cores and was shared with other work at the time**, so listings per second say little, and can't be compared "
        "with each other: CPU time can. All runs wrote the same bytes. The process that reads the table and writes the "
        f"labels takes 1 s of CPU time for {reading['rows_per_cpu_second']:,} listings (`--reading "
        f"{reading['rows']}`). In the line of the one process, measuring is counted too."
    )
    return "\n".join([*lines, "", said])


def on_paper(found: Mapping[str, Any]) -> str:
    """Return hours for catalogues of several sizes, and the formula."""
    predict, decode = costs(found)
    reads = found["reading"]["rows_per_cpu_second"]
    lines = [
        f"| listings | machines of {CORES} cores | core hours | hours | hours that reading alone takes |",
        "| ---: |" + " ---: |" * 4,
    ]
    for listings, machines in CASES:
        core_hours = listings * (predict + decode) / 3.6e6
        hours, reading = core_hours / (machines * CORES * BUSY), listings / reads / 3600
        lines.append(f"| {listings:,} | {machines} | {core_hours:,.0f} | {max(hours, reading):,.1f} | {reading:,.1f} |")
    said = (
        "On paper, from the CPU times above and not tried at these sizes:\n\n"
        "```text\n"
        "core hours = listings × (predict ms + decode ms) / 3,600,000\n"
        f"hours      = max(core hours / (machines × cores × {BUSY}), listings / listings read per second / 3600)\n"
        f"cost       = core hours / {BUSY} × price of a core hour\n"
        "```\n\n"
        f"With {predict:.1f} ms to predict and {decode:.1f} ms to decode, which grows with the size of the images "
        "([as measured](train.md#large-catalogues)):"
    )
    most = int(reads / 1000 * (predict + decode))
    end = (
        f"One process reads and writes for at most {most:,} cores that compute. Beyond that, split the table, with a "
        "run for each part. With GPUs, predicting takes far less, so the decoders' CPUs decide: as many as listings "
        "per second × decode ms / 1000. No GPU was at hand for this page."
    )
    return "\n".join([said, "", *lines, "", end])


def with_loading(page: str) -> str:
    """Return docs/train.md with what loading images of several sizes costs."""
    lines = [
        "| longer side | kB | decode | in full | packed | find and resize | pixels differ: in full | packed |",
        "| ---: |" + " ---: |" * 7,
    ]
    for each in json.loads((RESULTS / "loading.json").read_text(encoding="utf-8")):
        costs = [each[name] for name in ("decode_ms", "decode_in_full_ms", "decode_packed_ms", "transform_ms")]
        apart = [each[f"{name}_mean_difference"] for name in ("in_full", "packed")]
        cells = [f"{cost:.1f}" for cost in costs] + [f"{mean:.1f}" for mean in apart]
        lines.append(f"| {each['side'] or 'as it is, 80'} | {each['bytes'] / 1000:,.0f} | {' | '.join(cells)} |")
    return between(page, "loading", "\n".join(lines), command="docs.bulk_figures")


def costs(found: Mapping[str, Any]) -> tuple[float, float]:
    """Return the milliseconds of CPU time that a listing takes to predict and to decode, with two workers."""
    run = next(run for run in found["labelling"] if run["workers"] == 2)
    return run["cpu_ms"]["predictors"], run["cpu_ms"]["decoders"]


if __name__ == "__main__":
    main()
