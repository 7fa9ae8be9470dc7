"""Familiarity: is a listing of the kind that the certificates speak of? Numpy alone, for fitting and serving alike.

A certificate holds for listings like those that it was computed on. A `ScopeGate`, one for each situation, scores how
untypical a listing is from what the network computes anyway, and turns the score into a conformal p-value: its
*familiarity*. Below `ScopeGate.level` a listing is unfamiliar, and nothing of it is accepted.

**What is fitted on what.** The references that distances are measured to, the direction and the weights of the measures
are from the train part and from made-up outliers (`model.inputs.outliers`); the scores that a p-value compares with are
from the validation part, one listing for each group. Certificates, from the calibration part, then meet a gate that has
seen none of their listings.

    words = KnownWords.of(train_titles)                             # one title for each group
    gate = fit_scope(train, outliers, validation)                   # each a `Features`, made by `features_of`
    familiarity = gate.p_values(features_of(situation, embeddings, logits, words.unseen(titles)))
    unfamiliar = familiarity < gate.level

`model.trust.conformal.one_per_group` chooses the listings to fit on. `ScopeGates.arrays` and `ScopeGates.options` are
what to save, and `ScopeGates.load` reads them back: the scores stay the same, bit for bit.

**The score** is a weighted sum of four `MEASURES`, none of which tells enough alone (`benchmarks/familiarity.py`).

**Why scores don't depend on the batch.** A sum of floats depends on its order, and the order in a matrix product on the
matrix's shape. Embeddings are rounded to whole numbers so small that every partial sum of their products stays below
2^24: a float32 holds it exactly, so any order gives the same result. The rest is computed row by row in float64.

Shapes: n listings, m modalities that the situation has, D fusion width, R references, C_t labels of attribute t, F
measures.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import CheckpointError
from model.situations import Situation
from model.trust.conformal import p_values, usable_level

SCOPE_LEVEL = 0.01
"""The share of in-scope listings that a gate refuses."""

REFERENCES = 3_000
"""Train listings that distances are measured to, at most: at a width of 256 they take 6 MB on disk for all situations,
and up to 0.4 ms of a listing's time."""

NEIGHBOURS = 3
"""References that a distance is the mean over. One alone could be an odd listing of the train part."""

NEAREST = 1e-4
"""Smaller distances count as this one: what rounding leaves of a reference's distance to itself."""

LENGTH = 4_000.0
"""The length that embeddings are scaled to before they are rounded. By the Cauchy-Schwarz inequality no partial sum of
the product of two exceeds the product of their lengths. Rounding adds at most sqrt(d) / 2 to a length, and
(4,000 + sqrt(d) / 2)^2 < 2^24 up to d = 36,000."""

RIDGE = 1e-2
"""Weight of the squares of the measures' weights when they are fitted, so that perfect separation stays finite."""

NEWTON_STEPS = 100

_MODALITIES = {Situation.IMAGE_AND_TITLE: [0, 1], Situation.IMAGE: [0], Situation.TITLE: [1]}


# --- words -------------------------------------------------------------------------------------------------


def normalised_words(title: str) -> list[str]:
    """Return a title's words without regard to case, width of characters and punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", title).casefold())


@dataclass(frozen=True)
class KnownWords:
    """The words that titles of the train part repeat."""

    hashes: NDArray[np.uint32]
    """32 bits of a hash of each, ascending: of 100,000 words, one unknown word in 40,000 is taken for one of them."""

    @classmethod
    def of(cls, titles: Iterable[str]) -> KnownWords:
        """Collect the words that at least two titles have. Give one of each group: copies count once."""
        titles_with = Counter(word for title in titles for word in set(normalised_words(title)))
        repeated = [_hash(word) for word, count in titles_with.items() if count >= 2]
        return cls(np.unique(np.array(repeated, dtype=np.uint32)))

    def unseen(self, titles: Sequence[str | None]) -> NDArray[np.float64]:
        """Return the share of each title's words that are not known, `[n]`: 1 for one without a word, 0 for None."""
        return np.array([0.0 if title is None else self._unseen(title) for title in titles])

    def _unseen(self, title: str) -> float:
        words = np.array([_hash(word) for word in normalised_words(title)], dtype=np.uint32)
        if not words.size:
            return 1.0
        if not self.hashes.size:
            return 1.0
        found = self.hashes[np.searchsorted(self.hashes, words).clip(max=self.hashes.size - 1)] == words
        return 1.0 - float(found.mean())


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest())


