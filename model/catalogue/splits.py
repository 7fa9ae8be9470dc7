"""The four disjoint parts of a catalogue, by a stable hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum


class Part(StrEnum):
    """The four disjoint parts of a catalogue."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"


SHARES: Mapping[Part, float] = {
    Part.TRAIN: 0.76,
    Part.VALIDATION: 0.05,
    Part.CALIBRATION: 0.10,
    Part.TEST: 0.09,
}


def part_of(key: str) -> Part:
    """Return the part of `key` (a listing's group, or its id): a SHA-256 hash, the same on every machine."""
    return share_of(key, SHARES, rest=Part.TEST)  # rounding: the shares may add up to a hair less than 1


def share_of(key: str, shares: Mapping[Part, float], *, rest: Part) -> Part:
    """Return the part of `key` by a stable hash: each of `shares` in proportion, `rest` beyond them."""
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    for part, share in shares.items():
        position -= share
        if position < 0:
            return part
    return rest
