"""Stability: how often answers change when a listing changes in a way that no person would notice.

Every test listing is answered as it is and after each change (`model/inputs/unnoticeable.py`), in every situation that
it can be answered in; `model/trust/stability.py` counts what flips.

Shapes: n listings, V changes, T attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ModelError
from model.evaluation import scores
from model.evaluation.heldout import answer_every_situation, evidence_groups
from model.inference.calibrator import BatchRow, Calibrator
from model.inference.predictions import RawPredictor
from model.inputs.decode import decode_image
from model.inputs.unnoticeable import IMAGE_CHANGES, TITLE_CHANGES, LabelWords
from model.progress import progress_bar
from model.situations import Situation
from model.tasks import Task
from model.trust.applicability import Applicability
from model.trust.calibration import Calibration
from model.trust.gate import Gate
from model.trust.stability import Answered, Flips, flips, spread

CHANGES = (*IMAGE_CHANGES, *TITLE_CHANGES)

CHANGES_WITHIN: Mapping[Situation, Sequence[str]] = {
    Situation.IMAGE_AND_TITLE: CHANGES,
    Situation.IMAGE: tuple(IMAGE_CHANGES),
    Situation.TITLE: tuple(TITLE_CHANGES),
}

LISTINGS = 1_000
"""How many test listings are changed, at most."""

BATCH = 64

PREFERRED_TARGET = 0.95


@dataclass(frozen=True)
class _Variant:
    """A listing as it is (`change` 0) or after change number `change`."""

    listing: int
    change: int
    title: str | None
    image: Image.Image | None


@dataclass(frozen=True)
class _Table:
    """The answers of one situation to n listings under V changes."""

    given: NDArray[np.bool_]
    """Which changes apply to which listing, `[1 + V, n]`; the first row is the listings as they are."""
    labels: NDArray[np.int64]
    """Class indices, `[1 + V, n, T]`."""
    accepted: NDArray[np.bool_]
    """`[1 + V, n, T]`."""
    confidence: NDArray[np.float64]
    """Of the label of the listing as it is, `[1 + V, n, T]`."""

    @classmethod
    def empty(cls, n: int, attributes: int) -> _Table:
        shape = (1 + len(CHANGES), n)
        return cls(
            np.zeros(shape, np.bool_),
            np.zeros((*shape, attributes), np.int64),
            np.zeros((*shape, attributes), np.bool_),
            np.zeros((*shape, attributes)),
        )

    def answered(self, change: int, t: int) -> Answered:
        """Return attribute `t`'s answers to all n listings under a change; where it is not given, they are empty."""
        return Answered(
            labels=self.labels[change, :, t],
            accepted=self.accepted[change, :, t],
            confidence=self.confidence[change, :, t],
        )


def measure_stability(
    predictor: RawPredictor,
    calibration: Calibration,
    gate: Gate | None,
    catalogue: Catalogue,
    *,
    applicability: Applicability | None = None,
    listings: int = LISTINGS,
    console: Console,
) -> dict[str, Any]:
    """Answer test listings as they are and changed, and return what flips, in JSON types.

    At most `listings` of them, drawn by a hash of their ids; those whose image cannot be read are left out. Verdicts
    are those at a target of 0.95 where it is calibrated, else at the lowest target.
    """
    chosen = _drawn(catalogue.part(Part.TEST), listings)
    targets = calibration.target_precisions
    target = PREFERRED_TARGET if PREFERRED_TARGET in targets else min(targets)
    calibrator = Calibrator(predictor.tasks, calibration, gate, applicability)
    tables = {situation: _Table.empty(len(chosen), len(predictor.tasks)) for situation in Situation}
    with progress_bar(console) as progress:
        bar = progress.add_task("stability", total=len(chosen))
        variants = _variants(predictor, catalogue, chosen)
        while batch := list(islice(variants, BATCH)):
            _answer(predictor, calibrator, batch, target, tables)
            progress.update(bar, completed=batch[-1].listing)
    group = evidence_groups(chosen)
    return {
        "listings": len(chosen),
        "target_precision": target,
        "situations": {
            situation: _figures(table, predictor.tasks, CHANGES_WITHIN[situation], group)
            for situation, table in tables.items()
        },
    }


def _drawn(listings: Sequence[Listing], most: int) -> list[Listing]:
    by_hash = sorted(listings, key=lambda each: hashlib.sha256(f"stability/{each.id}".encode()).digest())
    return by_hash[:most]


def _variants(predictor: RawPredictor, catalogue: Catalogue, listings: Sequence[Listing]) -> Iterator[_Variant]:
    """Yield each listing as it is, and then after each change that applies to it."""
    words = LabelWords.of(label for task in predictor.tasks for label in task.labels)
    for row, listing in enumerate(listings):
        title, image = listing.title, None
        if listing.image is not None:
            try:
                image = decode_image(catalogue.image_bytes(listing.image), predictor.info.image_size).image
            except ModelError:
                continue
        yield _Variant(row, 0, title, image)
        for number, name in enumerate(CHANGES, start=1):
            if name in IMAGE_CHANGES and image is not None:
                yield _Variant(row, number, title, IMAGE_CHANGES[name](image))
            if name in TITLE_CHANGES and title is not None and (changed := TITLE_CHANGES[name](title, words)) != title:
                yield _Variant(row, number, changed, image)


