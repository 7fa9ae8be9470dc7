"""What would change if one checkpoint replaced another: listing by listing, and in figures with intervals.

Two checkpoints answer the same listings, in every situation. Labels are compared by their names, so that the
checkpoints may know different ones; attributes that only one of them has are left out, and named.

Shapes: n listings, T common attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from model.catalogue.listings import Catalogue, Listing
from model.errors import ConfigError, ModelError
from model.evaluation import scores
from model.evaluation.heldout import answer_every_situation, evidence_groups
from model.inference.calibrator import BatchRow, Calibrator
from model.inference.predictor import Predictor
from model.inputs.decode import decode_image
from model.progress import progress_bar
from model.situations import Situation
from model.trust.stability import Answered, churn

BATCH = 64

UNKNOWN = -1
"""The class of a listing without a label, or with one that neither checkpoint knows."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One checkpoint's answer to one attribute of one listing."""

    label: str
    confidence: float
    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Changed:
    """An attribute of a listing whose label or verdict is another one: from all that the listing has."""

    id: str
    title: str | None
    image: str | None
    attribute: str
    before: Reading
    after: Reading
    truth: str | None
    """The catalogue's own label, if any."""

    @property
    def weight(self) -> tuple[int, float]:
        """What to look at first: accepted labels that differ, then verdicts; the surest first."""
        other = self.before.label != self.after.label
        grade = 2 if other and self.before.accepted and self.after.accepted else int(other)
        return grade, self.before.confidence + self.after.confidence


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The figures, in JSON types, and the listings that changed, those to look at first in front."""

    figures: Mapping[str, Any]
    changed: Sequence[Changed]

    def to_json(self) -> dict[str, Any]:
        """Return everything in JSON types."""
        return {**self.figures, "changed": [asdict(each) for each in self.changed]}


@dataclass
class _Column:
    """The answers to one attribute in one situation, both checkpoints', as they come; labels by number."""

    rows: list[int] = field(default_factory=list)
    labels: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    accepted: tuple[list[bool], list[bool]] = field(default_factory=lambda: ([], []))
    truth: list[int] = field(default_factory=list)

    def answered(self, side: int) -> Answered:
        return Answered(
            labels=np.array(self.labels[side], dtype=np.int64),
            accepted=np.array(self.accepted[side], dtype=np.bool_),
            confidence=np.zeros(len(self.rows)),
        )

    def figures(self, group: scores.Ints) -> dict[str, Any] | None:
        """Return what is to be said of it, in JSON types; group: of every listing. None where there is no answer."""
        before, after, truth = self.answered(0), self.answered(1), np.array(self.truth, dtype=np.int64)
        found = churn(before, after, truth)
        if found is None:
            return None
        other, known = before.labels != after.labels, truth >= 0
        interval = scores.bootstrap_interval(lambda rows: float(other[rows].mean()), group[self.rows])
        return {
            **found.to_json(),
            "labels_interval": list(interval),
            "accuracy": [
                float((each.labels == truth)[known].mean()) if known.any() else None for each in (before, after)
            ],
            "coverage": [float(each.accepted.mean()) for each in (before, after)],
        }


class _Tally:
    """Collects both checkpoints' answers, and what is another label or verdict."""

    def __init__(self, labels: Mapping[str, Mapping[str, int]], target_precision: float) -> None:
        self.labels, self.target_precision = labels, target_precision
        self.columns = {(situation, name): _Column() for situation in Situation for name in labels}

    def enter(
        self, situation: Situation, row: int, listing: Listing, answers: tuple[BatchRow, BatchRow]
    ) -> Iterator[Changed]:
        """Enter both answers to the listing at `row`, and yield what is another label or verdict."""
        for name, numbers in self.labels.items():
            column, truth = self.columns[situation, name], listing.labels.get(name)
            readings = [self._reading(answer, name) for answer in answers]
            for side, reading in enumerate(readings):
                column.labels[side].append(numbers[reading.label])
                column.accepted[side].append(reading.accepted)
            column.rows.append(row)
            column.truth.append(UNKNOWN if truth is None else numbers.get(truth, UNKNOWN))
            before, after = readings
            if (before.label, before.accepted) != (after.label, after.accepted):
                yield Changed(
                    id=listing.id,
                    title=listing.title,
                    image=listing.image,
                    attribute=name,
                    before=before,
                    after=after,
                    truth=truth,
                )

    def _reading(self, answer: BatchRow, name: str) -> Reading:
        found = answer.attribute(name, target_precision=self.target_precision, top_k=0)
        return Reading(label=found.label, confidence=found.confidence, accepted=found.accepted)


