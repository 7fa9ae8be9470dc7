"""What is measured: cells, and in each of them routes and loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.contenders import Contender
from benchmarks.serving.material import IMAGE_SIZES

SHIPPED, LARGE = "fashion", "ViT-B-32"

CLOSED, OPEN = (1, 4, 16, 64, 512), (25, 50, 75, 90)
MANY = 512
"""Callers that are measured with quick answers alone: slow ones would take minutes."""

MOST_WAITING = 512
"""Listings that this service takes in at once, by default."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What all servers of a table have in common."""

    checkpoint: str
    image: str
    engine: str

    @property
    def name(self) -> str:
        return f"{self.checkpoint} {self.image} {self.engine}"


@dataclass(frozen=True, slots=True)
class LoadCase:
    """`callers` in a closed loop, or an open one at `share` per cent of the server's capacity."""

    callers: int | None = None
    share: int | None = None

    @property
    def name(self) -> str:
        return f"closed {self.callers}" if self.callers else f"open {self.share}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and for how long."""

    cells: Sequence[Cell]
    loads: Sequence[LoadCase]
    rounds: int
    seconds: float

    def loads_of(self, cell: Cell, contender: Contender) -> list[LoadCase]:
        """Return the loads that make sense for a route, the closed ones first: they say what its capacity is."""
        per_request = 32 if contender.name == "batch" else 1
        quick = cell.checkpoint == SHIPPED and cell.image == "60x80"
        return [
            load
            for load in self.loads
            if load.share is not None
            or (
                load.callers is not None
                and load.callers * per_request <= MOST_WAITING
                and (load.callers < MANY or quick)
            )
        ]


def plan(*, quick: bool, engines: Sequence[str], seconds: float | None, rounds: int | None) -> Plan:
    """Return what is measured by default, or quickly."""
    checkpoints, images = ((SHIPPED,), ("60x80",)) if quick else ((SHIPPED, LARGE), tuple(IMAGE_SIZES))
    closed, shares = ((1, 16, 64), (75,)) if quick else (CLOSED, OPEN)
    return Plan(
        cells=[Cell(checkpoint, image, engine) for checkpoint in checkpoints for image in images for engine in engines],
        loads=[*(LoadCase(callers=callers) for callers in closed), *(LoadCase(share=share) for share in shares)],
        rounds=rounds or (1 if quick else 2),
        seconds=seconds or (4.0 if quick else 5.0),
    )
