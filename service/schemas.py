"""The types of requests and replies: requests are checked strictly, replies are complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator
from pydantic.json_schema import SkipJsonSchema

from model.inference import predictions
from model.inference.predictions import Abstention, ListingWarning
from model.situations import Situation
from service.errors import InvalidRequest

MAX_TITLE = 4096
MAX_ID = 256
MAX_URL_LENGTH = 2048
MAX_NAMES = 1000
"""Attributes that a request may name."""
MAX_MEMBERS = 32
"""Members of an object, more than any type here has: pydantic would report each unknown one, which is slow for many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingInput:
    """A listing as it was sent, by whichever route; its shape is valid, its image has not been looked at."""

    id: str | None
    title: str | None
    """None where missing or blank: a title without words is treated as missing."""
    image: bytes | str | None
    """The encoded image file, or the same in base64."""
    url: str | None

    @classmethod
    def of(cls, *, id: str | None, title: str | None, image: bytes | str | None = None, url: str | None = None) -> Self:
        """Raises `ValueError` if there is neither a title nor an image."""
        title = title.strip() or None if title else None
        if title is None and image is None and url is None:
            raise ValueError("a listing needs a title or an image")
        return cls(id=id, title=title, image=image, url=url)


class Request(BaseModel):
    """No coercion, no unknown fields: a typing mistake is reported, not ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def check_members(value: object) -> None:
    """Raise `InvalidRequest` if an object, or its `image`, has too many members."""
    if isinstance(value, dict):
        if len(value) > MAX_MEMBERS:
            raise InvalidRequest(f"an object has {len(value)} members; none here has more than {MAX_MEMBERS}")
        check_members(value.get("image"))


class ImageSource(Request):
    """An image, by value or by reference: exactly one of the two."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["base64"]}, {"required": ["url"]}]})

    base64: str | SkipJsonSchema[None] = Field(
        None, description="the encoded image file (JPEG, PNG, WebP, GIF, AVIF, BMP), in standard base64"
    )
    url: Annotated[str, Field(max_length=MAX_URL_LENGTH)] | SkipJsonSchema[None] = Field(
        None, description="where the service fetches it: http or https, public addresses"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.base64 is None) == (self.url is None):
            raise ValueError("exactly one of base64 and url is needed")
        return self


class Listing(Request):
    """One product: a title, an image, or both."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["title"]}, {"required": ["image"]}]})

    id: str | None = Field(None, max_length=MAX_ID, description="the caller's own, repeated in the reply")
    title: str | None = Field(None, max_length=MAX_TITLE, description="tokens beyond the model's text context are cut")
    image: ImageSource | None = None

    @model_validator(mode="after")
    def _title_or_image(self) -> Self:
        self.to_input()
        return self

    def to_input(self) -> ListingInput:
        """Raises `ValueError` if there is neither a title nor an image."""
        image = self.image or ImageSource.model_construct()
        return ListingInput.of(id=self.id, title=self.title, image=image.base64, url=image.url)


class Options(Request):
    """What is wanted of each listing."""

    attributes: list[str] | None = Field(
        None, min_length=1, max_length=MAX_NAMES, description="default: all that the checkpoint reads"
    )
    target_precision: float | None = Field(
        None, description="one of those that were calibrated (GET /v1/model); default: the configured one"
    )
    top_k: int = Field(3, ge=1, le=1000, description="candidates per attribute, at most")
    explain: bool = Field(
        False, description="add which parts of the image and words of the title each label rests on; slower"
    )


class ClassifyRequest(Listing, Options):
    """One listing and what is wanted of it."""


class BatchRequest(Options):
    """Many listings and what is wanted of all of them."""

    # The route checks them one by one, so that a bad listing fails alone, and only after counting them, so that
    # a million of them cost nothing.
    listings: list[SkipValidation[Listing]] = Field(min_length=1)


class UploadForm(BaseModel):
    """A listing and its options as a multipart form."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image: UploadFile | None = Field(None, description="the image file")
    id: str | None = Field(None, max_length=MAX_ID)
    title: str | None = Field(None, max_length=MAX_TITLE)
    attributes: list[str] | None = Field(None, description="repeated, or separated by commas")
    target_precision: float | None = None
    top_k: int = Field(3, ge=1, le=1000)
    explain: bool = False

    @property
    def options(self) -> Options:
        """The options, lists split at their commas."""
        names = [name.strip() for value in self.attributes or () for name in value.split(",")]
        return Options(
            attributes=[name for name in names if name] or None,
            target_precision=self.target_precision,
            top_k=self.top_k,
            explain=self.explain,
        )


