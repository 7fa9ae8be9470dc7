"""What has been measured, in a file that is written after each case."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.capacity import machine
from benchmarks.serving.contenders import Contender
from benchmarks.serving.plan import Cell, LoadCase
from model.files import replace_durably

CAPACITY_CALLERS = 64
"""A server's capacity is what it answers to that many callers, or to fewer if that is more."""


class Results:
    """What has been measured: per cell, route and load one entry each round; written at once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.found: dict[str, Any] = {"machine": machine(torch.device("cpu")), "servers": {}, "floor": {}, "cases": {}}
        if file.exists():
            self.found = json.loads(file.read_text(encoding="utf-8"))

    def rounds(self, cell: Cell, contender: Contender, load: LoadCase) -> list[dict[str, Any]]:
        of_cell = self.found["cases"].setdefault(cell.name, {}).setdefault(contender.name, {})
        entries: list[dict[str, Any]] = of_cell.setdefault(load.name, [])
        return entries

    def floors(self, cell: Cell) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.found["floor"].setdefault(cell.name, [])
        return entries

    def server(self, cell: Cell, server: str) -> dict[str, Any]:
        """Return what is known of a server in a cell: its version, how it started, or why it didn't (`error`)."""
        entry: dict[str, Any] = self.found["servers"].setdefault(cell.name, {}).setdefault(server, {})
        return entry

    def capacity(self, cell: Cell, contender: Contender) -> float | None:
        """Return the requests per second that a route answered at most, in closed loops so far."""
        of_route = self.found["cases"].get(cell.name, {}).get(contender.name, {})
        medians = [
            statistics.median(entry["requests_per_second"] for entry in entries)
            for name, entries in of_route.items()
            if name.startswith("closed") and entries and int(name.split()[1]) <= CAPACITY_CALLERS
        ]
        return max(medians, default=None)

    def write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        replace_durably(unfinished, self._file)
