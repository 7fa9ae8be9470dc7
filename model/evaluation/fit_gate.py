"""Fits the gate of a checkpoint: what is familiar on the train part, and its limits on the validation part.

Nothing is taken from the calibration part: a certificate that is computed on listings which chose the gate means
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.evaluation.heldout import HeldOut, Temperatures, evidence
from model.inference.predictions import RawPredictor
from model.situations import Situation
from model.trust.conflict import Conflict, fit_conflict, log_agreement
from model.trust.conformal import one_of_each_group
from model.trust.gate import Gate

SCOPE_LEVEL = 0.01
"""The share of listings like the catalogue's that may be taken for unfamiliar ones."""

CONFLICT_LEVEL = 0.01
"""The share of listings whose image and title may be taken to contradict each other, and of each attribute once more."""


def fit_gate(
    predictor: RawPredictor,
    catalogue: Catalogue,
    validation: Mapping[Situation, HeldOut],
    temperatures: Temperatures,
    *,
    level: float,
    console: Console,
) -> Gate:
    """Fit scope and conflict; validation: the validation part's listings, computed in every situation."""
    return Gate(scopes={}, conflict=_fit_conflict(validation, temperatures))


def _fit_conflict(validation: Mapping[Situation, HeldOut], temperatures: Temperatures) -> Conflict | None:
    listings = validation[Situation.IMAGE_AND_TITLE]
    if not listings.listings:
        return None
    of_listings = evidence(validation, Situation.IMAGE_AND_TITLE, temperatures)
    agreed = log_agreement(of_listings[Situation.IMAGE].confidences, of_listings[Situation.TITLE].confidences)
    references = one_of_each_group([listing.id for listing in listings.listings], listings.group)
    return fit_conflict(np.asarray(agreed[references]), CONFLICT_LEVEL)
