"""Wrong labels in a catalogue: which are likeliest, how many there are, and which label is given for which.

By confident learning (Northcutt et al., arXiv:1911.00068), as cleanlab implements it, on probabilities of a model that
has not seen the listings. Maths on numpy; no torch, no files.

Shapes: n labelled listings, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

RESAMPLES = 40

LIKELY = 0.5
"""A listing counts as one of a label that it is likelier to have than not, at least.

Confident learning asks for no more than the mean probability of the label among the listings that bear it. Where most
of a rare label's listings are wrong, that is next to nothing, and any other listing counts as one of it: with 5 %
noise, the estimate for 46 colours was 10 points too high.
"""


def suspicion(probabilities: Floats, labels: Ints) -> NDArray[np.float64]:
    """Return how likely each label is wrong, `[n]`: 1 less the probability of the given label ("self-confidence").

    On labels with known mistakes this ranked them better than the margin to the most probable other label did.
    probabilities: `[n, C]`, of a model that has not seen the listings.
    """
    return np.asarray(1.0 - probabilities[np.arange(len(labels)), labels].astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class NoiseEstimate:
    """How many labels of an attribute are wrong."""

    share: float
    """Estimated share of wrong labels."""
    interval: tuple[float, float]
    """95 %, over groups of listings that share a title."""
    joint: NDArray[np.float64]
    """Estimated share of listings with given label i that should have label j, `[C, C]`; sums to 1.

    Of a multi-valued attribute `[C + 1, C + 1]`, where the last place stands for none: a label that should not be there
    in its last column, one that is missing in its last row. `share` is then that of wrong (listing, label) pairs.
    """


def estimate_noise(probabilities: Floats, labels: Ints, group: Ints) -> NoiseEstimate | None:
    """Estimate the share of wrong labels, and which label is given for which; None for fewer than two listings.

    group: listings of one number are not independent evidence, `[n]`.
    """
    if len(labels) < 2 or probabilities.shape[1] < 2:
        return None

    def joint(rows: Ints) -> NDArray[np.float64]:
        return _joint(labels[rows], probabilities[rows])

    whole = joint(np.arange(len(labels)))
    interval = _interval(lambda rows: float(1 - np.trace(joint(rows))), group)
    return NoiseEstimate(share=float(1 - np.trace(whole)), interval=interval, joint=whole)


def _joint(labels: Ints, probabilities: Floats) -> NDArray[np.float64]:
    """Return the estimated share of listings with given label i that should have label j, `[C, C]`; sums to 1."""
    from cleanlab.count import compute_confident_joint  # noqa: PLC0415 - seconds, and an extra

    size = probabilities.shape[1]
    counts = np.bincount(labels, minlength=size)
    own = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=size)
    thresholds = np.maximum(own / np.maximum(counts, 1), LIKELY)
    found = np.asarray(compute_confident_joint(labels, probabilities, thresholds=thresholds), dtype=np.float64)
    return np.asarray(found / found.sum())


def _interval(share: Callable[[Ints], float], group: Ints) -> tuple[float, float]:
    """Return the 95 % interval of a share, which is a function of row numbers, over resampled groups."""
    rng, number = np.random.default_rng(0), np.unique(group, return_inverse=True)[1]
    groups, shares = int(number.max()) + 1, []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, groups, size=groups), minlength=groups)
        shares.append(share(np.repeat(np.arange(len(group)), times[number])))
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def suspicion_of_sets(confidences: Floats, given: Bools) -> NDArray[np.float64]:
    """Return how likely each label set is wrong, `[n]`: the suspicion of its most suspicious label.

    Of a label that is given, that is 1 less its confidence, and of one that is not, its confidence. Both `[n, C]`.
    """
    return np.asarray(np.where(given, 1.0 - confidences, confidences).max(axis=1), dtype=np.float64)


def estimate_set_noise(confidences: Floats, given: Bools, group: Ints) -> NoiseEstimate | None:
    """Estimate the share of wrong (listing, label) pairs, label by label; None for fewer than two listings.

    confidences, given: `[n, C]`. A label that all listings or none have is taken for right: nothing tells its errors.
    """
    if len(given) < 2:
        return None
    size = given.shape[1]

    def joint(rows: Ints) -> NDArray[np.float64]:
        found = np.zeros((size + 1, size + 1))
        for label in range(size):
            own, chance = given[rows, label], confidences[rows, label].astype(np.float64)
            if own.all() or not own.any():
                found[label, label] = own.mean()
                continue
            pair = _joint(own.astype(np.int64), np.stack([1 - chance, chance], axis=1))
            found[label, size], found[size, label], found[label, label] = pair[1, 0], pair[0, 1], pair[1, 1]
        return found

    def share(rows: Ints) -> float:
        found = joint(rows)
        return float((found[:, size].sum() + found[size].sum()) / size)

    everything = np.arange(len(given))
    return NoiseEstimate(share=share(everything), interval=_interval(share, group), joint=joint(everything))


def contradictions(keys: Sequence[Hashable | None], labels: Sequence[str]) -> list[list[int]]:
    """Return groups of listings with the same key (a title, an image) and different labels, the largest first.

    Listings whose key is None belong to no group. Each group is a list of positions.
    """
    by_key: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            by_key.setdefault(key, []).append(row)
    found = [rows for rows in by_key.values() if len({labels[row] for row in rows}) > 1]
    return sorted(found, key=len, reverse=True)
