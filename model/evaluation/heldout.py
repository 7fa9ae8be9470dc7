"""What a model answers on a held-out part of a catalogue: `calibrate` and `evaluate` are based on this.

Shapes: n listings, T attributes, C_t labels of attribute t, B listings of a batch.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from rich.console import Console
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.catalogue.corrections import Corrections
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.reviewed import NONE_FITS, SKIPPED
from model.catalogue.splits import Part
from model.errors import ConfigError, ModelError
from model.evaluation.scores import labelled
from model.inference.calibrator import BatchRow, Calibrator
from model.inference.predictions import RawPredictor, SituationOutputs
from model.inference.stream import Failure, prepare_listing, stream
from model.progress import progress_bar
from model.situations import Situation
from model.tasks import OUT_OF_VOCABULARY, Task, encode_row, multi_valued_places
from model.trust.applicability import Applicability
from model.trust.calibration import Calibration, confidences_of, softmax
from model.trust.gate import OPEN_GATE, Evidence, Gate, Judgement

Ints = NDArray[np.int64]

Temperatures = Mapping[Situation, Mapping[str, float]]
"""Of each attribute in each situation."""

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
    passed: NDArray[np.bool_]
    """Whether the gate lets the threshold decide, [n]: where it doesn't, nothing is accepted."""

    @property
    def where_passed(self) -> Answers:
        """The answers on the listings that the gate lets pass: what certificates speak of."""
        return dataclasses.replace(self, **{name: values[self.passed] for name, values in vars(self).items()})

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted label is the true one, [n]."""
        return np.asarray(self.predicted == self.labels)


@dataclass(frozen=True, kw_only=True)
class PairAnswers(Answers):
    """The calibrated answers to a multi-valued attribute: each of the n rows is a (listing, label) pair.

    Every labelled listing has a row for each label of the vocabulary, one after the other. `predicted` is the row's
    label, and so is `labels` where the listing has it: else `labels` is OUT_OF_VOCABULARY.
    """

    listing: NDArray[np.int64]
    """The row's listing, [n]: numbered from 0."""
    unknown: NDArray[np.int64]
    """How many labels outside the vocabulary the listing has, at its first row, else 0 [n]."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A part's listings as the model sees them in one situation."""

    tasks: tuple[Task, ...]
    listings: tuple[Listing, ...]
    """Those that have what the situation asks for and could be read, n of them."""
    places: NDArray[np.int64]
    """Their places among all listings that were collected, ascending [n]."""
    unreadable: int
    """Listings left out because their image could not be read."""
    logits: tuple[NDArray[np.float32], ...]
    """Per attribute [n, C_t], before calibration."""
    attention: NDArray[np.float64]
    """Weights of image and text, [n, T, 2]."""
    embeddings: NDArray[np.float32]
    """Aggregated embeddings of image and text, [n, 2, D]."""
    titles: tuple[str | None, ...]
    """n of them, None where the situation has none."""

    def labels(self, task: Task) -> NDArray[np.int64]:
        """Return the true labels: class indices [n], or the columns of a multi-valued attribute [n, C], as
        `model.tasks.encode_row` gives them.
        """
        rows = [encode_row([task], listing.labels, listing.label_sets) for listing in self.listings]
        if task.multi_valued:
            return np.array(rows, dtype=np.int64).reshape(len(rows), len(task.labels))
        return np.array(rows, dtype=np.int64).reshape(len(rows))

    def logits_of(self, task: Task) -> NDArray[np.float32]:
        """Return the logits [n, C_t] of one attribute."""
        return self.logits[self.tasks.index(task)]

    def evidence(self, temperatures: Mapping[str, float], rows: Ints) -> Evidence:
        """Return what the gate judges the listings at `rows` by; temperatures: of each attribute."""
        return Evidence.of(
            self.embeddings[rows],
            [logits[rows] for logits in self.logits],
            [temperatures[task.name] for task in self.tasks],
            [self.titles[row] for row in rows.tolist()],
            multi_valued_places(self.tasks),
        )

    def answers(self, task: Task, temperature: float, passed: NDArray[np.bool_]) -> Answers:
        """Return the answers on the listings that have a label for this attribute; passed: the gate's verdicts [n].

        `PairAnswers` for a multi-valued attribute.
        """
        labels = self.labels(task)
        if task.multi_valued:
            return self._pair_answers(task, temperature, passed, labels)
        counted = labelled(labels)
        probabilities = softmax(self.logits_of(task)[counted], temperature)
        return Answers(
            confidence=probabilities.max(axis=1),
            predicted=probabilities.argmax(axis=1),
            labels=labels[counted],
            group=self.group[counted],
            passed=passed[counted],
        )

    def _pair_answers(
        self, task: Task, temperature: float, passed: NDArray[np.bool_], labels: NDArray[np.int64]
    ) -> PairAnswers:
        counted = np.flatnonzero(labelled(labels[:, 0]))
        n, size = len(counted), len(task.labels)
        unknown = np.zeros((n, size), np.int64)
        unknown[:, 0] = [task.encode_set(self.listings[row].label_sets[task.name])[1] for row in counted.tolist()]
        label = np.tile(np.arange(size), n)
        return PairAnswers(
            confidence=confidences_of(self.logits_of(task)[counted], temperature, multi_valued=True).ravel(),
            predicted=label,
            labels=np.where(labels[counted].ravel() == 1, label, OUT_OF_VOCABULARY),
            group=np.repeat(self.group[counted], size),
            passed=np.repeat(passed[counted], size),
            listing=np.repeat(np.arange(n), size),
            unknown=unknown.ravel(),
        )

    def as_in_table(self, corrections: Corrections) -> HeldOut:
        """Return the same answers beside the labels that the table has, without what people have corrected."""
        return dataclasses.replace(self, listings=corrections.undone(self.listings))

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """Group numbers of `evidence_groups`, [n]."""
        return evidence_groups(self.listings)