def _answer(
    predictor: RawPredictor,
    calibrator: Calibrator,
    variants: Sequence[_Variant],
    target: float,
    tables: Mapping[Situation, _Table],
) -> None:
    """Answer variants in every situation that a change of theirs matters in, and enter the answers into the tables."""
    inputs = [(each.title, each.image) for each in variants]
    for situation, row, answer in answer_every_situation(predictor, calibrator, inputs):
        change = variants[row].change
        if change == 0 or CHANGES[change - 1] in CHANGES_WITHIN[situation]:
            _enter(tables[situation], variants[row], answer, predictor.tasks, target)


def _enter(table: _Table, variant: _Variant, answer: BatchRow, tasks: Sequence[Task], target: float) -> None:
    change, listing = variant.change, variant.listing
    table.given[change, listing] = True
    for t, task in enumerate(tasks):
        table.labels[change, listing, t] = answer.best(task.name)
        table.accepted[change, listing, t] = answer.attribute(task.name, target_precision=target, top_k=0).accepted
        first = int(table.labels[0, listing, t])
        table.confidence[change, listing, t] = answer.confidence_of(task.name, first)


# --- figures -----------------------------------------------------------------------------------------------


def _figures(table: _Table, tasks: Sequence[Task], changes: Sequence[str], group: scores.Ints) -> dict[str, Any]:
    """Return what flips: of each attribute over all changes that apply, and of each change alone."""
    numbers = [CHANGES.index(name) + 1 for name in changes]
    return {
        "attributes": {task.name: _over_all(table, t, numbers, group) for t, task in enumerate(tasks)},
        "changes": {
            name: {
                task.name: found.to_json() if (found := _under(table, t, [number])) is not None else None
                for t, task in enumerate(tasks)
            }
            for name, number in zip(changes, numbers, strict=True)
        },
    }


def _over_all(table: _Table, t: int, numbers: Sequence[int], group: scores.Ints) -> dict[str, Any] | None:
    """Return the figures of (listing, change) pairs together, with an interval over listings, and the spread."""
    found = _under(table, t, numbers)
    if found is None:
        return None
    other = (table.labels[numbers, :, t] != table.labels[0, :, t]) & table.given[numbers]
    flipped, pairs = other.sum(axis=0), table.given[numbers].sum(axis=0)
    interval = scores.bootstrap_interval(lambda rows: float(flipped[rows].sum() / max(1, pairs[rows].sum())), group)
    rows = [0, *numbers]
    return {
        **found.to_json(),
        "labels_interval": list(interval),
        "spread": spread(table.confidence[rows, :, t], table.given[rows]),
    }


def _under(table: _Table, t: int, numbers: Sequence[int]) -> Flips | None:
    """Compare attribute `t`'s answers under some changes with those to the listings as they are."""
    before, after = [], []
    for number in numbers:
        given = table.given[number]
        before.append(table.answered(0, t)[given])
        after.append(table.answered(number, t)[given])
    return flips(_joined(before), _joined(after))


def _joined(parts: Sequence[Answered]) -> Answered:
    return Answered(
        labels=np.concatenate([part.labels for part in parts]),
        accepted=np.concatenate([part.accepted for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
    )


# --- tables ------------------------------------------------------------------------------------------------

COLUMNS = ("labels", "verdicts", "accepted labels", "confidence", "spread")

LEGEND = (
    "Under changes that no person would notice, over all listings and changes, in %. Labels: another label. Verdicts: "
    "accepted once and not the other time. Accepted labels: of those accepted without the change, another label. "
    "Confidence: mean absolute change of that of the first label. Spread: standard deviation of a listing's confidence."
)


def stability_rows(situation: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a situation's table: attribute, then `COLUMNS`."""
    rows = []
    for name, found in situation["attributes"].items():
        if found is not None:
            low, high = (_percent(each) for each in found["labels_interval"])
            figures = [_percent(found[key]) for key in ("verdicts", "accepted", "confidence", "spread")]
            rows.append([name, f"{_percent(found['labels'])} [{low}, {high}]", *figures])
    return rows


def change_rows(situation: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a situation's table of changes: its name, then the labels that flip of each attribute."""
    return [
        [name, *(_percent(each["labels"]) if each else "-" for each in by_attribute.values())]
        for name, by_attribute in situation["changes"].items()
    ]


def stability_tables(stability: Mapping[str, Any], headings: Mapping[Situation, str]) -> list[Table]:
    """Return a table per situation, for the terminal; headings: what situations are called."""
    tables = []
    for situation, found in stability["situations"].items():
        table = Table(title=f"{headings[situation]}: stability of {stability['listings']:,} test listings")
        for column in ("attribute", *COLUMNS):
            table.add_column(column, justify="left" if column == "attribute" else "right")
        for row in stability_rows(found):
            table.add_row(*row)
        tables.append(table)
    return tables


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