# --- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a gate looks at, of n listings of one situation."""

    embeddings: NDArray[np.float32]
    """Those of the m modalities that the situation has, `[n, m, D]`."""
    logits: tuple[NDArray[np.float32], ...]
    """Per attribute `[n, C_t]`, before calibration."""
    unseen: NDArray[np.float64]
    """The share of the title's words that are unknown, `[n]`; 0 without a title."""
    multi_valued: frozenset[int] = frozenset()
    """The places of the attributes whose labels are independent."""

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: NDArray[np.integer[Any]] | slice) -> Features:
        """Return the listings at `rows`."""
        return Features(
            embeddings=self.embeddings[rows],
            logits=tuple(logits[rows] for logits in self.logits),
            unseen=self.unseen[rows],
            multi_valued=self.multi_valued,
        )


def features_of(
    situation: Situation,
    embeddings: NDArray[np.float32],
    logits: Sequence[NDArray[np.float32]],
    unseen: NDArray[np.float64],
    multi_valued: frozenset[int] = frozenset(),
) -> Features:
    """Return the features of listings that share a situation, from the embeddings of all modalities, `[n, 2, D]`."""
    return Features(
        embeddings=embeddings[:, _MODALITIES[situation]],
        logits=tuple(logits),
        unseen=unseen,
        multi_valued=multi_valued,
    )


def joined_features(parts: Sequence[Features]) -> Features:
    """Return the listings of several parts, one after the other."""
    return Features(
        embeddings=np.concatenate([each.embeddings for each in parts]),
        logits=tuple(np.concatenate(columns) for columns in zip(*(each.logits for each in parts), strict=True)),
        unseen=np.concatenate([each.unseen for each in parts]),
        multi_valued=parts[0].multi_valued,
    )


