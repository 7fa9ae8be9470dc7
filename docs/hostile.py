"""Writes into docs/operations.md what memory hostile input takes.

python -m benchmarks.hostile --out benchmarks/results/hostile.json
python -m docs.hostile
"""

from __future__ import annotations

import json

from benchmarks.hostile import IDLE
from docs.blocks import between
from docs.capacity import PAGE, ROOT, Figures

FOUND = ROOT / "benchmarks/results/hostile.json"


def main() -> None:
    """Write the block into the page."""
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
    print(PAGE)


def read() -> Figures:
    """Return what was measured."""
    found: Figures = json.loads(FOUND.read_text(encoding="utf-8"))
    return found


def with_figures(page: str, found: Figures) -> str:
    """Return `page` with the block between its markers."""
    return between(page, "hostile", memory(found), command="docs.hostile")


def memory(found: Figures) -> str:
    """Say what an idle replica takes, and what it takes at most under any hostile input."""
    peaks = dict(found["peak_mib"])
    idle = peaks.pop(IDLE)
    worst = max(peaks, key=lambda name: peaks[name])
    return (
        f"An idle replica took {idle:.0f} MiB, and under hostile input (`python -m benchmarks.hostile`: {len(peaks)} "
        f"kinds, among them images {found['images_at_a_time']} at a time and bodies of 31 MiB two at a time, one kind "
        f"after the other) at most {peaks[worst]:.0f} MiB: {worst}."
    )


if __name__ == "__main__":
    main()
