"""What is captured, judged and counted: plain types, and the bounds of what waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from model.situations import Situation

LEASE_SECONDS = 600.0
"""How long a reviewer has a pair alone: one who left it open for longer has gone."""

UNDO_SECONDS = 3600.0
"""How long a decision can be undone by the reviewer who made it."""

MAX_RANDOM = 5_000
"""Pairs of the random share that wait, at most: those that would be judged last go, which nobody can choose either."""

MAX_ABSTAINED = 200
"""Abstentions of one attribute that wait, at most: the ones that teach most."""

MAX_ACCEPTED_ROWS = 5_000_000
"""Listings in the list of what was accepted; the oldest go first."""


class Kind(StrEnum):
    """Why a pair waits for a person."""

    RANDOM = "random"
    """Drawn at random: measures precision, and calibrates."""
    ABSTAINED = "abstained"
    """Not accepted, and likely to teach: for training alone."""


UNDONE = "undone"
"""What the log of decisions says of one that was taken back."""


class Verdict(StrEnum):
    """What a person found about a label."""

    RIGHT = "right"
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, order=True)
class Model:
    """What answered: sequences of judgements are of one alone."""

    version: str
    engine: str
    calibration: str

    def __str__(self) -> str:
        return f"{self.version}/{self.engine}/{self.calibration}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedListing:
    """A listing as it was sent."""

    listing: str
    id: str | None
    title: str | None
    image: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedItem:
    """An answer to be judged."""

    listing: str
    attribute: str
    kind: Kind
    place: float
    situation: Situation
    label: str
    """The best one; of a multi-valued attribute, the first."""
    confidence: float
    abstention: str | None
    accepted_at: float | None
    """The highest target precision that the label, or one of them, was accepted at."""
    candidates: Sequence[tuple[str, float]]
    separator: str | None = None
    """Of a multi-valued attribute: what stands between the labels of a listing in tables. None: it has one label."""
    labels: Sequence[tuple[str, float]] = ()
    """Of a multi-valued attribute: those accepted at any target, each with the highest one that it was accepted at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedListing:
    """What was accepted of a listing: `labels` by attribute, with their confidences; of a multi-valued one, several."""

    listing: str
    id: str | None
    situation: Situation
    target: float
    labels: Mapping[str, Sequence[tuple[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What was captured since the last one."""

    listings: Mapping[str, CapturedListing]
    items: Sequence[CapturedItem]
    accepted: Sequence[AcceptedListing]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingItem:
    """A pair for a reviewer. What the model answered is for abstentions alone: the random share is judged unseen."""

    item: int
    kind: Kind
    attribute: str
    id: str | None
    title: str | None
    image: bytes | None
    label: str
    confidence: float
    abstention: str | None
    candidates: Sequence[tuple[str, float]]
    multi_valued: bool
    """Whether several labels may fit."""


LabelFound = tuple[float, Verdict]
"""The highest target that a label was accepted at, and what a person found about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A pair that has just been decided."""

    kind: Kind
    attribute: str
    situation: Situation
    found: Sequence[LabelFound]
    """Of each label that was accepted at any target."""
    verdict: Verdict
    is_new: bool
    """False where the same decision was there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A pair that was decided: `label` and `confidence` are the model's, `decision` is what people chose: the labels
    that fit, and so one at most unless the attribute has a separator; None where they skipped it.
    """

    listing: str
    id: str | None
    title: str | None
    has_image: bool
    attribute: str
    separator: str | None
    verdict: Verdict
    decision: tuple[str, ...] | None
    label: str
    confidence: float
    decided: float
    decided_by: str


@dataclass(frozen=True, slots=True)
class Count:
    """How many judged pairs of a start came to the same."""

    attribute: str
    situation: Situation
    found: tuple[LabelFound, ...]
    """Of each label that was accepted at any target: one, unless the attribute is multi-valued."""
    count: int


@dataclass(frozen=True, slots=True, order=True)
class Promise:
    """What is promised: the precision of an attribute's labels accepted at a target, in a situation."""

    attribute: str
    situation: Situation
    target: float


def monday(now: float) -> str:
    """Return the Monday of a moment's week, in UTC, as YYYY-MM-DD."""
    day: date = datetime.fromtimestamp(now, UTC).date()
    return (day - timedelta(days=day.weekday())).isoformat()
