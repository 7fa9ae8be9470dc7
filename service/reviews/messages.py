"""The types of requests and replies about reviews."""

from __future__ import annotations

import base64
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from model.situations import Situation
from service.reviews.pairs import Kind, Promise, WaitingItem
from service.reviews.precision import LivePrecision
from service.schemas import Candidate, ModelName, Reply, Request


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("reviewer: a name in one line")
    return name


ReviewerName = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_printable)]


REVIEWER = (
    "who judges. Where API keys are configured, the key's name comes first, and is enough; without them it is required"
)

Label = Annotated[str, StringConstraints(max_length=1024)]


class ReviewImage(Reply):
    base64: str


class ReviewItem(Reply):
    """A (listing, attribute) pair to be judged."""

    item: int
    kind: Kind = Field(
        description="`random`: of the random share, judged without seeing the model's answer. `abstained`: not "
        "accepted, and likely to teach"
    )
    attribute: str
    multi_valued: bool = Field(description="whether several labels may fit: then all that do are to be named")
    id: str | None = Field(description="the caller's own")
    title: str | None
    image: ReviewImage | None
    label: str | None = Field(description="the model's best label; null for the random share")
    confidence: float | None
    abstention: str | None
    candidates: list[Candidate] = Field(description="best first; empty for the random share")

    @classmethod
    def of(cls, found: WaitingItem) -> Self:
        shown = found.kind is Kind.ABSTAINED
        return cls(
            item=found.item,
            kind=found.kind,
            attribute=found.attribute,
            multi_valued=found.multi_valued,
            id=found.id,
            title=found.title,
            image=None if found.image is None else ReviewImage(base64=base64.b64encode(found.image).decode()),
            label=found.label if shown else None,
            confidence=found.confidence if shown else None,
            abstention=found.abstention if shown else None,
            candidates=[Candidate(label=label, confidence=sure) for label, sure in found.candidates] if shown else [],
        )


class Waiting(Reply):
    """Pairs that wait and that nobody has at the moment."""

    random: int
    abstained: int

    @classmethod
    def of(cls, found: dict[Kind, int]) -> Self:
        return cls(**found)


class NextReply(Reply):
    reviewer: str = Field(description="who judges, as it is kept with each decision")
    items: list[ReviewItem] = Field(description="the reviewer's alone for ten minutes; empty where nothing waits")
    waiting: Waiting


class ReviewRequest(Request):
    """What a reviewer found."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"item": 17, "reviewer": "Ada", "decision": "label", "label": "Navy Blue"}]}
    )

    item: int = Field(ge=1)
    reviewer: ReviewerName | None = Field(None, description=REVIEWER)
    decision: Literal["label", "none", "skip", "undo"] = Field(
        description="`label`: that is the right one, or those are. `none`: no label of the attribute fits. `skip`: "
        "nobody can tell. `undo`: take back a decision of one's own, within an hour"
    )
    label: Label | None = Field(None, description="for `label`: one of the attribute's")
    labels: list[Label] | None = Field(
        None, min_length=1, max_length=100, description="in its place, of a multi-valued attribute: all that fit"
    )

    @model_validator(mode="after")
    def _label_if_decided(self) -> Self:
        given = [each for each in (self.label, self.labels) if each is not None]
        if len(given) != (self.decision == "label"):
            raise ValueError("label: it, or `labels`, is needed for the decision `label`, and for no other")
        return self

    @property
    def chosen(self) -> tuple[str, ...]:
        """The labels that fit."""
        return tuple(self.labels or ()) if self.label is None else (self.label,)


class ReviewReply(Reply):
    item: int
    undone: ReviewItem | None = Field(description="the pair, to be judged again, where its decision was undone")


class PromiseReply(Reply):
    """A promise, and what reviewers of the random share found since the sequence started."""

    attribute: str
    situation: Situation
    target: float = Field(description="the precision that is promised of accepted labels")
    judged: int
    right: int
    wrong: int
    skipped: int
    precision: float | None = Field(description="right ones among right and wrong ones; null where there is none")
    lower_bound: float = Field(description="holds at every moment; a skipped judgement counts as wrong")
    upper_bound: float = Field(description="holds at every moment; a skipped judgement counts as right")
    broken: bool = Field(description="the upper bound is under the target: something is wrong")
    withdrawn: bool = Field(description="nothing is accepted any more until the checkpoint is calibrated anew")

    @classmethod
    def of(cls, found: LivePrecision, withdrawn: frozenset[Promise]) -> Self:
        return cls(
            attribute=found.promise.attribute,
            situation=found.promise.situation,
            target=found.promise.target,
            judged=found.right + found.wrong + found.skipped,
            right=found.right,
            wrong=found.wrong,
            skipped=found.skipped,
            precision=found.precision,
            lower_bound=found.lower_bound,
            upper_bound=found.upper_bound,
            broken=found.broken,
            withdrawn=found.promise in withdrawn,
        )


class PrecisionReply(Reply):
    """What was promised of this model's accepted labels, and what people found."""

    model: ModelName
    start: int = Field(description="which start of the sequences this is, counted from 1 in the store")
    week: str = Field(description="the Monday of the week whose listings are judged; each week starts anew")
    confidence_level: float = Field(description="that all bounds, of all promises and all starts, hold together")
    promises: list[PromiseReply]
    waiting: Waiting
