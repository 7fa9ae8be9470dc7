"""What the reviews of a random share can certify, said before anything is computed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from model.catalogue.corrections import labels_of
from model.catalogue.listings import Catalogue
from model.catalogue.reviewed import SKIPPED
from model.catalogue.splits import Part
from model.tasks import Task
from model.trust.certificates import most_wrong, significance_level

EXAMPLE = 300
"""Judged pairs of which it is said what they can certify, beside those that there are."""


def prospects(catalogue: Catalogue, tasks: Sequence[Task], targets: Sequence[float], delta: float = 0.05) -> Table:
    """Return, for the terminal, how many judged pairs each attribute has, and how many errors they allow at a target.

    catalogue: `model.catalogue.reviewed.reviewed_catalogue`; delta: as in `model.trust.certificates.certify`
    """
    table = Table(title="What the reviews can certify, at most")
    for heading in ("attribute", "for the gate", "for certificates", "skipped"):
        table.add_column(heading, justify="left" if heading == "attribute" else "right")
    for target in targets:
        table.add_column(f"errors allowed at {100 * target:g} %", justify="right")
    for task in tasks:
        judged = Counter(each.part is Part.CALIBRATION for each in catalogue.listings if each.has_label(task.name))
        skipped = sum(SKIPPED in labels_of(each, task.name) for each in catalogue.part(Part.CALIBRATION))
        cells = [_allowed(judged[True], target, delta) for target in targets]
        table.add_row(task.name, f"{judged[False]:,}", f"{judged[True]:,}", f"{skipped:,}", *cells)
    table.caption = "If a threshold accepts all of them; of fewer, fewer may be wrong. A skipped pair counts as wrong."
    examples = ", ".join(f"at {100 * target:g} % {_allowed(EXAMPLE, target, delta)}" for target in targets)
    table.caption += f" For comparison, {EXAMPLE} pairs allow {examples}."
    if any(task.multi_valued for task in tasks):
        table.caption += " Where a listing may have several labels: if one of each is accepted."
    return table


def _allowed(pairs: int, target: float, delta: float) -> str:
    allowed = most_wrong(pairs, target, delta)
    if allowed is None:
        return f"none: {fewest_pairs(target, delta):,} pairs are needed"
    return f"{allowed:,}"


def fewest_pairs(target: float, delta: float = 0.05) -> int:
    """Return how many pairs, all of them right, certify a target at least."""
    return math.ceil(math.log(significance_level(delta)) / math.log(target))
