"""What a model answers on a held-out part of a catalogue: `calibrate` and `evaluate` are based on this.

Shapes: n listings, T attributes, C_t labels of attribute t, B listings of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ConfigError, ModelError
from model.evaluation.scores import labelled
from model.inference.predictions import LogitPredictor, RawOutputs
from model.inference.stream import Failure, prepare_listing, stream
from model.progress import progress_bar
from model.situations import Situation
from model.tasks import OUT_OF_VOCABULARY, Task
from model.trust.calibration import softmax

LABELS_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One attribute's calibrated answers on its n labelled listings.

    An answer to a listing whose label is outside the vocabulary is there, and wrong.
    """

    confidence: NDArray[np.float64]
    """Of the predicted label, [n]."""
    predicted: NDArray[np.int64]
    """Class indices [n]."""
    labels: NDArray[np.int64]
    """Class indices [n], or OUT_OF_VOCABULARY."""
    group: NDArray[np.int64]
    """Listings of one number share their title, [n]: they are not independent evidence."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted label is the true one, [n]."""
        return np.asarray(self.predicted == self.labels)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A part's listings as the model sees them in one situation."""

    tasks: tuple[Task, ...]
    listings: tuple[Listing, ...]
    """Those that have what the situation asks for and could be read, n of them."""
    unreadable: int
    """Listings left out because their image could not be read."""
    logits: tuple[NDArray[np.float32], ...]
    """Per attribute [n, C_t], before calibration."""
    attention: NDArray[np.float64]
    """Weights of image and text, [n, T, 2]."""

    def labels(self, task: Task) -> NDArray[np.int64]:
        """Return the true class indices [n], as `Task.encode` gives them."""
        return np.array([task.encode(listing.labels.get(task.name)) for listing in self.listings], dtype=np.int64)

    def logits_of(self, task: Task) -> NDArray[np.float32]:
        """Return the logits [n, C_t] of one attribute."""
        return self.logits[self.tasks.index(task)]

    def answers(self, task: Task, temperature: float) -> Answers:
        """Return the answers on the listings that have a label for this attribute."""
        labels = self.labels(task)
        counted = labelled(labels)
        probabilities = softmax(self.logits_of(task)[counted], temperature)
        return Answers(
            confidence=probabilities.max(axis=1),
            predicted=probabilities.argmax(axis=1),
            labels=labels[counted],
            group=self._group[counted],
        )

    @cached_property
    def _group(self) -> NDArray[np.int64]:
        return evidence_groups(self.listings)


def collect(
    predictor: LogitPredictor,
    catalogue: Catalogue,
    part: Part,
    situation: Situation,
    *,
    console: Console,
    batch_size: int = 64,
) -> HeldOut:
    """Run the predictor over the listings of a part, withholding what the situation lacks.

    A listing takes part when it has what the situation needs; one whose image cannot be read is left out and counted.
    """
    listings = [listing for listing in catalogue.part(part) if _takes_part(listing, situation)]
    answered: list[Listing] = []
    outputs: list[RawOutputs] = []

    def prepare(listing: Listing) -> Any:
        return _prepare(predictor, catalogue, listing, situation)

    def compute(prepared: list[Any]) -> RawOutputs:
        return predictor.logits(predictor.collate(prepared))

    with progress_bar(console) as progress:
        bar = progress.add_task(f"{part}, {situation.replace('_', ' ')}", total=len(listings))
        for batch in stream(listings, prepare, compute, batch_size=batch_size):
            answered += batch.computed
            if batch.output is not None:
                outputs.append(batch.output)
            progress.advance(bar, len(batch.items))
    return HeldOut(
        tasks=predictor.tasks,
        listings=tuple(answered),
        unreadable=len(listings) - len(answered),
        logits=tuple(
            np.concatenate([np.empty((0, len(task.labels)), np.float32), *(out.logits[t] for out in outputs)])
            for t, task in enumerate(predictor.tasks)
        ),
        attention=np.concatenate(
            [np.empty((0, len(predictor.tasks), 2)), *(out.attention for out in outputs)], dtype=np.float64
        ),
    )


def evidence_groups(listings: Sequence[Listing]) -> NDArray[np.int64]:
    """Return group numbers [n]: listings that share a title or the catalogue's own group, however far apart, share one.

    They are not independent evidence: where a model is right about one, or wrong, it is about the others too.
    """
    if not listings:
        return np.empty(0, np.int64)
    titles = [" ".join((listing.title or f"\x1f{listing.id}").casefold().split()) for listing in listings]
    title, group = (
        np.unique(np.array(keys, dtype=np.str_), return_inverse=True)[1]
        for keys in (titles, [listing.group for listing in listings])
    )
    group = group + 1 + title.max()
    nodes = group.max() + 1
    edges = coo_array((np.ones(len(listings), np.bool_), (title, group)), (nodes, nodes))
    return np.asarray(connected_components(edges, directed=False)[1][title], dtype=np.int64)


