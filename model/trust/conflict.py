"""Conflict: whether a listing's image and title, each taken alone, contradict each other.

The confidences p and q that the two give to the labels of an attribute are compared by the cosine of the angle between
them, Σ_c p_c q_c / (‖p‖ ‖q‖): 1 where they are the same, 0 where they have no label in common. The answers to a
multi-valued attribute are label sets: what is compared are both modalities' chances of each set. As labels are
independent there, that cosine is the product of those of every single label, yes or no. Its logarithm, weighted
and summed over the attributes, is low where image and title belong to different products: nothing of such a listing may
be accepted. Where it is low for one attribute alone, that attribute may not be.

Maths on numpy; no torch, no files. Shapes: n listings, T attributes, C_t labels of attribute t, R reference listings.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.trust.conformal import p_values, usable_level
from model.trust.scope import fit_weights

Floats = NDArray[np.float64]

LEAST = 1e-12
"""Cosines are not taken to be lower: beyond it lies rounding."""


def log_similarity(image: Sequence[Floats], title: Sequence[Floats], multi_valued: Collection[int] = ()) -> Floats:
    """Return the logarithm of the cosine between both modalities' confidences, per attribute: `[n, T]`, at most 0.

    image, title: confidences per attribute `[n, C_t]`, calibrated, each from one modality alone. multi_valued: the
    places of the attributes whose labels are independent.
    """
    cosines = [
        _set_cosine(p, q)
        if t in multi_valued
        else (p * q).sum(axis=1) / np.sqrt((p * p).sum(axis=1) * (q * q).sum(axis=1))
        for t, (p, q) in enumerate(zip(image, title, strict=True))
    ]
    return np.asarray(np.log(np.clip(np.stack(cosines, axis=1), LEAST, 1.0)), dtype=np.float64)


def _set_cosine(p: Floats, q: Floats) -> Floats:
    """Return the cosine `[n]` between two distributions over label sets, from the chances of each label `[n, C]`."""
    both = p * q + (1 - p) * (1 - q)
    squares = (p * p + (1 - p) * (1 - p)) * (q * q + (1 - q) * (1 - q))
    return np.asarray((both / np.sqrt(squares)).prod(axis=1))


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """What tells contradictions, and its limits by clean reference listings."""

    level: float
    """Agreement below which image and title contradict each other: so large a share of clean listings does."""
    weights: Floats
    """How much each attribute counts, `[T]`, at least 0."""
    reference: Floats
    """The weighted log similarity of each reference listing, negated, ascending `[R]`."""
    limits: Floats
    """The least log similarity of each attribute that is no contradiction, `[T]`; minus infinity for never."""

    def agreement(self, log_similarity: Floats) -> Floats:
        """Return the conformal p-value of each listing, `[n]` in (0, 1], from its log similarities `[n, T]`."""
        return p_values(self.reference, -(log_similarity * self.weights).sum(axis=1))

    def contradicts(self, log_similarity: Floats) -> NDArray[np.bool_]:
        """Return on which attributes image and title contradict each other, `[n, T]`.

        On all of them where they do over the listing as a whole.
        """
        whole = self.agreement(log_similarity) < self.level
        return np.asarray(whole[:, None] | (log_similarity < self.limits))


def fit_conflict(matched: Floats, mismatched: Floats, reference: Floats, level: float) -> Conflict:
    """Weigh the attributes by what tells matched from mismatched pairs, and set the limits by clean listings.

    matched, mismatched: log similarities `[n, T]` of training listings, and of images beside other listings' titles.
    reference: of clean listings that were not trained on, one of each group, `[R, T]`. level: the share of clean
    listings that may be taken for contradictions, and once more for each attribute.
    """
    weights = fit_weights(list(-matched.T), list(-mismatched.T))
    if not weights.any():  # nothing to tell them by
        weights = np.ones(reference.shape[1])
    whole = np.sort(-(reference * weights).sum(axis=1))
    conflict = Conflict(
        level=usable_level(level, len(reference)),
        weights=weights,
        reference=whole,
        limits=np.full(reference.shape[1], -math.inf),
    )
    # An attribute's limit is set on the listings that agree as a whole: there it takes at most a share `level` more.
    agreeing = np.sort(reference[~conflict.contradicts(reference).any(axis=1)], axis=0)
    # The k-th smallest of n exceeds a further one with a probability of at most k / (n + 1).
    smallest = math.floor(level * (len(agreeing) + 1))
    return replace(conflict, limits=agreeing[smallest - 1]) if smallest >= 1 else conflict
