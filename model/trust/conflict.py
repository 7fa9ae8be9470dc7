"""Conflict: whether a listing's image and title, each taken alone, contradict each other.

Of two independent predictions p and q of one attribute, the probability that they agree is Σ_c p_c q_c. Its logarithm,
summed over the attributes, is low where image and title belong to different products: nothing of such a listing may be
accepted. Where it is low for one attribute alone, that attribute may not be.

Maths on numpy; no torch, no files. Shapes: n listings, T attributes, C_t labels of attribute t, R reference listings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.trust.conformal import usable_level, p_values

Floats = NDArray[np.float64]

LEAST = 1e-12
"""Probabilities of agreement are not taken to be lower: beyond it lies rounding."""


def log_agreement(image: Sequence[Floats], title: Sequence[Floats]) -> Floats:
    """Return the log probability that both modalities mean the same label, per attribute: `[n, T]`.

    image, title: confidences per attribute `[n, C_t]`, calibrated, each from one modality alone.
    """
    agreed = [(p * q).sum(axis=1) for p, q in zip(image, title, strict=True)]
    return np.log(np.maximum(np.stack(agreed, axis=1), LEAST))


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """The limits of contradiction, from clean reference listings."""

    level: float
    """The share of clean listings that may be taken for contradictions."""
    reference: Floats
    """Agreement of each reference listing, over all attributes, ascending `[R]`."""
    limits: Floats
    """The least agreement of each attribute that is no contradiction, `[T]`; minus infinity for never."""

    def agreement(self, log_agreement: Floats) -> Floats:
        """Return the conformal p-value of each listing, `[n]` in (0, 1], from its `log_agreement` `[n, T]`.

        It is the share of reference listings, itself among them, that agree as little or less: for a clean listing at
        most u with a probability of at most u, whatever u.
        """
        return p_values(self.reference, log_agreement.sum(axis=1))

    def contradicts(self, log_agreement: Floats) -> NDArray[np.bool_]:
        """Return whether image and title contradict each other over the listing as a whole, `[n]`."""
        return self.agreement(log_agreement) < usable_level(self.level, len(self.reference))

    def contradicted(self, log_agreement: Floats) -> NDArray[np.bool_]:
        """Return on which attributes image and title contradict each other, `[n, T]`."""
        return log_agreement < self.limits


def fit_conflict(log_agreement: Floats, level: float) -> Conflict:
    """Set the limits by clean listings, one of each group: `log_agreement` `[R, T]`.

    An attribute's limit is set on the listings that agree as a whole: there it takes at most a share `level` more.
    """
    whole = np.sort(log_agreement.sum(axis=1))
    conflict = Conflict(level=level, reference=whole, limits=np.full(log_agreement.shape[1], -math.inf))
    agreeing = np.sort(log_agreement[~conflict.contradicts(log_agreement)], axis=0)
    # The k-th smallest of n exceeds a further one with a probability of at most k / (n + 1).
    smallest = math.floor(level * (len(agreeing) + 1))
    if smallest < 1:
        return conflict
    return Conflict(level=level, reference=whole, limits=agreeing[smallest - 1])