def check_attributes(tasks: Sequence[Task], catalogue: Catalogue) -> None:
    """Raise `ConfigError` where the catalogue does not name an attribute that is to be measured on it.

    Also where the model knows none of an attribute's labels: each of its answers would be wrong, whatever it is.
    """
    if missing := [task.name for task in tasks if task.name not in catalogue.config.attributes]:
        raise ConfigError(f"{catalogue.config.path} does not name {', '.join(missing)} among its attributes")
    for task in tasks:
        labels = _held_out_labels(task, catalogue)
        if labels and all(task.encode(label) == OUT_OF_VOCABULARY for label in labels):
            raise ConfigError(
                f"the model knows none of the labels that {catalogue.config.path} has for {task.name}: "
                f"{_listed(sorted(labels))}; it knows {_listed(task.labels)}"
            )


def describe_unknown_labels(tasks: Sequence[Task], catalogue: Catalogue) -> str:
    """Return a line that says how many held-out listings have labels that the model does not know, and which."""
    parts = []
    for task in tasks:
        labels = _held_out_labels(task, catalogue)
        unknown = {label: n for label, n in labels.items() if task.encode(label) == OUT_OF_VOCABULARY}
        if unknown:
            parts.append(f"{task.name} {sum(unknown.values()):,} of {labels.total():,} ({_listed(sorted(unknown))})")
    return f"listings with unknown labels: {'; '.join(parts) or 'none'}"


def _held_out_labels(task: Task, catalogue: Catalogue) -> Counter[str]:
    held_out = (listing for listing in catalogue.listings if listing.part is not Part.TRAIN)
    return Counter(label for listing in held_out if (label := listing.labels.get(task.name)))


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:LABELS_SHOWN]) + (", …" if len(labels) > LABELS_SHOWN else "")


def _takes_part(listing: Listing, situation: Situation) -> bool:
    return (situation is Situation.TITLE or listing.image is not None) and (
        situation is Situation.IMAGE or listing.title is not None
    )


def _prepare(predictor: LogitPredictor, catalogue: Catalogue, listing: Listing, situation: Situation) -> Any:
    """Return the listing ready to be batched, or a `Failure` when its image cannot be read."""
    title = None if situation is Situation.IMAGE else listing.title
    image = None if situation is Situation.TITLE else listing.image
    try:
        return prepare_listing(predictor, catalogue.images, title, image)
    except ModelError as error:
        return Failure(str(error))


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the answers on several parts, which share no title, as one."""
    first_group = np.cumsum([0, *(part.group.max(initial=-1) + 1 for part in parts)])
    return Answers(
        confidence=np.concatenate([part.confidence for part in parts]),
        predicted=np.concatenate([part.predicted for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        group=np.concatenate([part.group + first for part, first in zip(parts, first_group, strict=False)]),
    )


# --- held-out scores on disk -------------------------------------------------------------------------------

ScoresBySituation = Mapping[Situation, Mapping[str, Answers]]


def save_scores(path: Path, answers: ScoresBySituation) -> None:
    """Write answers to an .npz file, for experiments on them (`research/certificates.py`)."""
    columns = {
        f"{situation}/{attribute}/{column}": values
        for situation, attributes in answers.items()
        for attribute, scores in attributes.items()
        for column, values in vars(scores).items()
    }
    with path.open("wb") as file:  # numpy would change the name of a path that does not end in .npz
        np.savez_compressed(file, allow_pickle=False, **columns)


def load_scores(path: Path) -> dict[Situation, dict[str, Answers]]:
    """Read what `save_scores` wrote. Raises `ModelError` when the file is not one of those."""
    columns: dict[tuple[Situation, str], dict[str, Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                situation, rest = key.split("/", 1)
                attribute, column = rest.rsplit("/", 1)
                columns.setdefault((Situation(situation), attribute), {})[column] = file[key]
        answers: dict[Situation, dict[str, Answers]] = {}
        for (situation, attribute), values in columns.items():
            answers.setdefault(situation, {})[attribute] = Answers(**values)
    except (OSError, EOFError, BadZipFile, ValueError, TypeError) as error:
        raise ModelError(f"{path} holds no held-out scores: {error}") from error
    return answers
