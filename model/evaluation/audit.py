"""An audit of a catalogue's own labels: which of them are likeliest wrong, and how many are.

Every labelled listing is judged by a model that has not seen it: by a checkpoint, which has not seen the held-out
parts, or by one of several that were each trained without a share of the listings (`model/training/folds.py`). The
mathematics is in `model/trust/noise.py`.

Shapes: n listings, C labels of an attribute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.catalogue.corrections import labels_of
from model.catalogue.listings import Catalogue, Listing
from model.errors import CatalogueError, ModelError
from model.evaluation.heldout import HeldOut, collect, evidence_groups
from model.inference.calibrator import LIKELY
from model.inference.predictor import Predictor
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import confidences_of, fit_temperature
from model.trust.noise import (
    NoiseEstimate,
    contradictions,
    estimate_noise,
    estimate_set_noise,
    suspicion,
    suspicion_of_sets,
)

CHUNK = 20_000
"""Listings that are answered at a time: of each only its probabilities are kept."""

SHOWN_PAIRS = 10

NOTHING = "(nothing)"
"""Stands for no label, where a multi-valued attribute has one too many or too few."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A label of the catalogue, and what a model that has not seen the listing says to it."""

    id: str
    attribute: str
    label: str
    """Of a multi-valued attribute the labels, with its separator between them; the suggestion as well."""
    suggestion: str | None
    """The most probable label, or all that are likelier than not; None where no model knows the attribute."""
    score: float | None
    """How likely the label is wrong, from 0 to 1; None for one that the model does not know, which says nothing."""
    rank: int
    """1 is the attribute's likeliest error."""


@dataclass(frozen=True, kw_only=True)
class AttributeAudit:
    """One attribute's labels, judged."""

    name: str
    listings: tuple[Listing, ...]
    """The labelled ones that were judged, in order of rank."""
    suspects: tuple[Suspect, ...]
    """One for each of these listings."""
    labels: tuple[str, ...]
    """The vocabulary, C."""
    noise: NoiseEstimate | None

    def confusions(self) -> list[tuple[str, str, float]]:
        """Return which label is given for which, and the estimated share of listings, the commonest first.

        Of a multi-valued attribute one of the two is `NOTHING`: a label is missing, or should not be there.
        """
        if self.noise is None:
            return []
        off, names = self.noise.joint.copy(), (*self.labels, NOTHING)
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None)[:SHOWN_PAIRS]
        pairs = [divmod(int(place), len(off)) for place in order]
        return [(names[given], names[true], float(off[given, true])) for given, true in pairs if off[given, true] > 0]


@dataclass(frozen=True)
class _Block:
    """What one model says of some listings about one attribute."""

    listings: tuple[Listing, ...]
    task: Task
    probabilities: NDArray[np.float16]
    """`[n, C]`, of a multi-valued attribute each label's by itself. Half precision tells one label from another, and a
    million listings fit into memory."""


Temperatures = Mapping[Situation, Mapping[str, float]]


class Evidence:
    """What models that have not seen a catalogue's listings say of them, collected model by model."""

    def __init__(self, catalogue: Catalogue, console: Console) -> None:
        self.catalogue, self.console = catalogue, console
        self._blocks: dict[str, list[_Block]] = {}

    def add(self, predictor: Predictor, listings: Sequence[Listing], validation: Sequence[Listing]) -> None:
        """Let a model judge `listings`, which it has not seen, from everything that each of them has.

        Temperatures are those of its calibration, or fitted on `validation`.
        """
        temperatures = self._temperatures(predictor, validation)
        for first in range(0, len(listings), CHUNK):
            chunk = listings[first : first + CHUNK]
            held_out = collect(predictor, self.catalogue, chunk, console=self.console, what="audited listings")
            for situation, found in held_out.items():
                self._keep(predictor.tasks, situation, found, temperatures[situation])

    def _temperatures(self, predictor: Predictor, validation: Sequence[Listing]) -> Temperatures:
        calibration = predictor.checkpoint.calibration
        if calibration is not None:
            return {
                situation: {name: each.temperature for name, each in attributes.items()}
                for situation, attributes in calibration.situations.items()
            }
        held_out = collect(predictor, self.catalogue, validation, console=self.console, what="validation")
        return {
            situation: {task.name: fit_temperature(each.logits_of(task), each.labels(task)) for task in predictor.tasks}
            for situation, each in held_out.items()
        }

    def _keep(
        self, tasks: Sequence[Task], situation: Situation, found: HeldOut, temperatures: Mapping[str, float]
    ) -> None:
        """Keep the answers to those listings that have the modalities of `situation`, and no more."""
        own = [row for row, listing in enumerate(found.listings) if situation is _own(listing)]
        for task in tasks:
            rows = [row for row in own if found.listings[row].has_label(task.name)]
            if rows:
                logits, temperature = found.logits_of(task)[rows], temperatures[task.name]
                probabilities = confidences_of(logits, temperature, multi_valued=task.multi_valued).astype(np.float16)
                listings = tuple(found.listings[row] for row in rows)
                self._blocks.setdefault(task.name, []).append(_Block(listings, task, probabilities))

    def judge(self) -> list[AttributeAudit]:
        """Rank every attribute's labels. Raises `CatalogueError` where no label was judged."""
        if not self._blocks:
            raise CatalogueError("no labelled listing could be judged: none has an attribute that the model predicts")
        return [self._judge(name, blocks) for name, blocks in self._blocks.items()]

    def _judge(self, name: str, blocks: Sequence[_Block]) -> AttributeAudit:
        labels = tuple(dict.fromkeys(label for block in blocks for label in block.task.labels))
        number = {label: place for place, label in enumerate(labels)}
        listings = [listing for block in blocks for listing in block.listings]
        probabilities = np.zeros((len(listings), len(labels)), np.float32)
        first = 0
        for block in blocks:
            rows = slice(first, first := first + len(block.listings))
            probabilities[rows, [number[label] for label in block.task.labels]] = block.probabilities
        separator = blocks[0].task.separator
        judge = _judge_labels if separator is None else _judge_sets
        judged = judge(name, listings, number, probabilities)
        order = np.argsort(-judged.scores, kind="stable")
        joined = separator or ""
        return AttributeAudit(
            name=name,
            listings=tuple(listings[row] for row in order),
            suspects=tuple(
                Suspect(
                    id=listings[row].id,
                    attribute=name,
                    label=joined.join(labels_of(listings[row], name)),
                    suggestion=joined.join(labels[place] for place in judged.suggestions[row]),
                    score=float(judged.scores[row]) if judged.scores[row] >= 0 else None,
                    rank=rank,
                )
                for rank, row in enumerate(order.tolist(), start=1)
            ),
            labels=labels,
            noise=judged.noise,
        )


