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

from model.catalogue.listings import Catalogue, Listing
from model.errors import CatalogueError, ModelError
from model.evaluation.heldout import HeldOut, collect, evidence_groups
from model.inference.predictor import Predictor
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import fit_temperature, softmax
from model.trust.noise import NoiseEstimate, contradictions, estimate_noise, suspicion

CHUNK = 20_000
"""Listings that are answered at a time: of each only its probabilities are kept."""

SHOWN_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A label of the catalogue, and what a model that has not seen the listing says to it."""

    id: str
    attribute: str
    label: str
    suggestion: str | None
    """The most probable label; None where no model knows the attribute of the listing."""
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
        """Return which label is given for which, and the estimated share of listings, the commonest first."""
        if self.noise is None:
            return []
        off = self.noise.joint.copy()
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None)[:SHOWN_PAIRS]
        pairs = [divmod(int(place), len(self.labels)) for place in order]
        return [
            (self.labels[given], self.labels[true], float(off[given, true]))
            for given, true in pairs
            if off[given, true] > 0
        ]


@dataclass(frozen=True)
class _Block:
    """What one model says of some listings about one attribute."""

    listings: tuple[Listing, ...]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float16]
    """`[n, C]`: half precision tells one label from another, and a million listings fit into memory."""


Temperatures = Mapping[Situation, Mapping[str, float]]


class Evidence:
    """What models that have not seen a catalogue's listings say of them, collected model by model."""

    def __init__(self, catalogue: Catalogue, console: Console) -> None:
        self.catalogue, self.console = catalogue, console
        self._blocks: dict[str, list[_Block]] = {}

    def add(self, predictor: Predictor, listings: Sequence[Listing], validation: Sequence[Listing]) -> None:
        """Let a model judge `listings`, which it has not seen, from everything that each of them has.

        Multi-valued attributes are passed over. Temperatures are those of its calibration, or fitted on `validation`.
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
            situation: {
                task.name: fit_temperature(each.logits_of(task), each.labels(task))
                for task in predictor.tasks
                if not task.multi_valued
            }
            for situation, each in held_out.items()
        }

    def _keep(
        self, tasks: Sequence[Task], situation: Situation, found: HeldOut, temperatures: Mapping[str, float]
    ) -> None:
        """Keep the answers to those listings that have the modalities of `situation`, and no more."""
        own = [row for row, listing in enumerate(found.listings) if situation is _own(listing)]
        for task in (each for each in tasks if not each.multi_valued):
            rows = [row for row in own if task.name in found.listings[row].labels]
            if rows:
                probabilities = softmax(found.logits_of(task)[rows], temperatures[task.name]).astype(np.float16)
                listings = tuple(found.listings[row] for row in rows)
                self._blocks.setdefault(task.name, []).append(_Block(listings, task.labels, probabilities))

    def judge(self) -> list[AttributeAudit]:
        """Rank every attribute's labels. Raises `CatalogueError` where no label was judged."""
        if not self._blocks:
            raise CatalogueError("no labelled listing could be judged: none has an attribute that the model predicts")
        return [self._judge(name, blocks) for name, blocks in self._blocks.items()]

    def _judge(self, name: str, blocks: Sequence[_Block]) -> AttributeAudit:
        labels = tuple(dict.fromkeys(label for block in blocks for label in block.labels))
        number = {label: place for place, label in enumerate(labels)}
        listings = [listing for block in blocks for listing in block.listings]
        probabilities = np.zeros((len(listings), len(labels)), np.float32)
        first = 0
        for block in blocks:
            rows = slice(first, first := first + len(block.listings))
            probabilities[rows, [number[label] for label in block.labels]] = block.probabilities
        given = np.array([number.get(listing.labels[name], -1) for listing in listings])
        known = given >= 0
        scores = np.full(len(listings), -1.0)
        scores[known] = suspicion(probabilities[known], given[known])
        best = probabilities.argmax(axis=1)
        order = np.argsort(-scores, kind="stable")
        group = evidence_groups(listings)
        texts = [listing.labels[name] for listing in listings]
        return AttributeAudit(
            name=name,
            listings=tuple(listings[row] for row in order),
            suspects=tuple(
                Suspect(
                    id=listings[row].id,
                    attribute=name,
                    label=texts[row],
                    suggestion=labels[best[row]],
                    score=float(scores[row]) if known[row] else None,
                    rank=rank,
                )
                for rank, row in enumerate(order.tolist(), start=1)
            ),
            labels=labels,
            noise=estimate_noise(probabilities[known], given[known], group[known]),
        )


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
        rows = [row for row, listing in enumerate(listings) if name in listing.labels]
        labels = [listings[row].labels[name] for row in rows]
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