def compare(
    before: Predictor,
    after: Predictor,
    catalogue: Catalogue,
    listings: Sequence[Listing],
    *,
    target_precision: float = 0.95,
    console: Console,
) -> Comparison:
    """Answer `listings` by both checkpoints and compare; those whose image cannot be read are left out.

    Raises `ConfigError` where the checkpoints share no attribute, or one is not calibrated at `target_precision`.
    """
    for predictor in (before, after):
        if target_precision not in predictor.info.target_precisions:
            raise ConfigError(
                f"{predictor.info.name} {predictor.info.version} is not calibrated at {target_precision}; there are "
                f"{', '.join(map(str, predictor.info.target_precisions)) or 'no targets: run cma-clip calibrate'}"
            )
    tally, changed = _Tally(_common_labels(before, after), target_precision), list[Changed]()
    sides = [(predictor, _calibrator(predictor)) for predictor in (before, after)]
    height, width = (max(lengths) for lengths in zip(before.info.image_size, after.info.image_size, strict=True))
    pairs, read = _listings(catalogue, listings, (height, width)), 0
    with progress_bar(console) as progress:
        bar = progress.add_task("listings", total=len(listings))
        while batch := list(islice(pairs, BATCH)):
            inputs = [(listings[row].title, image) for row, image in batch]
            both = [
                {(situation, place): answer for situation, place, answer in answer_every_situation(*side, inputs)}
                for side in sides
            ]
            for situation, place in both[0]:
                row, answers = batch[place][0], (both[0][situation, place], both[1][situation, place])
                found = list(tally.enter(situation, row, listings[row], answers))
                title, image = inputs[place]
                if situation is Situation.of(image=image is not None, title=title is not None):
                    changed += found
            read += len(batch)
            progress.update(bar, completed=batch[-1][0] + 1)
    group = evidence_groups(listings)
    figures = {
        "before": {"name": before.info.name, "version": before.info.version, "calibration": before.info.calibration},
        "after": {"name": after.info.name, "version": after.info.version, "calibration": after.info.calibration},
        "data": catalogue.config.path.stem,
        "listings": read,
        "unreadable_images": len(listings) - read,
        "target_precision": target_precision,
        "attributes_of_one_alone": sorted({t.name for t in before.tasks} ^ {t.name for t in after.tasks}),
        "situations": {
            situation: {name: tally.columns[situation, name].figures(group) for name in tally.labels}
            for situation in Situation
        },
    }
    return Comparison(figures=figures, changed=sorted(changed, key=lambda each: each.weight, reverse=True))


def _common_labels(before: Predictor, after: Predictor) -> dict[str, dict[str, int]]:
    """Number the labels of each attribute that both have: those of the first, then those that only the second knows."""
    of = {task.name: task.labels for task in after.tasks}
    common = {
        task.name: {label: number for number, label in enumerate(dict.fromkeys([*task.labels, *of[task.name]]))}
        for task in before.tasks
        if task.name in of
    }
    if not common:
        raise ConfigError("the two checkpoints have no attribute in common")
    return common


def _listings(
    catalogue: Catalogue, listings: Sequence[Listing], size: tuple[int, int]
) -> Iterator[tuple[int, Image.Image | None]]:
    """Yield the number and the image of each listing that can be read."""
    for row, listing in enumerate(listings):
        if listing.image is None:
            yield row, None
            continue
        try:
            yield row, decode_image(catalogue.image_bytes(listing.image), size).image
        except ModelError:
            continue


def _calibrator(predictor: Predictor) -> Calibrator:
    own = predictor.checkpoint
    return Calibrator(predictor.tasks, own.calibration, own.gate, own.applicability)


# --- tables ------------------------------------------------------------------------------------------------

COLUMNS = ("other label", "unexplained", "both accepted, other label", "other verdict", "accuracy", "coverage")


def churn_rows(attributes: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a situation's table: attribute, then `COLUMNS`, in %."""
    rows = []
    for name, found in attributes.items():
        if found is not None:
            low, high = (_percent(each) for each in found["labels_interval"])
            figures = [_percent(found[key]) for key in ("unexplained", "accepted", "verdicts")]
            moved = [" → ".join(_percent(each) for each in found[key]) for key in ("accuracy", "coverage")]
            rows.append([name, f"{_percent(found['labels'])} [{low}, {high}]", *figures, *moved])
    return rows


def comparison_tables(figures: Mapping[str, Any], headings: Mapping[Situation, str]) -> list[Table]:
    """Return a table per situation, for the terminal; headings: what situations are called."""
    tables = []
    for situation, attributes in figures["situations"].items():
        rows = churn_rows(attributes)
        if rows:
            table = Table(title=f"{headings[situation]}, in % (target {100 * figures['target_precision']:g} %)")
            for column in ("attribute", *COLUMNS):
                table.add_column(column, justify="left" if column == "attribute" else "right")
            for row in rows:
                table.add_row(*row)
            tables.append(table)
    return tables


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