VERSION = "first 12 hex digits of the SHA-256 of the checkpoint's weights"
ENGINE = "what computes the forward pass: torch, openvino-f32, openvino-bf16 or openvino-int8"
CALIBRATION = "12 hex digits that change with each temperature, threshold and limit in use; null without a calibration"


class Reply(BaseModel):
    model_config = ConfigDict(frozen=True)


class Candidate(Reply):
    label: str
    confidence: float


class ModalityAttention(Reply):
    """How much each modality weighed; they sum to 1, and one that is missing has 0."""

    image: float
    text: float


class Frame(Reply):
    """Which part of the image the grid covers, its edges as shares of the image's width and height.

    From 0 to 1 is the image as it was sent. Below 0 and above 1 the model saw padding; a frame within 0 and 1 is a
    crop, and nothing outside it was seen.
    """

    left: float
    top: float
    right: float
    bottom: float


class ImageExplanation(Reply):
    """How much each part of the image speaks for the label, row by row: what the label loses once that part is covered.

    They sum to 1.
    """

    rows: int
    columns: int
    weights: list[list[float]]
    frame: Frame


class TokenWeight(Reply):
    """A word of the title as it was written, and how much it speaks for the label: all the title's sum to 1."""

    token: str
    weight: float


class Explanation(Reply):
    """What the label rests on; null for a modality that the listing lacks."""

    image: ImageExplanation | None
    text: list[TokenWeight] | None

    @classmethod
    def of(cls, found: predictions.Explanation) -> Self:
        image, text = found.image, found.text
        return cls(
            image=None if image is None else ImageExplanation(**asdict(image)),
            text=None if text is None else [TokenWeight(token=t.token, weight=t.weight) for t in text],
        )


class AttributeReply(Reply):
    label: str = Field(description="always the best candidate; `accepted` says whether it may be used")
    confidence: float = Field(description="calibrated, between 0 and 1")
    accepted: bool = Field(description="whether the label may be used at the target precision")
    abstention: Abstention | None = Field(
        description="why the label is not accepted; null where it is. The first of these that holds: "
        "`unfamiliar_listing`: the listing is unlike those that the thresholds were certified on, so nothing of it is "
        "accepted. `not_certified`: no threshold could be certified at this target precision. `modalities_disagree`: "
        "image and title, each taken alone, contradict each other, over the whole listing or on this attribute. "
        "`low_confidence`: the confidence is below the threshold. Later versions may add reasons",
        examples=[None, "low_confidence"],
    )
    threshold: float | None = Field(description="null where none could be certified: then nothing is accepted")
    target_precision: float
    candidates: list[Candidate]
    modality_attention: ModalityAttention
    explanation: Explanation | SkipJsonSchema[None] = Field(None, description="only where `explain` was asked for")

    @classmethod
    def of(cls, prediction: predictions.AttributePrediction) -> Self:
        """Return an attribute's reply; `explanation` is left unset, and so out of the reply, where there is none."""
        fields: dict[str, Any] = {
            "label": prediction.label,
            "confidence": prediction.confidence,
            "accepted": prediction.accepted,
            "abstention": prediction.abstention,
            "threshold": prediction.threshold,
            "target_precision": prediction.target_precision,
            "candidates": [Candidate(label=c.label, confidence=c.confidence) for c in prediction.candidates],
            "modality_attention": ModalityAttention(**prediction.modality_attention),
        }
        if (found := prediction.explanation) is not None:
            fields["explanation"] = Explanation.of(found)
        return cls(**fields)


class ModelName(Reply):
    """Which checkpoint, engine and calibration answered."""

    name: str
    version: str = Field(description=VERSION, examples=["3f0c8a1be2d4"])
    engine: str = Field(description=ENGINE, examples=["torch"])
    calibration: str | None = Field(description=CALIBRATION, examples=["9a41c07d55fe"])

    @classmethod
    def of(cls, info: predictions.ModelInfo) -> Self:
        return cls(name=info.name, version=info.version, engine=info.engine, calibration=info.calibration or None)


