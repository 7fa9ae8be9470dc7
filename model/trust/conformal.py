"""Conformal p-values: how unusual a listing is, held against reference listings of the same kind.

Maths on numpy; no torch, no files. Shapes: n listings, R reference listings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def p_values(references: Floats, scores: Floats) -> Floats:
    """Return (1 + number of references as typical or less) / (R + 1) for each listing, `[n]` in (0, 1].

    references: their scores, ascending `[R]`; scores: the listings', `[n]`; both higher for what is less typical. The
    listing counts as one of the references, so that one which is exchangeable with them has a p-value of at most u with
    a probability of at most u (Vovk, Gammerman and Shafer, 2005, section 2.2; for outliers Bates et al., 2023,
    arXiv:2104.08279).
    """
    as_typical_or_less = len(references) - np.searchsorted(references, scores, side="left")
    return np.asarray((1 + as_typical_or_less) / (len(references) + 1), dtype=np.float64)


def usable_level(level: float, references: int) -> float:
    """Return the p-value below which a listing is unusual, given how many references there are.

    The smallest p-value is 1 / (references + 1). Where that is not below `level`, the limit is twice as much: a listing
    that is less typical than all references is unusual still.
    """
    return level if references + 1 > 1 / level else 2 / (references + 1)


def one_per_group(ids: Sequence[str], groups: Sequence[Hashable]) -> NDArray[np.intp]:
    """Return the positions of one listing for each group, drawn and ordered by a hash of the listing's id.

    Listings of one group are not independent of each other, and references have to be.
    """
    order = sorted(range(len(ids)), key=lambda row: hashlib.sha256(f"scope\x1f{ids[row]}".encode()).digest())
    first: dict[Hashable, int] = {}
    for row in order:
        first.setdefault(groups[row], row)
    return np.fromiter(first.values(), np.intp, len(first))