def collect(
    predictor: RawPredictor,
    catalogue: Catalogue,
    listings: Sequence[Listing],
    *,
    console: Console,
    what: str,
    batch_size: int = 64,
) -> dict[Situation, HeldOut]:
    """Run the predictor over listings, in every situation that each can be answered in; `what` names them in the bar.

    One whose image cannot be read takes part by its title alone, and is counted.
    """
    unreadable: set[str] = set()
    answered: list[Listing] = []
    parts: dict[Situation, list[tuple[Ints, SituationOutputs]]] = {situation: [] for situation in Situation}

    def prepare(listing: Listing) -> Any:
        try:
            return prepare_listing(predictor, catalogue.images, listing.title, listing.image)
        except ModelError as error:
            unreadable.add(listing.id)
            return predictor.prepare(listing.title, None) if listing.title else Failure(str(error))

    def compute(prepared: list[Any]) -> Mapping[Situation, SituationOutputs]:
        return predictor.outputs(predictor.collate(prepared))

    with progress_bar(console) as progress:
        bar = progress.add_task(what, total=len(listings))
        for batch in stream(listings, prepare, compute, batch_size=batch_size):
            for situation, outputs in (batch.output or {}).items():
                parts[situation].append((len(answered) + outputs.rows, outputs))
            answered += batch.computed
            progress.advance(bar, len(batch.items))
    failed = [listing for listing in listings if listing.id in unreadable]
    return {situation: _held_out(predictor, situation, answered, found, failed) for situation, found in parts.items()}


def _held_out(
    predictor: RawPredictor,
    situation: Situation,
    listings: Sequence[Listing],
    parts: Sequence[tuple[Ints, SituationOutputs]],
    failed: Sequence[Listing],
) -> HeldOut:
    """Put together what was computed in one situation; `failed` are the listings whose image cannot be read."""
    places = np.concatenate([np.empty(0, np.int64), *(places for places, _ in parts)])
    raw = [outputs.raw for _, outputs in parts]
    tasks = predictor.tasks
    return HeldOut(
        tasks=tasks,
        listings=tuple(listings[place] for place in places),
        places=places,
        unreadable=sum(situation.uses_image and _takes_part(listing, situation) for listing in failed),
        logits=tuple(
            np.concatenate([np.empty((0, len(task.labels)), np.float32), *(each.logits[t] for each in raw)])
            for t, task in enumerate(tasks)
        ),
        attention=np.concatenate([np.empty((0, len(tasks), 2)), *(each.attention for each in raw)], dtype=np.float64),
        embeddings=np.concatenate([each.embeddings for each in raw]) if raw else np.empty((0, 2, 0), np.float32),
        titles=tuple(title for _, outputs in parts for title in outputs.titles),
    )


def evidence(
    held_out: Mapping[Situation, HeldOut], situation: Situation, temperatures: Temperatures
) -> dict[Situation, Evidence]:
    """Return what the gate needs of the listings of `situation`: their evidence in each one they can be answered in."""
    listings = held_out[situation]
    found = {}
    for each in situation.within:
        rows = np.searchsorted(held_out[each].places, listings.places)
        found[each] = held_out[each].evidence(temperatures[each], rows)
    return found


