"""Writes the measured figures of docs/jobs.md.

    python -m benchmarks.jobs --out benchmarks/results/jobs.json
    python -m docs.jobs

Where there are no figures, the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.blocks import between

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "jobs.md"
RESULTS = ROOT / "benchmarks" / "results" / "jobs.json"

NOT_MEASURED = (
    "*Not measured yet.* Run `python -m benchmarks.jobs --out benchmarks/results/jobs.json` on an idle machine, then "
    "`python -m docs.jobs` to write the figures here."
)


def main() -> None:
    """Write the block into the page."""
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


def with_figures(page: str) -> str:
    """Return the page with what was measured."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None
    return between(page, "jobs", NOT_MEASURED if found is None else measured(found), command="docs.jobs")


def measured(found: Mapping[str, Any]) -> str:
    """Return what a job costs callers, and what it makes of an idle device."""
    callers, idle, machine = found["callers"], found["idle"], found["machine"]
    rates = {name: ", ".join(f"{rate:.1f}" for rate in each) for name, each in idle["rows_per_second"].items()}
    lines = [
        "| callers' latency, ms | p50 | p99 |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {each['p50']:.1f} | {each['p99']:.1f} |" for name, each in callers["median_ms"].items()),
    ]
    cores = f"{found['cores']} core{'s' if found['cores'] > 1 else ''}"
    ratios = callers["p99_ratios"]
    said = (
        f"With a job in the background, callers' p99 is {callers['p99_ratio']:.2f} times that without (turn by turn "
        f"from {min(ratios):.2f} to {max(ratios):.2f}), at {callers['requests_per_second']:.0f} requests per second, "
        "a third of what the replica answers at most. A job that has the replica to itself computes "
        f"{rates['job']} rows per "
        f"second, `cma-clip label` on the same cores {rates['label']}: a share of {idle['share']:.2f}. Measured by "
        f"`python -m benchmarks.jobs` on {cores} of {machine['processor']}, checkpoint `{found['model']}`, titles with "
        f"images of {found['image']}, {len(ratios)} turns of {found['seconds']:.0f} s with and without a job."
    )
    alone = "" if found["client_has_a_core"] else " The client ran on the same cores."
    return "\n".join([*lines, "", said + alone])


if __name__ == "__main__":
    main()
