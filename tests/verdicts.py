"""What the fakes say of a label."""

from __future__ import annotations

from model.inference.predictions import Abstention


def verdict(confidence: float, threshold: float | None) -> Abstention | None:
    """Judge a label by its threshold alone."""
    if threshold is None:
        return Abstention.NOT_CERTIFIED
    return None if confidence >= threshold else Abstention.LOW_CONFIDENCE
