"""Answers of proxies that have not seen the listing: trained by folds, as `cma-clip audit --folds` trains networks.

Shapes: n listings, T attributes, C labels of an attribute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from model.catalogue.listings import Catalogue, Listing
from model.evaluation.heldout import evidence_groups
from model.situations import Situation
from model.tasks import Task, build_tasks
from model.trust.noise import estimate_noise, suspicion
from research.noise.features import Images
from research.noise.kinds import KINDS
from research.noise.proxy import Listings, Remedy, train_proxy

FOLDS = 3

EPOCHS = 5

FIRST = 0.05
"""Precision is that of the first 5 % of the ranking."""

PLANTED = 0.1

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


def out_of_fold(listings: Listings, groups: Sequence[object], labels: Ints, tasks: Sequence[Task]) -> list[Floats]:
    """Return for each attribute what a network says that was trained without the listing's fold, `[n, C]`.

    Listings of one group are in one fold. labels: `[n, T]`.
    """
    fold = np.array([hashlib.sha256(f"fold/{group}".encode()).digest()[0] % FOLDS for group in groups])
    chances = [np.zeros((len(labels), len(task.labels)), np.float32) for task in tasks]
    for number in range(FOLDS):
        seen, unseen = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        network = train_proxy(listings.rows(seen), labels[seen], tasks, Remedy(), seed=number, epochs=EPOCHS)
        answers = network.answer(listings.rows(unseen), Situation.IMAGE_AND_TITLE)
        for own, scores in zip(chances, answers, strict=True):
            own[unseen] = scores.softmax(dim=1).numpy()
    return chances


def audit_table(catalogue: Catalogue, images: Images, folder: Path) -> dict[str, Any]:
    """Audit the whole table by folds, as it is and with noise between similar labels; return figures by attribute.

    The answers to the table as it is are kept in `folder`, for a look at the suspects.
    """
    listings: Sequence[Listing] = catalogue.listings
    tasks, _ = build_tasks([each.labels for each in listings], catalogue.config.attributes, min_label_count=20)
    labels = np.array([[task.encode(each.labels.get(task.name)) for task in tasks] for each in listings])
    group = evidence_groups(listings)
    read = Listings(images.plain, images.known, [each.title for each in listings])
    path = folder / "table.npz"
    if not path.is_file():
        found = out_of_fold(read, group.tolist(), labels, tasks)
        np.savez_compressed(path, allow_pickle=False, **{str(t): each for t, each in enumerate(found)})
    with np.load(path) as file:
        chances = [file[str(t)] for t in range(len(tasks))]
    rng = np.random.default_rng(0)
    noisy = np.stack([KINDS["similar"](labels[:, t], own, PLANTED, rng) for t, own in enumerate(chances)], axis=1)
    after = out_of_fold(read, group.tolist(), noisy, tasks)
    return {task.name: _figures(chances[t], labels[:, t], after[t], noisy[:, t], group) for t, task in enumerate(tasks)}


def _figures(before: Floats, labels: Ints, after: Floats, noisy: Ints, group: Ints) -> dict[str, Any]:
    known = labels >= 0
    without, with_noise = (
        estimate_noise(chances[known], own[known], group[known]) for chances, own in ((before, labels), (after, noisy))
    )
    scores, wrong = suspicion(after[known], noisy[known]), noisy[known] != labels[known]
    assert without is not None
    assert with_noise is not None
    return {
        "share": without.share,
        "interval": list(without.interval),
        "planted": float(wrong.mean()),
        "share_with_planted": with_noise.share,
        **ranking(scores, wrong),
    }


def ranking(scores: NDArray[np.float64], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """Return how well scores tell wrong labels: the area under the ROC curve, and the precision of the first."""
    ranks, positive = rankdata(scores), int(wrong.sum())
    area = (ranks[wrong].sum() - positive * (positive + 1) / 2) / (positive * (len(wrong) - positive))
    first = np.argsort(-scores)[: round(FIRST * len(scores))]
    return {"auroc": float(area), "precision_of_first": float(wrong[first].mean())}
