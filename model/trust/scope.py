"""Stub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.trust.conformal import p_values


@dataclass(frozen=True, kw_only=True)
class Features:
    embeddings: NDArray[np.float32]
    logits: tuple[NDArray[np.float32], ...]
    words: Sequence[tuple[str, ...]]

    def select(self, rows: NDArray[np.intp]) -> Features:
        return Features(
            embeddings=self.embeddings[rows],
            logits=tuple(x[rows] for x in self.logits),
            words=[self.words[row] for row in rows],
        )


@dataclass(frozen=True, kw_only=True)
class Scope:
    level: float
    reference: NDArray[np.float64]

    def p_values(self, features: Features) -> NDArray[np.float64]:
        return p_values(self.reference, np.mean([x.max(axis=1) for x in features.logits], axis=0))
