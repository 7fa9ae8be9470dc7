"""Which attributes a listing cannot have, by its product type: a watch has no sleeve length.

It is learned from the train part (`model.catalogue.applicability`) and travels with the checkpoint. Where a listing's
product type is accepted, and its listings never bear an attribute, that attribute is not applicable: nothing of it is
accepted, whatever the confidence. Where the product type is uncertain, nothing is decided.

Maths on numpy; no torch, no files. Shapes: n listings, T attributes, P labels of the product type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.tasks import Task
from model.trust.calibration import AttributeCalibration

Bools = NDArray[np.bool_]

ACCEPTED_AT = 0.95
"""The target precision at which the product type has to be accepted, whatever was asked for."""


@dataclass(frozen=True, slots=True)
class Borne:
    """How many training listings of a product type were seen, and how many of them have a label for an attribute."""

    listings: int
    labelled: int


@dataclass(frozen=True, kw_only=True)
class Applicability:
    """What was learned: which product types never bear an attribute."""

    product_type: str
    """The attribute that tells product types."""
    never: Mapping[str, Mapping[str, Borne]]
    """Per attribute, the product types that never bear it, with the evidence; an attribute that all may bear is absent.
    """

    def mask(self, tasks: Sequence[Task]) -> Bools:
        """Return which attributes the product types never bear, `[P, T]`."""
        never = [self.never.get(task.name, {}) for task in tasks]
        return np.array([[label in each for each in never] for label in self.task(tasks).labels], dtype=np.bool_)

    def task(self, tasks: Sequence[Task]) -> Task:
        """Return the product type among a checkpoint's attributes."""
        return next(task for task in tasks if task.name == self.product_type)

    def minimum_confidence(self, tasks: Sequence[Task], calibrated: AttributeCalibration) -> NDArray[np.float64]:
        """Return the confidence from which each product type is accepted, `[P]`; infinity for never.

        At the lowest target precision that was calibrated and is not below `ACCEPTED_AT`; without one, never.
        """
        labels = self.task(tasks).labels
        target = min((each for each in calibrated.thresholds if each >= ACCEPTED_AT), default=None)
        if target is None:
            return np.full(len(labels), np.inf)
        return calibrated.minimum_confidence(target, labels)

    def excludes(
        self, tasks: Sequence[Task], confidences: NDArray[np.float64], minimum: NDArray[np.float64], passed: Bools
    ) -> Bools:
        """Return which attributes are not applicable to n listings, `[n, T]`.

        confidences: of the product types `[n, P]`. minimum: `minimum_confidence`, for all listings `[P]` or each
        `[n, P]`. passed: where the gate lets the product type be accepted, `[n]`.
        """
        best = confidences.argmax(axis=1)
        rows = np.arange(len(best))
        accepted = passed & (confidences[rows, best] >= np.broadcast_to(minimum, confidences.shape)[rows, best])
        return np.asarray(self.mask(tasks)[best] & accepted[:, None])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads back."""
        return {
            "product_type": self.product_type,
            "never": {
                attribute: {
                    label: {"listings": borne.listings, "labelled": borne.labelled} for label, borne in types.items()
                }
                for attribute, types in self.never.items()
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], tasks: Sequence[Task]) -> Self:
        """Read what `to_json` returns. Raises `ConfigError` where it does not fit the attributes."""
        try:
            never = {
                attribute: {
                    label: Borne(int(borne["listings"]), int(borne["labelled"])) for label, borne in own.items()
                }
                for attribute, own in content["never"].items()
            }
            found = cls(product_type=content["product_type"], never=never)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"applicability is damaged: {error}") from error
        kinds = [task for task in tasks if task.name == found.product_type and not task.multi_valued]
        if not kinds or not set(never) <= {task.name for task in tasks} - {found.product_type}:
            raise ConfigError("applicability names an attribute that is not there")
        if unknown := [label for own in never.values() for label in own if label not in kinds[0].labels]:
            raise ConfigError(f"applicability names {unknown[0]!r}, which is no label of {found.product_type}")
        return found
