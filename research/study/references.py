"""Rows of the tables that need no training run: majority, bag of words, late fusion of the single modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.bag_of_words import TitleModel
from model.catalogue.listings import Listing
from model.situations import Situation
from model.trust.calibration import softmax
from research.study.answers import Answers, TestPart
from research.study.conditions import UNCORRUPTED, Condition, clean, corrupt_title
from research.study.corruptions import TITLES, another


def majority_answers(part: TestPart, train: Sequence[Listing]) -> dict[str, Answers]:
    """Answer each attribute by how often its labels occur in the train part, whatever the listing."""
    logits = []
    for task in part.tasks:
        labels = np.array([task.encode(listing.labels.get(task.name)) for listing in train])
        counts = np.bincount(labels[labels >= 0], minlength=len(task.labels))
        logits.append(np.tile(np.log(counts / counts.sum()), (len(part.listings), 1)).astype(np.float32))
    answers = Answers(logits=tuple(logits), attention=_no_attention(part, len(part.listings)))
    return {clean(situation): answers for situation in Situation}


def title_answers(part: TestPart, train: Sequence[Listing], subset: NDArray[np.int64]) -> dict[str, Answers]:
    """Answer by the bag of words, for corrupted titles too."""
    labels = np.array([[task.encode(listing.labels.get(task.name)) for task in part.tasks] for listing in train])
    model = TitleModel([listing.title for listing in train], labels, part.tasks)

    def answer(titles: Sequence[str | None]) -> Answers:
        return Answers(logits=tuple(model.logits(titles)), attention=_no_attention(part, len(titles)))

    whole = answer([listing.title for listing in part.listings])
    listings = [part.listings[row] for row in subset]
    uncorrupted = answer([listing.title for listing in listings])
    answers = {
        clean(Situation.IMAGE_AND_TITLE): whole,
        clean(Situation.TITLE): whole,
        _both(UNCORRUPTED, 0.0): uncorrupted,
    }
    for corruption in TITLES:
        for strength in corruption.strengths:
            given = [corrupt_title(corruption, x, another(x, part.listings), strength) for x in listings]
            answers[_both(corruption.name, strength)] = answer(given)
    return answers


def late_fusion(
    part: TestPart, subset: NDArray[np.int64], image: Mapping[str, Answers], title: Mapping[str, Answers]
) -> dict[str, Answers]:
    """Average the probabilities of the single-modality networks.

    A condition under which one of them has not been measured leaves its modality uncorrupted; where the title has no
    words left, the image's probabilities stand alone.
    """
    empty = _titles_without_words(part, subset)
    fused = {}
    for key in [*image, *(key for key in title if key not in image)]:
        situation, corruption, _ = key.split("/")
        if situation == Situation.IMAGE_AND_TITLE:
            uncorrupted = key if corruption == "clean" else _both(UNCORRUPTED, 0.0)
            of_image, of_title = (answers.get(key, answers[uncorrupted]) for answers in (image, title))
            fused[key] = _average(of_image, of_title, empty.get(key))
    return fused | {
        clean(Situation.IMAGE): image[clean(Situation.IMAGE)],
        clean(Situation.TITLE): title[clean(Situation.TITLE)],
    }


def _titles_without_words(part: TestPart, subset: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    listings = [part.listings[row] for row in subset]
    return {
        _both(corruption.name, strength): np.array(
            [not corrupt_title(corruption, x, another(x, part.listings), strength) for x in listings]
        )
        for corruption in TITLES
        for strength in corruption.strengths
    }


def _average(image: Answers, title: Answers, empty: NDArray[np.bool_] | None) -> Answers:
    share = np.full(len(title.attention), 0.5) if empty is None else np.where(empty, 0.0, 0.5)
    logits = []
    for from_image, from_title in zip(image.logits, title.logits, strict=True):
        mixed = (1 - share)[:, None] * softmax(from_image, 1.0) + share[:, None] * softmax(from_title, 1.0)
        logits.append(np.log(np.maximum(mixed, 1e-30)).astype(np.float32))
    return Answers(logits=tuple(logits), attention=image.attention)


def _both(corruption: str, strength: float) -> str:
    return Condition(situation=Situation.IMAGE_AND_TITLE, corruption=corruption, strength=strength).key


def _no_attention(part: TestPart, n: int) -> NDArray[np.float32]:
    return np.zeros((n, len(part.tasks), 2), dtype=np.float32)
