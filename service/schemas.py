"""The types of requests and replies: requests are checked strictly, replies are complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from fastapi import UploadFile
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from model.catalogue.words import Placeholders
from model.inference import predictions
from model.inference.predictions import Abstention, ListingWarning
from model.situations import Situation
from service.errors import InvalidRequest
from service.request_form import check_fields, check_object, is_data_url, split_names

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
    """None where missing, blank or a placeholder: a title that says nothing is treated as missing."""
    image: bytes | str | None
    """The encoded image file, or the same in base64 or as a `data:` URL."""
    url: str | None
    warnings: tuple[ListingWarning, ...] = ()

    @classmethod
    def of(cls, *, id: str | None, title: str | None, image: bytes | str | None = None, url: str | None = None) -> Self:
        """Raises `ValueError` if there is neither a title that says something nor an image."""
        title = title.strip() if title else ""
        meant = said_title(title, id)
        if meant is None and image is None and url is None:
            raise ValueError(
                "a listing needs a title or an image"
                + (": the title is a placeholder or the listing's id, or has no letter" if title else "")
            )
        warnings = (ListingWarning.TITLE_IGNORED,) if title and meant is None else ()
        return cls(id=id, title=meant, image=image, url=url, warnings=warnings)


_PLACEHOLDERS = Placeholders()


def said_title(title: str, id: str | None) -> str | None:
    """Return a title, stripped; None where it says nothing, by the rule for the titles of a catalogue."""
    title = title.strip()
    return title if _PLACEHOLDERS.is_title(title, id or "") else None


class Request(BaseModel):
    """No coercion, no unknown fields: a typing mistake is reported, not ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: object) -> object:
        if not isinstance(value, cls):
            check_fields(check_object(value), cls.model_fields)
        return value


def check_members(value: object) -> None:
    """Raise `InvalidRequest` if an object, or its `image`, has too many members."""
    if isinstance(value, dict):
        if len(value) > MAX_MEMBERS:
            raise InvalidRequest(f"an object has {len(value)} members; none here has more than {MAX_MEMBERS}")
        check_members(value.get("image"))


def _url(text: str) -> str:
    text = text.strip()
    if len(text) > MAX_URL_LENGTH and not is_data_url(text):
        raise ValueError(f"a URL may have {MAX_URL_LENGTH} characters; send an image itself as base64")
    return text


URL_SCHEMA = {
    "anyOf": [
        {"type": "string", "maxLength": MAX_URL_LENGTH},
        {"type": "string", "pattern": r"^\s*[Dd][Aa][Tt][Aa]:", "description": "`data:` URL of any length"},
    ]
}
"""Of an image's URL: only a `data:` URL, which is the image, may be longer."""


class ImageSource(Request):
    """An image, by value or by reference: exactly one of the two."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["base64"]}, {"required": ["url"]}]})

    base64: str | SkipJsonSchema[None] = Field(
        None,
        description="the encoded image file (JPEG, PNG, WebP, GIF, AVIF, BMP), in standard or URL-safe base64; padding "
        "may be missing, and line breaks and a `data:…;base64,` before it are accepted",
    )
    url: Annotated[str, AfterValidator(_url), WithJsonSchema(URL_SCHEMA)] | SkipJsonSchema[None] = Field(
        None, description="where the service fetches it: http or https, public addresses; or a `data:` URL"
    )

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, value: object) -> object:
        if not isinstance(value, dict | cls):
            raise ValueError('an image is an object: {"url": "https://…"} or {"base64": "…"}')
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.base64 is None) == (self.url is None):
            raise ValueError("exactly one of base64 and url is needed")
        return self

    @property
    def inline(self) -> str | None:
        """The image itself: base64, or a `data:` URL."""
        return self.url if self.url is not None and is_data_url(self.url) else self.base64

    @property
    def remote(self) -> str | None:
        """The URL that the image is fetched from."""
        return None if self.url is None or is_data_url(self.url) else self.url


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
        return ListingInput.of(id=self.id, title=self.title, image=image.inline, url=image.remote)


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


EXAMPLE: JsonDict = {"id": "sku-1", "title": "Turtle Check Men Navy Blue Shirt"}


class ClassifyRequest(Listing, Options):
    """One listing and what is wanted of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["title"]}, {"required": ["image"]}],
            "examples": [{**EXAMPLE, "target_precision": 0.95, "top_k": 2}],
        }
    )


