"""Conformal p-values: how unusual a listing is, held against reference listings of the same kind.

Maths on numpy; no torch, no files. Shapes: n listings, R reference listings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def p_values(reference: Floats, typicality: Floats) -> Floats:
    """Return (1 + number of references as typical or less) / (R + 1) of each listing, `[n]` in (0, 1].

    reference: the typicality of each reference listing, ascending `[R]`. For a listing that is exchangeable with them
    the p-value is at most u with a probability of at most u, whatever u.
    """
    as_typical_or_less = np.searchsorted(reference, typicality, side="right")
    return np.asarray((1 + as_typical_or_less) / (len(reference) + 1), dtype=np.float64)


def usable_level(level: float, references: int) -> float:
    """Return `level`, or 2 / (R + 1) where R references are too few for any p-value to be below it."""
    return 2 / (references + 1) if references + 1 <= 1 / level else level


def one_of_each_group(ids: Sequence[str], groups: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Return one row of each group, ascending: the one whose id has the least hash, whatever the order of the rows.

    Listings of one group are not independent of each other, and references have to be.
    """
    hashes = [hashlib.sha256(each.encode()).digest() for each in ids]
    chosen: dict[int, int] = {}
    for row, group in enumerate(groups.tolist()):
        if group not in chosen or hashes[row] < hashes[chosen[group]]:
            chosen[group] = row
    return np.array(sorted(chosen.values()), dtype=np.intp)
