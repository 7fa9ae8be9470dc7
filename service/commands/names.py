"""What commands call attributes and reasons, in the words of the playground."""

from __future__ import annotations

import re

from model.inference.predictions import Abstention

REASONS = {
    Abstention.UNFAMILIAR_LISTING: "unfamiliar",
    Abstention.NOT_APPLICABLE: "not applicable",
    Abstention.NOT_CERTIFIED: "not certified",
    Abstention.MODALITIES_DISAGREE: "contradictory",
    Abstention.LOW_CONFIDENCE: "low confidence",
}
"""Why a label is not accepted, short enough for a column of a table."""


def readable(name: str) -> str:
    """Return `baseColour` and `base_colour` as people read them: "Base colour"."""
    words = re.sub(r"[_-]+", " ", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)).strip().lower()
    return words[:1].upper() + words[1:] or name
