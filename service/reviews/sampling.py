"""Which answers people are asked about: a random share that nobody can choose, and abstentions that teach most.

Pure functions of what was sent and answered: no store, no clock.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256

from model.inference.predictions import Abstention, AttributePrediction

LENGTH_BYTES = 8
"""Bytes of the number that says how long the title is, so that no title and image run together into others."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Draws (listing, attribute) pairs by HMAC-SHA256 with a secret of the store.

    Whether a pair is drawn depends on title, image and attribute alone, never on the answer: the same in every replica,
    and again each time that the listing is sent. Who does not know the secret cannot tell which pairs are, nor make a
    listing that is or is not.
    """

    secret: bytes
    share: float
    """Of all pairs, in [0, 1]."""

    def listing(self, title: str | None, image: bytes | None) -> str:
        """Return 64 hex digits that stand for a listing: those of its title and its image's bytes."""
        text = b"" if title is None else title.encode(errors="surrogatepass")
        length = (0 if title is None else len(text) + 1).to_bytes(LENGTH_BYTES)
        mac = hmac.new(self.secret, length + text, sha256)
        mac.update(b"" if image is None else image)
        return mac.hexdigest()

    def position(self, listing: str, attribute: str) -> float:
        """Return where a pair stands, in [0, 1): it is drawn if that is below the share, and judged in this order.

        listing: as `listing` returns it
        """
        mac = hmac.digest(self.secret, f"{listing}\x1f{attribute}".encode(), sha256)
        return (int.from_bytes(mac[:8]) >> 11) / 2**53  # 53 bits, so that rounding never makes it 1

    def draws(self, position: float) -> bool:
        """Whether the pair at this position is in the random share."""
        return position < self.share


def lesson(prediction: AttributePrediction) -> float | None:
    """Return how much an abstention is likely to teach, in [0, 1]; None where there is nothing to ask.

    It is 1 minus the confidence by which the best label is ahead of the second best (Scheffer et al., 2001): a listing
    whose label the model tells already changes little in training. Of a multi-valued attribute, where each label is a
    question of its own, it is that of the label that is least decided between yes and no; nothing is asked where one
    is accepted.
    """
    if prediction.abstention in (None, Abstention.NOT_APPLICABLE):
        return None
    if prediction.labels:
        return 1 - min(abs(2 * candidate.confidence - 1) for candidate in prediction.candidates)
    best, *others = (candidate.confidence for candidate in prediction.candidates)
    return 1 - (best - (others[0] if others else 0.0))
