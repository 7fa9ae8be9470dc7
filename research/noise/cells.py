"""One training under one noise with one remedy, and what is measured of it.

Shapes: n listings of a part, T attributes, C labels of an attribute.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.evaluation.heldout import evidence_groups
from model.inputs.unnoticeable import IMAGE_CHANGES, TITLE_CHANGES, LabelWords
from model.situations import Situation
from model.tasks import UNLABELLED, Task, build_tasks
from model.trust.calibration import fit_temperature, softmax
from model.trust.noise import estimate_noise, suspicion
from research.noise.calibration import by_id, threshold
from research.noise.features import Images
from research.noise.folds import out_of_fold
from research.noise.kinds import KINDS
from research.noise.proxy import Listings, Proxy, Remedy, train_proxy

SERVED = 100
"""The seed of the network that counts as served: what a teacher says, and what churn is measured against."""

NEIGHBOURS = 10

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A training: noise of a kind (none where empty) at a rate, a remedy by its name, and a seed."""

    kind: str
    rate: float
    remedy: str
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        noise = f"{self.kind}-{100 * self.rate:g}" if self.kind else "clean"
        return f"{noise}_{self.remedy}_{self.seed}"


class Study:
    """The catalogue as the study divides it.

    A third of the train part is trained on. The other two thirds train the reference, once: it says which labels are
    similar and which listings hard, of listings that it has not seen. Validation, calibration and test keep the table's
    labels, which have noise of their own.
    """

    def __init__(self, catalogue: Catalogue, images: Images, folder: Path) -> None:
        self.catalogue, self.images, self.folder = catalogue, images, folder
        self._rows = {each.id: row for row, each in enumerate(catalogue.listings)}
        training = sorted(self._readable(Part.TRAIN), key=by_id)
        third = {each.id: hashlib.sha256(f"third/{each.group}".encode()).digest()[0] % 3 == 0 for each in training}
        self.training = [each for each in training if third[each.id]]
        self.others = [each for each in training if not third[each.id]]
        self.tasks, _ = build_tasks(
            [each.labels for each in self.training], catalogue.config.attributes, min_label_count=5
        )
        self.parts = {part: self._readable(part) for part in (Part.VALIDATION, Part.CALIBRATION, Part.TEST)}
        self.words = LabelWords.of(label for task in self.tasks for label in task.labels)
        folder.mkdir(parents=True, exist_ok=True)

    def _readable(self, part: Part) -> list[Listing]:
        """Return the listings of a part of which the proxy has something to read."""
        return [each for each in self.catalogue.part(part) if each.title or self.images.known[self._rows[each.id]]]

    def read(self, listings: Sequence[Listing]) -> Listings:
        """Return what the proxy reads of listings."""
        rows = [self._rows[each.id] for each in listings]
        return Listings(self.images.plain[rows], self.images.known[rows], [each.title for each in listings])

    def labels(self, listings: Sequence[Listing]) -> Ints:
        """Return the table's labels, `[n, T]`."""
        return np.array([[task.encode(each.labels.get(task.name)) for task in self.tasks] for each in listings])

    @cached_property
    def chances(self) -> list[NDArray[np.float32]]:
        """What the reference says of training listings: `[n, C]` for each attribute."""
        path = self.folder / "reference.npz"
        if not path.is_file():
            reference = train_proxy(
                self.read(self.others), self.labels(self.others), self.tasks, Remedy(), seed=0, epochs=4
            )
            answers = reference.answer(self.read(self.training), Situation.IMAGE_AND_TITLE)
            _save(path, {str(t): scores.softmax(dim=1).numpy() for t, scores in enumerate(answers)})
        with np.load(path) as file:
            return [file[str(t)] for t in range(len(self.tasks))]

    def noisy(self, kind: str, rate: float) -> Ints:
        """Return the training labels `[n, T]` with noise of a kind, each attribute's by itself; kind empty: without."""
        labels = self.labels(self.training)
        if not kind:
            return labels
        rng = np.random.default_rng(round(1000 * rate))
        return np.stack([KINDS[kind](labels[:, t], own, rate, rng) for t, own in enumerate(self.chances)], axis=1)

    @cached_property
    def similar(self) -> Ints:
        """The nearest training listings of each, by image and title, `[n, NEIGHBOURS]`."""
        images = F.normalize(self.read(self.training).images, dim=1)
        words = TfidfVectorizer(min_df=2).fit_transform([each.title or "" for each in self.training])
        found = []
        for first in range(0, len(self.training), 500):
            rows = slice(first, first + 500)
            near = images[rows] @ images.T + torch.from_numpy((words[rows] @ words.T).toarray().astype(np.float32))
            near[torch.arange(near.shape[0]), torch.arange(near.shape[0]) + first] = -1
            found.append(near.topk(NEIGHBOURS, dim=1).indices.numpy())
        return np.concatenate(found)

    def neighbours(self, labels: Ints) -> list[Tensor]:
        """Return the share of each label among a listing's neighbours, `[n, C]` for each attribute."""
        found = []
        for t, task in enumerate(self.tasks):
            near = torch.from_numpy(labels[:, t][self.similar])  # [n, NEIGHBOURS]
            votes = F.one_hot(near.clamp(min=0), len(task.labels)).float() * (near >= 0)[..., None]
            found.append((votes.sum(dim=1) + 1e-3) / (votes.sum(dim=(1, 2)) + 1e-3 * len(task.labels))[:, None])
        return found

    def audited(self, labels: Ints, how: str) -> Ints:
        """Return labels without the suspects of an audit by folds: as many as it estimates to be wrong."""
        found = labels.copy()
        chances = out_of_fold(self.read(self.training), [each.group for each in self.training], labels, self.tasks)
        group = evidence_groups(self.training)
        for t, own in enumerate(chances):
            known = np.flatnonzero(labels[:, t] >= 0)
            estimate = estimate_noise(own[known], labels[known, t], group[known])
            share = estimate.share if estimate else 0.0
            worst = known[np.argsort(-suspicion(own[known], labels[known, t]))[: round(share * len(known))]]
            found[worst, t] = UNLABELLED if how == "drop" else own[worst].argmax(axis=1)
        return found

    # --- running a cell ------------------------------------------------------------------------------------

    def run(self, cell: Cell, remedy: Remedy) -> dict[str, Any]:
        """Train and measure, or read what was measured; predictions on the test part are kept beside, for churn."""
        path = self.folder / f"{cell.name}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        began = time.process_time()
        network = self.train(cell, remedy)
        figures, answers = self.measure(network)
        _save(path.with_suffix(".npz"), answers)
        figures["cpu_seconds"] = round(time.process_time() - began, 1)
        path.write_text(json.dumps(figures))
        return figures

    def train(self, cell: Cell, remedy: Remedy) -> Proxy:
        """Train on the third of the train part, under the cell's noise."""
        listings = self.read(self.training)
        labels = self.noisy(cell.kind, cell.rate)
        teacher = self._teacher(cell) if remedy.teacher else None
        neighbours = self.neighbours(labels) if remedy.neighbours else None
        if remedy.audit:
            labels = self.audited(labels, remedy.audit)
        return train_proxy(listings, labels, self.tasks, remedy, seed=cell.seed, neighbours=neighbours, teacher=teacher)

    def _teacher(self, cell: Cell) -> list[Tensor]:
        """Return what the served network says of the training listings: `[n, C]` for each attribute."""
        path = self.folder / f"{Cell(kind=cell.kind, rate=cell.rate, remedy='teacher', seed=SERVED).name}.npz"
        if not path.is_file():
            network = self.train(Cell(kind=cell.kind, rate=cell.rate, remedy="base", seed=SERVED), Remedy())
            answers = network.answer(self.read(self.training), Situation.IMAGE_AND_TITLE)
            _save(path, {str(t): scores.softmax(dim=1).numpy() for t, scores in enumerate(answers)})
        with np.load(path) as file:
            return [torch.from_numpy(file[str(t)]) for t in range(len(self.tasks))]

    # --- measuring -----------------------------------------------------------------------------------------

    def measure(self, network: Proxy) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return the figures, by attribute, and the answers on the test part that churn is computed from."""
        figures: dict[str, Any] = {"accuracy": {}, "coverage": {}, "precision": {}}
        answers: dict[str, NDArray[Any]] = {}
        both = Situation.IMAGE_AND_TITLE
        logits = {part: network.answer(self.read(listings), both) for part, listings in self.parts.items()}
        labels = {part: self.labels(listings) for part, listings in self.parts.items()}
        for t, task in enumerate(self.tasks):
            scores = {part: own[t].numpy() for part, own in logits.items()}
            temperature = fit_temperature(scores[Part.VALIDATION], labels[Part.VALIDATION][:, t])
            minimum = self._threshold(scores[Part.CALIBRATION], labels[Part.CALIBRATION][:, t], temperature)
            chances = softmax(scores[Part.TEST], temperature)
            accepted, predicted = chances.max(axis=1) >= minimum, chances.argmax(axis=1)
            truth = labels[Part.TEST][:, t]
            counted, right = truth != UNLABELLED, predicted == truth
            figures["accuracy"][task.name] = float(right[counted].mean())
            figures["coverage"][task.name] = float(accepted[counted].mean())
            taken = accepted & counted
            figures["precision"][task.name] = float(right[taken].mean()) if taken.any() else None
            answers[f"{task.name}/predicted"], answers[f"{task.name}/accepted"] = predicted.astype(np.int16), accepted
        figures["flips"] = self._flips(network)
        return figures, answers

    def _threshold(self, scores: NDArray[np.float32], labels: Ints, temperature: float) -> float:
        counted = labels != UNLABELLED
        group = evidence_groups(self.parts[Part.CALIBRATION])[counted]
        return threshold(softmax(scores[counted], temperature), labels[counted], group)

    def _flips(self, network: Proxy) -> dict[str, Any]:
        """Return the share of labels that flip under changes of titles, and of images, by situation and attribute."""
        first = self.catalogue.part(Part.TEST)[: self.images.changed.shape[1]]
        readable = {each.id for each in self.parts[Part.TEST]}
        kept = [row for row, each in enumerate(first) if each.id in readable]
        test = [first[row] for row in kept]
        listings = self.read(test)
        plain = {situation: _labels(network.answer(listings, situation)) for situation in Situation}
        flipped: dict[str, list[NDArray[np.float64]]] = {}
        for name, change in TITLE_CHANGES.items():
            titles = [change(each.title, self.words) if each.title else None for each in test]
            given = np.array([new != each.title for new, each in zip(titles, test, strict=True)])
            for situation in (Situation.IMAGE_AND_TITLE, Situation.TITLE):
                other = _labels(network.answer(listings, situation, titles)) != plain[situation]
                flipped.setdefault(f"{situation}/titles", []).append(other[given])
                flipped.setdefault(f"{situation}/{name}", []).append(other[given])
        for number in range(len(IMAGE_CHANGES)):
            changed = Listings(self.images.changed[number][kept], listings.has_image.numpy(), listings.titles)
            for situation in (Situation.IMAGE_AND_TITLE, Situation.IMAGE):
                other = _labels(network.answer(changed, situation)) != plain[situation]
                flipped.setdefault(f"{situation}/images", []).append(other[listings.has_image.numpy()])
        names = [task.name for task in self.tasks]
        joined = {key: np.concatenate(each) for key, each in flipped.items()}
        return {
            key: dict(zip(names, rows.mean(axis=0).tolist(), strict=True)) for key, rows in joined.items() if len(rows)
        }


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _labels(logits: Sequence[Tensor]) -> Ints:
    return np.stack([scores.argmax(dim=1).numpy() for scores in logits], axis=1)


def churn_between(folder: Path, cells: Sequence[Cell], tasks: Sequence[Task]) -> Mapping[str, Mapping[str, float]]:
    """Return, over all pairs of cells, the mean share of test labels that differ, and of labels that both accept."""
    loaded = []
    for cell in cells:
        with np.load(folder / f"{cell.name}.npz") as file:
            loaded.append({key: file[key] for key in file.files})
    found: dict[str, dict[str, float]] = {"labels": {}, "accepted": {}}
    for task in tasks:
        labels, accepted = [], []
        for a in range(len(loaded)):
            for b in range(a):
                other = loaded[a][f"{task.name}/predicted"] != loaded[b][f"{task.name}/predicted"]
                both = loaded[a][f"{task.name}/accepted"] & loaded[b][f"{task.name}/accepted"]
                labels.append(other.mean())
                accepted.append(other[both].mean() if both.any() else np.nan)
        found["labels"][task.name] = float(np.mean(labels))
        found["accepted"][task.name] = float(np.nanmean(accepted)) if not np.isnan(accepted).all() else float("nan")
    return found
