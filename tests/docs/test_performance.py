"""docs/performance.md holds what was measured, and its tables say what the figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs import performance

TEXT = performance.PAGE.read_text(encoding="utf-8")


def entry(rate: float, *, refused: int = 0) -> dict[str, Any]:
    return {
        "requests": 100,
        "statuses": {"200": 100 - refused, **({"503": refused} if refused else {})},
        "listings_per_second": rate,
        "latency_ms": {"p50": 20.0, "p99": 90.0},
        "cpu_ms_per_listing": 5.0,
    }


CELL = "fashion 60x80 torch"
FOUND: dict[str, Any] = {
    "machine": {"processor": "Abacus 3", "cores": 2, "torch": "2.0"},
    "servers": {CELL: {"mosec": {"version": "0.9"}, "litserve": {"version": "0.2", "error": "no such package"}}},
    "floor": {CELL: [{"batch_cpu_ms": 4.0, "batch_ms": 4.5, "alone_ms": 9.0}]},
    "cases": {
        CELL: {
            "json": {
                "closed 1": [entry(50)], "closed 64": [entry(100), entry(120), entry(140)], "open 75": [entry(90)],
            },
            "mosec": {"closed 1": [entry(40)], "closed 64": [entry(60, refused=10)], "open 75": []},
        }
    },
}  # fmt: skip


def test_the_page_holds_what_was_measured() -> None:
    file = performance.RESULTS
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    assert performance.with_figures(TEXT, found) == TEXT, "run: python -m docs.performance"


def test_a_table_has_medians_ratios_and_what_was_not_measured() -> None:
    lines = performance.table(FOUND, CELL).splitlines()
    assert lines[0] == (
        "|  | 1 caller | 64 callers | of this service at 64 | CPU ms a listing at 64 | p99 ms at 75 % |"
    )
    assert lines[2:] == [
        "| this service, JSON | 50 (20) | 120 (20) | 1.00 | 5.00 | 90 |",
        "| LitServe 0.2 | not measured: no such package |  |  |  |  |",
        "| mosec 0.9 | 40 (20) | 60 (20), 10 % failed | 0.50 | 5.00 |  |",
    ]


def test_figures_take_the_place_of_those_before() -> None:
    page = performance.with_figures(performance.with_figures(TEXT, None), FOUND)
    assert "Not measured yet" not in page
    assert "### `fashion`, images of 60 × 80, engine `torch`" in page
    assert "take 4.00 ms of the processor a listing in batches of 32 (4.50 ms by the clock), and 9.00 ms" in page
    assert page == performance.with_figures(page, FOUND)


def test_a_plot_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        performance.draw(FOUND, CELL, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
