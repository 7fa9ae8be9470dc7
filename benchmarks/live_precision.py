"""The live promise: how often the alarm is false, and how soon a broken promise is noticed.

    python -m benchmarks.live_precision [--out benchmarks/results/live_precision.json]

The alarm is that the upper bound of a precision (`model.trust.confidence_sequences`) falls under the target. It is
looked at after each of 10,000 judgements. Nothing is drawn: whether it has been raised depends on how many of the first
n judgements were wrong, so the chance of every such path is added up exactly. Beside it stands the bound of Clopper and
Pearson, which holds for a single look.

Shapes: N judgements.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import betaincinv

from model.trust.confidence_sequences import ERROR, bound_error, upper_bound

LOOKS = 10_000
TARGETS = (0.9, 0.95, 0.99)
SITUATIONS = 3
SEQUENCES = 7 * len(TARGETS) * SITUATIONS
"""Of the shipped checkpoint: each of its attributes, at each target, in each situation."""
STARTS = (1, 4, 52)
PRECISION = 0.90
"""What the precision has become where 0.95 was promised."""
WITHIN = (100, 300, 1_000, 3_000)

Floats = NDArray[np.float64]
Bound = Callable[[Floats, Floats, float], Floats]
"""From how many were right and wrong, and the error, to the upper bound."""


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """The chance of a false alarm within `LOOKS` looks, where every precision is exactly what was promised."""

    target: float
    one_sequence: float
    """A single sequence, with the whole error."""
    one_sequence_clopper_pearson: float
    all_sequences: float
    """Any of `SEQUENCES` sequences, in the first start, with the error that they share. They are judged by different
    pairs, so they are independent."""


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """After how many judged labels a precision of `PRECISION` is noticed where 0.95 was promised."""

    sequences: int
    start: int
    error: float
    """Of one bound."""
    median: int
    nine_in_ten: int
    within: dict[int, float]
    """The chance of having noticed it by then."""


@dataclass(frozen=True, kw_only=True)
class Report:
    looks: int
    sequences: int
    false_alarms: tuple[FalseAlarms, ...]
    noticed: tuple[Noticed, ...]


def clopper_pearson_upper(right: Floats, wrong: Floats, alpha: float) -> Floats:
    """Return the bound of a single look, of each count `[N]`."""
    return np.asarray(1 - np.where(wrong > 0, betaincinv(np.maximum(wrong, 1e-9), right + 1, alpha), 0.0))


def fewest_wrong(target: float, alpha: float, bound: Bound = upper_bound, looks: int = LOOKS) -> NDArray[np.int64]:
    """Return how many of the first n judgements must be wrong at least to raise the alarm, n from 1 `[N]`.

    n + 1 where none suffice.
    """
    judged = np.arange(1, looks + 1)
    low, high = np.zeros(looks, np.int64), judged + 1
    while (low < high).any():
        middle = (low + high) // 2
        wrong = np.minimum(middle, judged)
        alarm = bound((judged - wrong).astype(np.float64), wrong.astype(np.float64), alpha) < target
        low, high = np.where(alarm | (low == high), low, middle + 1), np.where(alarm, middle, high)
    return low


def first_alarms(precision: float, fewest: NDArray[np.int64]) -> Floats:
    """Return the chance that the alarm is raised first after judgement n, n from 1 `[N]`.

    precision: the chance that a judgement is right; fewest: as `fewest_wrong` returns it
    """
    silent = np.zeros(int(fewest.max()) + 1)  # the chance of each number of wrong ones, without an alarm before
    silent[0] = 1.0
    chances = np.empty(len(fewest))
    for place, least in enumerate(fewest.tolist()):
        silent[1:] = silent[1:] * precision + silent[:-1] * (1 - precision)
        silent[0] *= precision
        chances[place] = silent[least:].sum()
        silent[least:] = 0.0
    return chances


def false_alarms(target: float) -> FalseAlarms:
    """Return the chances of a false alarm at a target."""

    def ever(alpha: float, bound: Bound = upper_bound) -> float:
        return float(first_alarms(target, fewest_wrong(target, alpha, bound)).sum())

    return FalseAlarms(
        target=target,
        one_sequence=round(ever(ERROR), 4),
        one_sequence_clopper_pearson=round(ever(ERROR, clopper_pearson_upper), 4),
        all_sequences=round(1 - (1 - ever(bound_error(SEQUENCES, 1))) ** SEQUENCES, 4),
    )


def noticed(sequences: int, start: int) -> Noticed:
    """Return how soon the broken promise is noticed."""
    error = bound_error(sequences, start)
    by_then = np.cumsum(first_alarms(PRECISION, fewest_wrong(0.95, error)))
    return Noticed(
        sequences=sequences,
        start=start,
        error=float(f"{error:.3g}"),
        median=int(np.searchsorted(by_then, 0.5)) + 1,
        nine_in_ten=int(np.searchsorted(by_then, 0.9)) + 1,
        within={judged: round(float(by_then[judged - 1]), 3) for judged in WITHIN},
    )


def measure() -> Report:
    return Report(
        looks=LOOKS,
        sequences=SEQUENCES,
        false_alarms=tuple(map(false_alarms, TARGETS)),
        noticed=(noticed(1, 1), *(noticed(SEQUENCES, start) for start in STARTS)),
    )


def show(report: Report, console: Console) -> None:
    alarms = Table(title=f"False alarms within {report.looks:,} looks, in %")
    for heading in ("target", "one sequence", "Clopper-Pearson", f"{report.sequences} sequences"):
        alarms.add_column(heading, justify="right")
    for each in report.false_alarms:
        chances = (each.one_sequence, each.one_sequence_clopper_pearson, each.all_sequences)
        alarms.add_row(f"{each.target}", *(f"{100 * chance:.2f}" for chance in chances))
    console.print(alarms)
    soon = Table(title=f"Judged labels until {PRECISION} is noticed where 0.95 was promised")
    for heading in ("sequences", "start", "median", "in 90 %", *(f"within {n:,}, %" for n in WITHIN)):
        soon.add_column(heading, justify="right")
    for found in report.noticed:
        numbers = (found.sequences, found.start, found.median, found.nine_in_ten)
        soon.add_row(*map(str, numbers), *(f"{100 * chance:.1f}" for chance in found.within.values()))
    console.print(soon)


def main(
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures as JSON to this file.")] = None,
) -> None:
    """How often the alarm is false, and how soon a broken promise is noticed."""
    report = measure()
    show(report, Console())
    if out:
        out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