class BatchRequest(Options):
    """Many listings and what is wanted of all of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"listings": [EXAMPLE, {"id": "sku-2", "title": "Women Brown Leather Handbag"}], "top_k": 1}]
        }
    )

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

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: object) -> object:
        check_fields(check_object(value), cls.model_fields)
        return value

    @field_validator("image", mode="before")
    @classmethod
    def _is_file(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError("an image is sent as a file, with a file name (in curl: -F image=@photo.jpg)")
        return value

    @property
    def options(self) -> Options:
        """The options, lists split at their commas."""
        return Options(
            attributes=split_names(self.attributes or ()),
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


class Verdict(Reply):
    """A label, and whether it may be used."""

    label: str = Field(description="`accepted` says whether it may be used")
    confidence: float = Field(description="calibrated, between 0 and 1")
    accepted: bool = Field(description="whether the label may be used at the target precision")
    abstention: Abstention | None = Field(
        description="why the label is not accepted; null where it is. The first of these that holds: "
        "`unfamiliar_listing`: the listing is unlike those that the thresholds were certified on, so nothing of it is "
        "accepted. `not_applicable`: listings of this product type never bear the attribute. `not_certified`: no "
        "threshold could be certified at this target precision. `modalities_disagree`: "
        "image and title, each taken alone, contradict each other, over the whole listing or on this attribute. "
        "`low_confidence`: the confidence is below the threshold. Later versions may add reasons",
        examples=[None, "low_confidence"],
    )
    threshold: float | None = Field(description="null where none could be certified: then nothing is accepted")


class AttributeReply(Verdict):
    """A single-valued attribute: a listing has one label. The label is always the best candidate."""

    target_precision: float
    candidates: list[Candidate]
    modality_attention: ModalityAttention
    explanation: Explanation | SkipJsonSchema[None] = Field(None, description="only where `explain` was asked for")

    @classmethod
    def of(cls, prediction: predictions.AttributePrediction) -> Self:
        """Return an attribute's reply; `explanation` is left unset, and so out of the reply, where there is none."""
        return cls(
            **_verdict(prediction),
            candidates=[Candidate(label=c.label, confidence=c.confidence) for c in prediction.candidates],
            **_attribute(prediction),
        )


class LabelSetReply(Reply):
    """A multi-valued attribute: a listing may have several labels."""

    labels: list[Verdict] = Field(
        min_length=1,
        description="all accepted labels, then further ones, up to `top_k` in all; each best first. What is promised "
        "is the precision of the accepted labels, not that none is missing",
    )
    target_precision: float
    modality_attention: ModalityAttention
    explanation: Explanation | SkipJsonSchema[None] = Field(
        None, description="of the likeliest label alone, not of each accepted one; only where `explain` was asked for"
    )

    @property
    def accepted(self) -> bool:
        """Whether a label is accepted."""
        return self.labels[0].accepted

    @classmethod
    def of(cls, prediction: predictions.AttributePrediction) -> Self:
        """Return an attribute's reply; `explanation` as in `AttributeReply.of`."""
        return cls(labels=[Verdict(**_verdict(each)) for each in prediction.labels], **_attribute(prediction))


def attribute_reply(prediction: predictions.AttributePrediction) -> AttributeReply | LabelSetReply:
    """Return the reply of a single-valued or a multi-valued attribute."""
    return (LabelSetReply if prediction.labels else AttributeReply).of(prediction)


def _verdict(found: predictions.AttributePrediction | predictions.LabelPrediction) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Verdict.model_fields}


def _attribute(prediction: predictions.AttributePrediction) -> dict[str, Any]:
    """Return the fields that every attribute has."""
    fields: dict[str, Any] = {
        "target_precision": prediction.target_precision,
        "modality_attention": ModalityAttention(**prediction.modality_attention),
    }
    if (found := prediction.explanation) is not None:
        fields["explanation"] = Explanation.of(found)
    return fields


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
    attributes: dict[str, AttributeReply | LabelSetReply]

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
            attributes={name: attribute_reply(attribute) for name, attribute in attributes.items()},
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


