"""A bag of words on titles, TF-IDF and logistic regression, and how predictions are scored against labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from model.catalogue.listings import Listing
from model.progress import progress_bar
from model.tasks import UNLABELLED, Task

Labels = NDArray[np.int64]

console = Console()


# --- scoring -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Score:
    """One attribute's `accuracy` over the `rows` of the test part that have a label."""

    accuracy: float
    rows: int
    labels: int


def encode(listings: Sequence[Listing], tasks: Sequence[Task]) -> Labels:
    """Return class indices `[n, T]`, `UNLABELLED` and `OUT_OF_VOCABULARY` included."""
    return np.array(
        [[task.encode(listing.labels.get(task.name)) for task in tasks] for listing in listings],
        dtype=np.int64,
    ).reshape(len(listings), len(tasks))


def score(predicted: Labels, labels: Labels, tasks: Sequence[Task]) -> dict[str, Score]:
    """Score predictions `[n, T]` against labels `[n, T]`; a label out of the vocabulary is never met."""
    scores = {}
    for task, guesses, truth in zip(tasks, predicted.T, labels.T, strict=True):
        labelled = truth != UNLABELLED
        right = (guesses == truth)[labelled]
        scores[task.name] = Score(
            accuracy=float(right.mean()) if right.size else 0.0, rows=right.size, labels=len(task.labels)
        )
    return scores


# --- the title ---------------------------------------------------------------------------------------------


class TitleModel:
    """Logistic regression, one per attribute, on TF-IDF weighted words and pairs of words."""

    def __init__(self, titles: Sequence[str | None], labels: Labels, tasks: Sequence[Task]) -> None:
        """Learn from titles and labels `[n, T]`; rows without a title, or without a known label, are ignored."""
        self.tasks = tasks
        has_title = np.array([title is not None for title in titles], dtype=bool)
        # Words of one letter or digit count ("V neck", "3 piece"). On the validation part, additional character
        # n-grams (2 to 5, within words) gain 0.0 to 0.4 points and take ten times as long; no C from 3 to 100 is
        # better than 10.
        any_length = r"(?u)\b\w+\b"
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=any_length)
        features = self.words.fit_transform([title or "" for title in titles])
        self.models = []
        with progress_bar(console) as bar:
            step = bar.add_task("title", total=len(tasks))
            for column, task in enumerate(tasks):
                bar.update(step, description=f"title: {task.name}")
                rows = has_title & (labels[:, column] >= 0)
                model = LogisticRegression(C=10.0, max_iter=500)
                self.models.append(model.fit(features[rows], labels[rows, column]))
                bar.advance(step)

    def logits(self, titles: Sequence[str | None]) -> list[NDArray[np.float32]]:
        """Return log-probabilities per attribute `[n, C_t]`, minus infinity for labels without a training example."""
        features = self.words.transform([title or "" for title in titles])
        logits = []
        for task, model in zip(self.tasks, self.models, strict=True):
            scores = np.full((len(titles), len(task.labels)), -np.inf, dtype=np.float32)
            scores[:, model.classes_] = model.predict_log_proba(features)
            logits.append(scores)
        return logits
