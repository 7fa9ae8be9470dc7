"""The gate before the thresholds: which listings, and which of their attributes, the certificates speak of.

Serving, calibration and evaluation put every listing through the same gate: thresholds are certified on what it lets
pass. It does not depend on the target precision, so that what is accepted at a target is accepted at every lower one.

Maths on numpy; no torch, no files. Shapes: n listings, T attributes, C_t labels of attribute t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.situations import Situation
from model.trust.calibration import confidences_of
from model.trust.conflict import Conflict, log_similarity
from model.trust.scope import KnownWords, ScopeGates, features_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONFLICT_ARRAYS = ("weights", "reference", "limits")

FAMILIAR_IMAGE = 0.3
"""The least familiarity of an image that is believed beside an unfamiliar title. An image alone tells unfamiliar
products less well than both together, so it has to be quite ordinary."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What n listings look like in one situation: what their familiarity is measured by, and their predictions."""

    embeddings: NDArray[np.float32]
    """The aggregated embeddings of image and text, `[n, 2, D]`."""
    logits: tuple[NDArray[np.float32], ...]
    """Per attribute `[n, C_t]`, before calibration."""
    confidences: tuple[Floats, ...]
    """Calibrated, per attribute `[n, C_t]`."""
    titles: Sequence[str | None]
    """n of them, None where the situation has none."""
    multi_valued: frozenset[int] = frozenset()
    """The places of the multi-valued attributes."""

    @classmethod
    def of(
        cls,
        embeddings: NDArray[np.float32],
        logits: Sequence[NDArray[np.float32]],
        temperatures: Sequence[float],
        titles: Sequence[str | None],
        multi_valued: frozenset[int] = frozenset(),
    ) -> Self:
        """Return the evidence of what a network computed; temperatures: of each attribute."""
        return cls(
            embeddings=embeddings,
            logits=tuple(logits),
            # Rows that are contiguous in memory are summed in the same order whatever the size of the batch.
            confidences=tuple(
                confidences_of(np.ascontiguousarray(each), temperature, multi_valued=t in multi_valued)
                for t, (each, temperature) in enumerate(zip(logits, temperatures, strict=True))
            ),
            titles=titles,
            multi_valued=multi_valued,
        )

    def __getitem__(self, rows: NDArray[np.integer[Any]]) -> Evidence:
        """Return the listings at `rows`."""
        return Evidence(
            embeddings=self.embeddings[rows],
            logits=tuple(each[rows] for each in self.logits),
            confidences=tuple(each[rows] for each in self.confidences),
            titles=[self.titles[row] for row in rows.tolist()],
            multi_valued=self.multi_valued,
        )


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the gate says of n listings that have the same modalities."""

    title_ignored: Bools
    """Answered from the image alone, though there is a title, `[n]`."""
    familiarity: Floats
    """Conformal p-value in the situation that is answered from, `[n]`; NaN where it cannot be measured."""
    in_scope: Bools
    """`[n]`; True where the familiarity cannot be measured."""
    agreement: Floats
    """Conformal p-value of image and title contradicting each other, `[n]`; NaN where one of them is not used."""
    disagree: Bools
    """Attributes on which image and title contradict each other: all of them where they do as a whole, `[n, T]`."""

    @property
    def passed(self) -> Bools:
        """Whether the threshold decides, `[n, T]`: of a listing in scope, on an attribute without a contradiction."""
        return self.in_scope[:, None] & ~self.disagree


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Scope and conflict of a checkpoint; a situation that could not be fitted has no scope."""

    scopes: ScopeGates
    conflict: Conflict | None
    """None where no listing has both modalities."""

    def judge(self, given: Situation, evidence: Mapping[Situation, Evidence]) -> Judgement:
        """Judge listings that have the modalities of `given`.

        evidence: of every situation that they can be answered in: for image and title, of all three.
        """
        n, attributes = len(evidence[given].confidences[0]), len(evidence[given].confidences)
        familiarity, in_scope = self._familiarity(given, evidence, n)
        ignored, agreement = np.zeros(n, np.bool_), np.full(n, np.nan)
        disagree = np.zeros((n, attributes), np.bool_)
        if given is Situation.IMAGE_AND_TITLE:
            image, image_in_scope = self._familiarity(Situation.IMAGE, evidence, n)
            _, title_in_scope = self._familiarity(Situation.TITLE, evidence, n)
            ignored = ~title_in_scope & image_in_scope & (image >= FAMILIAR_IMAGE)
            familiarity = np.where(ignored, image, familiarity)
            in_scope = in_scope | ignored
            if self.conflict is not None:
                by_image, by_title = evidence[Situation.IMAGE], evidence[Situation.TITLE]
                similar = log_similarity(by_image.confidences, by_title.confidences, by_image.multi_valued)
                agreement = np.where(ignored, np.nan, self.conflict.agreement(similar))
                disagree = self.conflict.contradicts(similar) & ~ignored[:, None]
        return Judgement(
            title_ignored=ignored, familiarity=familiarity, in_scope=in_scope, agreement=agreement, disagree=disagree
        )

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays by name and a description in JSON types, from which `from_arrays` makes an equal gate."""
        arrays = dict(self.scopes.arrays)
        description: dict[str, Any] = {"scope": self.scopes.options, "conflict": None}
        if self.conflict is not None:
            arrays |= {f"conflict.{name}": getattr(self.conflict, name) for name in CONFLICT_ARRAYS}
            description["conflict"] = {"level": self.conflict.level}
        return arrays, description

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> Self:
        """Raises `CheckpointError`, `KeyError`, `TypeError` or `ValueError` for what `to_arrays` does not return."""
        conflict = description["conflict"]
        parts = {name: arrays[f"conflict.{name}"] for name in CONFLICT_ARRAYS} if conflict is not None else {}
        return cls(
            scopes=ScopeGates.load(arrays, description["scope"]),
            conflict=None if conflict is None else Conflict(level=float(conflict["level"]), **parts),
        )

    def _familiarity(
        self, situation: Situation, evidence: Mapping[Situation, Evidence], n: int
    ) -> tuple[Floats, Bools]:
        scope, own = self.scopes.gates.get(situation), evidence[situation]
        if scope is None:
            return np.full(n, np.nan), np.ones(n, np.bool_)
        unseen = self.scopes.words.unseen(own.titles)
        familiarity = scope.p_values(features_of(situation, own.embeddings, own.logits, unseen, own.multi_valued))
        return familiarity, familiarity >= scope.level


OPEN_GATE = Gate(scopes=ScopeGates(words=KnownWords.of([]), gates={}), conflict=None)
"""That of a checkpoint without one: everything passes, and nothing is known of it."""