def judgements(
    gate: Gate | None, held_out: Mapping[Situation, HeldOut], temperatures: Temperatures
) -> dict[Situation, Judgement]:
    """Put the listings of every situation through the gate, as serving does."""
    return {
        situation: (gate if gate and listings.listings else OPEN_GATE).judge(
            situation, evidence(held_out, situation, temperatures)
        )
        for situation, listings in held_out.items()
    }


def not_applicable(
    applicability: Applicability | None,
    calibration: Calibration | None,
    held_out: Mapping[Situation, HeldOut],
    judged: Mapping[Situation, Judgement],
    temperatures: Temperatures,
) -> dict[Situation, NDArray[np.bool_]]:
    """Return which attributes are not applicable to the listings of every situation, `[n, T]`, as serving judges it.

    Without a `calibration`: which ones could be, whatever the confidence from which the product type is accepted.
    """
    if applicability is None:
        return {situation: np.zeros_like(each.disagree) for situation, each in judged.items()}
    excluded = {}
    for situation, listings in held_out.items():
        task = applicability.task(listings.tasks)
        t = listings.tasks.index(task)
        confidences = confidences_of(listings.logits[t], temperatures[situation][task.name], multi_valued=False)
        minimum = np.zeros(len(task.labels))
        if calibration is not None:
            of_type = calibration.situations[situation][task.name]
            minimum = applicability.minimum_confidence(listings.tasks, of_type)
        excluded[situation] = applicability.excludes(
            listings.tasks, confidences, minimum, judged[situation].passed[:, t]
        )
    return excluded


def all_answers(
    held_out: Mapping[Situation, HeldOut],
    judged: Mapping[Situation, Judgement],
    temperatures: Temperatures,
    excluded: Mapping[Situation, NDArray[np.bool_]],
) -> dict[Situation, dict[str, Answers]]:
    """Return every attribute's answers in every situation, with the verdicts of the gate and of `not_applicable`.

    A listing whose title is ignored is answered as an image alone: beside its title it counts as not accepted, and it
    is evidence for that situation only.
    """
    answers = {}
    for situation, listings in held_out.items():
        passed = judged[situation].passed & ~judged[situation].title_ignored[:, None] & ~excluded[situation]
        answers[situation] = {
            task.name: listings.answers(task, temperatures[situation][task.name], passed[:, t])
            for t, task in enumerate(listings.tasks)
        }
    return answers


def answer_every_situation(
    predictor: RawPredictor, calibrator: Calibrator, inputs: Sequence[tuple[str | None, Image | None]]
) -> Iterator[tuple[Situation, int, BatchRow]]:
    """Answer a batch of titles and images as they are given, and each modality of them alone.

    Yields the situation, the place in `inputs`, and the answer; the towers run once.
    """
    items = [predictor.prepare(title, image) for title, image in inputs]
    outputs = predictor.outputs(predictor.collate(items))
    own = [Situation.of(image=image is not None, title=title is not None) for title, image in inputs]
    for situation, found in outputs.items():
        places = set(found.rows.tolist())
        given = [situation if row in places else whole for row, whole in enumerate(own)]
        answers = calibrator.predictions(given, outputs, [()] * len(items))
        yield from ((situation, row, answers[row]) for row in sorted(places))


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
        labels = [label for label in _held_out_labels(task, catalogue) if label not in (NONE_FITS, SKIPPED)]
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
    if task.multi_valued:
        return Counter(label for listing in held_out for label in listing.label_sets.get(task.name, ()))
    return Counter(label for listing in held_out if (label := listing.labels.get(task.name)))


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:LABELS_SHOWN]) + (", …" if len(labels) > LABELS_SHOWN else "")


def _takes_part(listing: Listing, situation: Situation) -> bool:
    return (listing.image is not None or not situation.uses_image) and (
        listing.title is not None or not situation.uses_title
    )


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the answers on several parts, which share no title, as one."""
    columns = {name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])}
    for name in {"group", "listing"} & columns.keys():  # which are numbered in each part from 0
        first = np.cumsum([0, *(vars(part)[name].max(initial=-1) + 1 for part in parts)])
        numbers = [vars(part)[name] + start for part, start in zip(parts, first, strict=False)]
        columns[name] = np.concatenate(numbers)
    return type(parts[0])(**columns)


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
            kind = PairAnswers if "listing" in values else Answers
            answers.setdefault(situation, {})[attribute] = kind(**values)
    except (OSError, EOFError, BadZipFile, ValueError, TypeError) as error:
        raise ModelError(f"{path} holds no held-out scores: {error}") from error
    return answers
