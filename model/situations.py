"""How a listing was read: which modalities it has, and what a caller should know about them.

Answers are calibrated, certified and measured for each situation apart.
"""

from __future__ import annotations

from enum import StrEnum


class Situation(StrEnum):
    """Which modalities a listing has; calibrated apart, since confidence means something else in each."""

    IMAGE_AND_TITLE = "image_and_title"
    IMAGE = "image"
    TITLE = "title"

    @classmethod
    def of(cls, *, image: bool, title: bool) -> Situation:
        """Return that of a listing which has an image, a title, or both."""
        if not title:
            return cls.IMAGE
        return cls.IMAGE_AND_TITLE if image else cls.TITLE

    @property
    def uses_image(self) -> bool:
        return self is not Situation.TITLE

    @property
    def uses_title(self) -> bool:
        return self is not Situation.IMAGE

    @property
    def within(self) -> tuple[Situation, ...]:
        """The situations that a listing with these modalities can be answered in: all three, or this one alone."""
        return tuple(Situation) if self is Situation.IMAGE_AND_TITLE else (self,)


class ListingWarning(StrEnum):
    """What a caller should know about how a listing was read."""

    TITLE_TRUNCATED = "title_truncated"
    """The title has more tokens than the model's text context; those beyond it were cut."""
    TITLE_IGNORED = "title_ignored"
    """The title is a placeholder, or unfamiliar beside a familiar image: the answer is from the image alone."""
    PROFILE_UNREADABLE = "profile_unreadable"
    """The image has a colour profile that cannot be read: its colours were taken as sRGB."""