class Scope(Reply):
    """What the listing was answered from, and whether it is like those that the thresholds were certified on."""

    situation: Situation = Field(
        description="the modalities that the answer is from; a title that was ignored is not among them",
        examples=["image_and_title"],
    )
    familiarity: float | None = Field(
        description="conformal p-value, above 0 and at most 1: the share of reference listings of this situation that "
        "are as typical as this one or less. Null where the checkpoint has no scope gate",
        examples=[0.41],
    )
    in_scope: bool | None = Field(
        description="whether the familiarity is high enough; if not, no label is accepted. Null where the checkpoint "
        "has no scope gate: then nothing checks it",
        examples=[True],
    )
    agreement: float | None = Field(
        description="conformal p-value, above 0 and at most 1, of image and title belonging together: the lower, the "
        "more they contradict each other. Null with one modality, or where the checkpoint has no scope gate",
        examples=[0.67],
    )

    @classmethod
    def of(cls, scope: predictions.Scope) -> Self:
        return cls(
            situation=scope.situation,
            familiarity=scope.familiarity,
            in_scope=scope.in_scope,
            agreement=scope.agreement,
        )


class ClassifyReply(Reply):
    id: str | None
    model: ModelName
    scope: Scope
    warnings: list[ListingWarning] = Field(
        description="what to know about how the listing was read. `title_truncated`: the title has more tokens than "
        "the model reads; those beyond were cut. `title_ignored`: the title is a placeholder, or unfamiliar beside a "
        "familiar image, and the answer is from the image alone. `profile_unreadable`: the image's colour profile "
        "cannot be read; its colours were taken as sRGB. Later versions may add warnings",
        examples=[[], ["title_truncated"]],
    )
    attributes: dict[str, AttributeReply]

    @classmethod
    def of(
        cls,
        id: str | None,
        info: predictions.ModelInfo,
        prediction: predictions.Prediction,
        attributes: Mapping[str, predictions.AttributePrediction],
    ) -> Self:
        """Return a listing's reply; `attributes`: those of its prediction that were asked for."""
        return cls(
            id=id,
            model=ModelName.of(info),
            scope=Scope.of(prediction.scope),
            warnings=list(prediction.warnings),
            attributes={name: AttributeReply.of(attribute) for name, attribute in attributes.items()},
        )


class Problem(Reply):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class FailedListing(Reply):
    id: str | None
    error: Problem


class BatchReply(Reply):
    """One result per listing, in order."""

    results: list[ClassifyReply | FailedListing]


class AttributeInfo(Reply):
    labels: list[str]
    thresholds: dict[str, dict[str, float | None]] = Field(
        description="per situation (image_and_title, image, title) and target precision; null: none certified"
    )


class AttributesReply(Reply):
    target_precisions: list[float]
    attributes: dict[str, AttributeInfo]


class ModelReply(Reply):
    name: str
    version: str = Field(description=VERSION)
    engine: str = Field(description=ENGINE)
    calibration: str | None = Field(description=CALIBRATION)
    scope_gate: bool = Field(
        description="whether unfamiliar listings are recognised; without a scope gate, every listing counts as in scope"
    )
    backbone: str
    parameters: int
    device: str
    dtype: str
    image_size: list[int] = Field(
        min_length=2, max_length=2, description="height and width of the model's input, in pixels"
    )
    target_precisions: list[float]
    metrics: dict[str, Any] = Field(description="measured on the checkpoint's test part")

    @classmethod
    def of(cls, info: predictions.ModelInfo) -> Self:
        return cls(
            name=info.name,
            version=info.version,
            engine=info.engine,
            calibration=info.calibration or None,
            scope_gate=info.scope_gate,
            backbone=info.backbone,
            parameters=info.parameters,
            device=info.device,
            dtype=info.dtype,
            image_size=list(info.image_size),
            target_precisions=list(info.target_precisions),
            metrics=dict(info.metrics),
        )


class StatusReply(Reply):
    status: str