def quantised(embeddings: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return embeddings `[n, m, D]` as whole numbers `[n, m D]`: all modalities together scaled to `LENGTH`."""
    n, modalities, width = embeddings.shape
    flat = np.ascontiguousarray(embeddings.reshape(n, modalities * width), dtype=np.float64)
    length = np.sqrt((flat * flat).sum(axis=1, keepdims=True))
    return np.asarray(np.rint(flat * (LENGTH / np.maximum(length, 1e-12))), dtype=np.int16)


def distances(rows: NDArray[np.int16], references: NDArray[np.float32], neighbours: int) -> NDArray[np.float64]:
    """Return the mean cosine distance `[n]` of quantised `rows` `[n, d]` to their nearest `references` `[R, d]`."""
    products = rows.astype(np.float32) @ references.T  # [n, R], exact: see `LENGTH`
    k = min(neighbours, len(references))
    nearest = np.partition(products, len(references) - k, axis=1)[:, len(references) - k :]
    return np.asarray(1.0 - nearest.astype(np.int64).sum(axis=1) / (k * LENGTH * LENGTH))


def doubt(logits: Sequence[NDArray[np.float32]], multi_valued: Collection[int] = ()) -> NDArray[np.float64]:
    """Return 1 - the mean over attributes of the highest probability, `[n]`, at temperature 1.

    That of a multi-valued attribute is the probability of its likeliest label set.
    """
    total = np.zeros(len(logits[0]))
    for t, each in enumerate(logits):  # one after the other: the order of a sum over attributes doesn't depend on n
        scores = np.ascontiguousarray(each, dtype=np.float64)
        if t in multi_valued:
            total += (1 / (1 + np.exp(-np.abs(scores)))).prod(axis=1)
        else:
            total += 1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
    return 1 - total / len(logits)


# --- the gate of one situation -----------------------------------------------------------------------------

MEASURES = ("distance", "direction", "doubt", "unseen_words")
"""What a score is a weighted sum of; each is higher for what is less typical.

distance: log of the mean cosine distance to the `NEIGHBOURS` nearest references. direction: the embedding along the
direction that best tells made-up outliers from train listings. doubt: 1 - the mean confidence over attributes.
unseen_words: how much more than half of the title's words are unknown; rare words alone make no title unusual.
"""


@dataclass(frozen=True, kw_only=True)
class ScopeGate:
    """Scores how untypical a listing of one situation is, and tells its familiarity."""

    references: NDArray[np.int16]
    """Quantised embeddings of train listings, `[R, d]`."""
    direction: NDArray[np.float64]
    """Towards outliers, among quantised embeddings, `[d]`."""
    weights: NDArray[np.float64]
    """Of `MEASURES`, none negative, `[F]`."""
    scores: NDArray[np.float64]
    """Of the validation listings that p-values compare with, ascending."""
    level: float
    """The familiarity below which a listing is unfamiliar."""

    @cached_property
    def _references(self) -> NDArray[np.float32]:
        return self.references.astype(np.float32)

    def score(self, features: Features) -> NDArray[np.float64]:
        """Return how untypical each listing is, `[n]`; the same alone and in any batch, bit for bit."""
        return _weighted(measures(features, self._references, self.direction), self.weights)

    def p_values(self, features: Features) -> NDArray[np.float64]:
        """Return each listing's familiarity, `[n]`: the share of validation listings that are as typical or less."""
        return p_values(self.scores, self.score(features))


def measures(
    features: Features, references: NDArray[np.float32], direction: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Return each of `MEASURES`, `[n]`, by quantised references `[R, d]` and a direction `[d]`."""
    rows = quantised(features.embeddings)
    return (
        np.log(np.maximum(distances(rows, references, NEIGHBOURS), NEAREST)),
        (rows * direction).sum(axis=1),
        doubt(features.logits, features.multi_valued),
        np.maximum(features.unseen - 0.5, 0.0),
    )


def _weighted(columns: Sequence[NDArray[np.float64]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros(len(columns[0]))
    for column, weight in zip(columns, weights.tolist(), strict=True):
        total = total + weight * column
    return total


# --- fitting -----------------------------------------------------------------------------------------------


def fit_scope(train: Features, outliers: Features, validation: Features, *, level: float = SCOPE_LEVEL) -> ScopeGate:
    """Fit the gate of one situation.

    train: listings of the train part, one for each group, in an order that means nothing (`one_per_group`). The first
    two thirds, at most `REFERENCES`, become references; the others are what is typical when the measures are weighed.
    outliers: what is not. validation: what p-values compare with, one listing for each group.
    Raises `ValueError` where one of them has too few listings.
    """
    if len(train) < 2 or not len(outliers) or not len(validation):
        raise ValueError("a gate is fitted on two train listings, one outlier and one validation listing at least")
    if not 0 < level < 1:
        raise ValueError(f"the scope level must lie between 0 and 1, not {level}")
    split = min(REFERENCES, -(-2 * len(train) // 3), len(train) - 1)
    half = -(-len(outliers) // 2)  # the direction and the weights are fitted on different outliers
    references, towards = quantised(train[:split].embeddings), quantised(outliers[:half].embeddings)
    direction = fit_direction(references, towards)
    exact = references.astype(np.float32)
    weights = fit_weights(
        measures(train[split:], exact, direction), measures(outliers[len(outliers) - half :], exact, direction)
    )
    return ScopeGate(
        references=references,
        direction=direction,
        weights=weights,
        scores=np.sort(_weighted(measures(validation, exact, direction), weights)),
        level=usable_level(level, len(validation)),
    )


def fit_direction(inside: NDArray[np.int16], outside: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the direction `[d]` that tells quantised embeddings of outliers from typical ones: outlier exposure
    (Hendrycks et al., arXiv:1812.04606), linear.
    """
    rows = np.concatenate([inside, outside]).astype(np.float64)
    spread = np.maximum(inside.std(axis=0), 1.0)
    scaled = (rows - inside.mean(axis=0)) / spread
    return np.asarray(_logistic_regression(scaled, *_classes(len(inside), len(outside))) / spread)


def fit_weights(typical: Sequence[NDArray[np.float64]], outliers: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return non-negative weights `[F]` that tell outliers from typical listings, by logistic regression.

    Typical listings and outliers count the same as a whole. A measure whose weight comes out negative is left out and
    the others are fitted again: being more unusual in one respect must not make a listing more familiar.
    """
    inside, outside = np.stack(typical, axis=1), np.stack(outliers, axis=1)
    rows = np.concatenate([inside, outside])
    is_outlier, share = _classes(len(inside), len(outside))
    spread = np.maximum(rows.std(axis=0), 1e-6)
    rows = (rows - inside.mean(axis=0)) / spread
    used = np.flatnonzero(np.ptp(rows, axis=0) > 0)
    weights = np.zeros(rows.shape[1])
    while used.size:
        fitted = _logistic_regression(rows[:, used], is_outlier, share)
        if (fitted >= 0).all():
            weights[used] = fitted / spread[used]
            break
        used = np.delete(used, fitted.argmin())
    return weights


def _classes(inside: int, outside: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return targets (1: outlier) and weights of typical listings, then of outliers; the classes weigh the same."""
    sizes = [inside, outside]
    return np.repeat([0.0, 1.0], sizes), np.repeat([0.5 / inside, 0.5 / outside], sizes)


def _logistic_regression(
    rows: NDArray[np.float64], targets: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights `[F]`, without the intercept, of a ridge-penalised logistic regression, by Newton's method."""
    inputs = np.column_stack([rows, np.ones(len(rows))])
    penalty = np.append(np.full(rows.shape[1], RIDGE), 0.0)
    weights = np.zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        chance = 0.5 * (1 + np.tanh(0.5 * (inputs @ weights)))
        slope = inputs.T @ (shares * (chance - targets)) + penalty * weights
        curvature = (inputs * (shares * chance * (1 - chance))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), slope)
        weights = weights - step * min(1.0, 4.0 / np.abs(step).max(initial=1e-12))  # far steps may overshoot
        if np.abs(step).max() < 1e-9:
            break
    return weights[:-1]


# --- all situations, and what is saved ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScopeGates:
    """The gate of each situation that could be fitted, and the words that they share."""

    words: KnownWords
    gates: Mapping[Situation, ScopeGate]

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved as arrays, by name."""
        saved: dict[str, NDArray[Any]] = {"words": self.words.hashes}
        for situation, gate in self.gates.items():
            saved |= {f"{situation}.{name}": getattr(gate, name) for name in _DTYPES}
        return saved

    @property
    def options(self) -> dict[str, Any]:
        """What is saved beside them, as JSON can hold it."""
        levels = {str(situation): gate.level for situation, gate in self.gates.items()}
        return {"format": FORMAT, "measures": list(MEASURES), "levels": levels}

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> ScopeGates:
        """Read what `arrays` and `options` hold; raise `CheckpointError` naming what is wrong in it."""
        if options.get("format") != FORMAT or options.get("measures") != list(MEASURES):
            raise CheckpointError(f"scope: must be of format {FORMAT}, with the measures {', '.join(MEASURES)}")
        words = _array(arrays, "words", np.dtype(np.uint32), 1)
        levels = options.get("levels")
        if not isinstance(levels, Mapping):
            raise CheckpointError("scope: levels are missing")
        return cls(
            words=KnownWords(words), gates={each: _gate(arrays, levels, each) for each in Situation if each in levels}
        )


FORMAT = 1

_DTYPES: Mapping[str, tuple[np.dtype[Any], int]] = {
    "references": (np.dtype(np.int16), 2),
    "direction": (np.dtype(np.float64), 1),
    "weights": (np.dtype(np.float64), 1),
    "scores": (np.dtype(np.float64), 1),
}
"""The arrays of a gate: their numbers' type, and how many dimensions they have."""


def _gate(arrays: Mapping[str, NDArray[Any]], levels: Mapping[str, Any], situation: Situation) -> ScopeGate:
    level = levels.get(situation)
    if not isinstance(level, float) or not 0 < level <= 1:
        raise CheckpointError(f"scope: level of {situation} must be a number above 0 and at most 1, not {level!r}")
    parts = {name: _array(arrays, f"{situation}.{name}", *kind) for name, kind in _DTYPES.items()}
    if len(parts["weights"]) != len(MEASURES) or (parts["weights"] < 0).any():
        raise CheckpointError(f"scope: {situation}.weights must be {len(MEASURES)} numbers that are not negative")
    if parts["direction"].shape != parts["references"].shape[1:]:
        raise CheckpointError(f"scope: {situation}.direction must be as long as each of {situation}.references")
    if not len(parts["references"]) or (np.diff(parts["scores"]) < 0).any():
        raise CheckpointError(f"scope: {situation} needs references, and ascending scores")
    return ScopeGate(**parts, level=level)


def _array(arrays: Mapping[str, NDArray[Any]], name: str, dtype: np.dtype[Any], dimensions: int) -> NDArray[Any]:
    found = arrays.get(name)
    if found is None or found.dtype != dtype or found.ndim != dimensions:
        raise CheckpointError(f"scope: {name} must be an array of {dtype} with {dimensions} dimensions")
    if dtype.kind == "f" and not np.isfinite(found).all():
        raise CheckpointError(f"scope: {name} holds a number that is not finite")
    return found
