"""Which modalities a listing has: answers are calibrated, certified and measured for each situation apart."""

from __future__ import annotations

from enum import StrEnum


class Situation(StrEnum):
    """Which modalities a listing has; calibrated apart, since confidence means something else in each."""

    IMAGE_AND_TITLE = "image_and_title"
    IMAGE = "image"
    TITLE = "title"