class Borne(Reply):
    """The listings of a product type that the model was trained on."""

    listings: int
    labelled: int = Field(description="how many of them have a label for the attribute all the same")


class AttributeInfo(Reply):
    labels: list[str]
    separator: str | None = Field(
        description="what stands between the labels of a listing in a table, where the attribute is multi-valued; null "
        "where a listing has one label",
        examples=[None, "|"],
    )
    names: dict[str, dict[str, str]] = Field(
        description="what people call labels: by label, a name for each language tag (RFC 5646), and maybe a "
        "`description`; labels without a name are left out",
        examples=[{"Navy Blue": {"de": "Marineblau", "description": "the colour of naval uniforms"}}],
    )
    not_applicable: dict[str, Borne] = Field(
        description="the product types whose listings never bear the attribute, and how many of them were seen: where "
        "such a product type is accepted, nothing of the attribute is"
    )
    thresholds: dict[str, dict[str, float | None]] = Field(
        description="per situation (image_and_title, image, title) and target precision; null: none certified"
    )


class AttributesReply(Reply):
    target_precisions: list[float]
    product_type: str | None = Field(
        description="the attribute that decides which others are not applicable; null where none does"
    )
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


class JobRows(Reply):
    total: int
    done: int = Field(description="that have an answer or an error")
    failed: int = Field(description="of those done: that have an error")


class RowProblem(Reply):
    line: int = Field(description="of the table; of a Parquet file or a JSON list, the number of the row")
    id: str
    reason: str


class JobTable(Reply):
    """How the table was read, and which of its rows are no listings: each has its error in the results too."""

    form: str
    invalid: int
    problems: list[RowProblem] = Field(description="the first 100 of them")


class JobCallback(Reply):
    """Whether the end of the job was told to the URL that was handed in with it."""

    url: str
    attempts: int
    delivered: datetime | None = Field(description="when it was answered with a 2xx status")
    next: datetime | None = Field(description="when it is sent, or sent again; null before the job's end, and at last")
    error: str | None = Field(description="what was wrong with the last attempt")


class JobReply(Reply):
    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    created: datetime
    started: datetime | None
    finished: datetime | None
    model: ModelName = Field(description="what all of its rows are computed with")
    attributes: list[str]
    target_precision: float
    rows: JobRows
    rate: float | None = Field(description="rows per second since it was started; null before")
    seconds_left: float | None = Field(description="at that rate; null where it is not running")
    table: JobTable
    error: str | None = Field(description="why it has failed")
    callback: JobCallback | None = Field(description="null where none was asked for")

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> Self:
        """Return the reply for a row of the store's table of jobs, read at its `now`."""
        started, finished = job["started"], job["finished"]
        seconds = (finished or job["now"]) - started if started is not None else 0.0
        rate = job["rows_done"] / seconds if seconds > 0 else None
        left = (job["rows"] - job["rows_done"]) / rate if rate and job["status"] == "running" else None
        return cls(
            id=job["id"],
            status=job["status"],
            created=datetime.fromtimestamp(job["created"], UTC),
            started=_time(started),
            finished=_time(finished),
            model=ModelName(
                name=job["model"],
                version=job["version"],
                engine=job["engine"],
                calibration=job["calibration"] or None,
            ),
            attributes=list(job["attributes"]),
            target_precision=job["target_precision"],
            rows=JobRows(total=job["rows"], done=job["rows_done"], failed=job["rows_failed"]),
            rate=rate,
            seconds_left=left,
            table=JobTable(**job["report"]),
            error=job["error"],
            callback=None
            if job["callback_url"] is None
            else JobCallback(
                url=job["callback_url"],
                attempts=job["callback_attempts"],
                delivered=_time(job["callback_delivered"]),
                next=_time(job["callback_due"]),
                error=job["callback_error"],
            ),
        )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class JobsReply(Reply):
    jobs: list[JobReply] = Field(description="newest first")


class StatusReply(Reply):
    status: str