@dataclass(frozen=True)
class _Judged:
    """What is said of n labels, or label sets."""

    scores: NDArray[np.float64]
    """How likely each is wrong, `[n]`; -1 where no model knows it."""
    suggestions: Sequence[Sequence[int]]
    """The places of the labels that each should have, best first."""
    noise: NoiseEstimate | None


def _judge_labels(
    name: str, listings: Sequence[Listing], number: Mapping[str, int], probabilities: NDArray[np.float32]
) -> _Judged:
    given = np.array([number.get(listing.labels[name], -1) for listing in listings])
    known = given >= 0
    scores = np.full(len(listings), -1.0)
    scores[known] = suspicion(probabilities[known], given[known])
    noise = estimate_noise(probabilities[known], given[known], evidence_groups(listings)[known])
    return _Judged(scores, [(place,) for place in probabilities.argmax(axis=1).tolist()], noise)


def _judge_sets(
    name: str, listings: Sequence[Listing], number: Mapping[str, int], confidences: NDArray[np.float32]
) -> _Judged:
    given = np.zeros(confidences.shape, np.bool_)
    for row, listing in enumerate(listings):
        given[row, [number[label] for label in listing.label_sets[name] if label in number]] = True
    known = given.any(axis=1)
    scores = np.where(known, suspicion_of_sets(confidences, given), -1.0)
    best = confidences.argmax(axis=1).tolist()
    likely = [np.flatnonzero(row >= LIKELY).tolist() for row in confidences]
    noise = estimate_set_noise(confidences[known], given[known], evidence_groups(listings)[known])
    return _Judged(scores, [found or [place] for found, place in zip(likely, best, strict=True)], noise)


def _own(listing: Listing) -> Situation:
    return Situation.of(image=listing.image is not None, title=listing.title is not None)


# --- without a model ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Listings with the same title, or the same image, and different labels."""

    attribute: str
    same: str
    """"title" or "image"."""
    listings: tuple[Listing, ...]


def find_contradictions(catalogue: Catalogue) -> list[Contradiction]:
    """Find labels that contradict each other without any model, attribute by attribute, the largest groups first.

    Titles are compared but for letter case and white space, images byte by byte; a file that cannot be read has no
    duplicate. Reads every image once.
    """
    listings = catalogue.listings
    keys: dict[str, Sequence[Hashable | None]] = {
        "title": [" ".join(each.title.casefold().split()) if each.title else None for each in listings],
        "image": [_image_digest(catalogue, each) for each in listings],
    }
    found = []
    for name in catalogue.config.attributes:
        rows = [row for row, listing in enumerate(listings) if listing.has_label(name)]
        labels = [", ".join(sorted(labels_of(listings[row], name))) for row in rows]
        for same, of_all in keys.items():
            for group in contradictions([of_all[row] for row in rows], labels):
                chosen = tuple(listings[rows[place]] for place in group)
                found.append(Contradiction(attribute=name, same=same, listings=chosen))
    return found


def _image_digest(catalogue: Catalogue, listing: Listing) -> bytes | None:
    if listing.image is None:
        return None
    try:
        return hashlib.blake2b(catalogue.image_bytes(listing.image), digest_size=16).digest()
    except (ModelError, OSError):
        return None


# --- tables ------------------------------------------------------------------------------------------------


def audit_table(audits: Sequence[AttributeAudit]) -> Table:
    """Return, for the terminal, how many labels of each attribute are judged and estimated to be wrong."""
    table = Table(title="labels, and the estimated share of wrong ones, in %")
    for column in ("attribute", "labels judged", "not judged", "wrong", "the likeliest mistakes (given → should be)"):
        table.add_column(column, justify="right" if column in ("labels judged", "not judged", "wrong") else "left")
    for audit in audits:
        unknown = sum(each.score is None for each in audit.suspects)
        table.add_row(
            audit.name,
            f"{len(audit.suspects) - unknown:,}",
            f"{unknown:,}",
            "-" if audit.noise is None else described(audit.noise),
            "; ".join(f"{given} → {true} {100 * share:.2f}" for given, true, share in audit.confusions()[:3]),
        )
    return table


def described(noise: NoiseEstimate) -> str:
    """Return the estimated share of wrong labels and its interval, in %."""
    low, high = noise.interval
    return f"{100 * noise.share:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
