"""What a predictor answers, and what it must be able to do: plain types and numpy, no torch.

`model.inference.predictor.Predictor` implements the protocols below. `service/` is written and tested against
`ListingPredictor` alone, and `model/evaluation/` against `RawPredictor`, so that their tests run a small fake and
need neither torch nor a checkpoint.

Shapes: B listings of a batch, T attributes, C_t labels of attribute t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from model.errors import UncalibratedTargetError
from model.situations import ListingWarning as ListingWarning  # noqa: PLC0414 - part of an answer, so named here too
from model.situations import Situation
from model.tasks import Task
from model.trust.applicability import Applicability

if TYPE_CHECKING:
    from PIL.Image import Image

    from model.inputs.preprocess import ModelImage, Resizing


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a checkpoint contains, and how it has been loaded."""

    name: str
    version: str
    """First 12 hex digits of the SHA-256 of the weights file."""
    backbone: str
    parameters: int
    device: str
    dtype: str
    image_size: tuple[int, int]
    """Height and width of the network's input, in pixels."""
    target_precisions: tuple[float, ...]
    """Those that have been calibrated, ascending; no other can be asked for (`check_target_precision`)."""
    calibration: str = ""
    """12 hex digits of a hash of all temperatures, thresholds and limits; empty where there is no calibration."""
    engine: str = "torch"
    """What computes the forward pass."""
    scope_gate: bool = False
    """Whether the checkpoint can tell unfamiliar listings: without it every listing counts as in scope."""
    applicability: Applicability | None = None
    """Which product types never bear which attributes; None where that was not learned."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's metrics.json, as measured on its test part."""


def check_target_precision(info: ModelInfo, target_precision: float) -> None:
    """Raise `UncalibratedTargetError`, which names those that are calibrated, unless this target precision is."""
    calibrated = info.target_precisions
    if not calibrated:
        raise UncalibratedTargetError(f"checkpoint {info.name} is not calibrated; run `cma-clip calibrate` first")
    if target_precision not in calibrated:
        raise UncalibratedTargetError(
            f"target precision {target_precision} was not calibrated; there are {', '.join(map(str, calibrated))}"
        )


# --- answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawOutputs:
    """A batch's outputs before calibration: what the network computed, as numpy arrays."""

    logits: tuple[NDArray[np.float32], ...]
    """Per attribute, in the order of the tasks, `[B, C_t]`."""
    attention: NDArray[np.float32]
    """Weights of image and text per attribute, `[B, T, 2]`; they sum to 1 over the last axis."""
    embeddings: NDArray[np.float32]
    """The aggregated embeddings of image and text, `[B, 2, D]`; zeros for an absent modality."""


@dataclass(frozen=True, slots=True)
class SituationOutputs:
    """Those listings of a batch that can be answered in one situation, computed from its modalities alone."""

    rows: NDArray[np.intp]
    """Their places in the batch, ascending, `[n]`."""
    raw: RawOutputs
    """Of these n listings."""
    titles: tuple[str | None, ...]
    """n of them, None where the situation has none."""


class Abstention(StrEnum):
    """Why a label is not accepted; where several reasons hold, the first one in this order."""

    UNFAMILIAR_LISTING = "unfamiliar_listing"
    """The listing is unlike those that the thresholds were certified on: nothing of it is accepted."""
    NOT_APPLICABLE = "not_applicable"
    """Listings of this product type never bear the attribute."""
    NOT_CERTIFIED = "not_certified"
    """No threshold could be certified at this target precision, or the target was not calibrated."""
    MODALITIES_DISAGREE = "modalities_disagree"
    """Image and title, each taken alone, contradict each other: over the whole listing, or on this attribute."""
    LOW_CONFIDENCE = "low_confidence"
    """The confidence is below the threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a listing was answered from, and whether the certificates speak of listings like it."""

    situation: Situation
    """The modalities that the answer is from."""
    familiarity: float | None
    """Conformal p-value in (0, 1]: the share of reference listings that are as typical or less. None without a gate."""
    in_scope: bool | None
    """Whether the familiarity reaches the scope level. None without a gate."""
    agreement: float | None
    """Conformal p-value of image and title contradicting each other; None with one modality, or without a gate."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A label and its calibrated confidence, in [0, 1]."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of an image that the network sees, its edges as fractions of the image's width and height.

    From 0 to 1 is the image as it was given. Below 0 and above 1 lies the padding; a frame within 0 and 1 is a crop.
    """

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def of_box(cls, box: tuple[float, float, float, float], size: tuple[int, int]) -> Self:
        """Return the frame of a box (left, top, right, bottom), in pixels of an image of `size` (width, height)."""
        (left, top, right, bottom), (width, height) = box, size
        return cls(left / width, top / height, right / width, bottom / height)


@dataclass(frozen=True, slots=True)
class ImageExplanation:
    """How much each part of the image supports the label: `weights[row][column]`, non-negative, summing to 1.

    The grid covers `frame` evenly.
    """

    rows: int
    columns: int
    weights: list[list[float]]
    frame: Frame


@dataclass(frozen=True, slots=True)
class TokenWeight:
    """How much one word of the title supports the label; non-negative, summing to 1 over the title."""

    token: str
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an attribute's label is based on; a modality that the listing lacks is None."""

    image: ImageExplanation | None
    text: tuple[TokenWeight, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPrediction:
    """One label of a multi-valued attribute: whether the listing has it."""

    label: str
    confidence: float
    abstention: Abstention | None
    """Why the label is not accepted; None where it is."""
    threshold: float | None
    """None where no threshold could be certified at this target precision."""

    @property
    def accepted(self) -> bool:
        """Whether the label may be used at the target precision."""
        return self.abstention is None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributePrediction:
    """One attribute of one listing, predicted.

    `label`, `confidence`, `abstention` and `threshold` of a multi-valued attribute are those of the first of `labels`:
    it is accepted where any label is.
    """

    label: str
    """The best candidate, whether accepted or not."""
    confidence: float
    abstention: Abstention | None
    """Why the label is not accepted; None where it is."""
    threshold: float | None
    """None where no threshold could be certified at this target precision: then nothing is accepted."""
    target_precision: float
    candidates: tuple[Candidate, ...]
    """Best first, at most `top_k`; the first is `label`."""
    modality_attention: Mapping[str, float]
    """`{"image": …, "text": …}`, summing to 1; an absent modality has 0."""
    explanation: Explanation | None
    labels: tuple[LabelPrediction, ...] = ()
    """Of a multi-valued attribute: all accepted labels, then further ones, up to `top_k` in all and one at least; each
    best first. Empty for a single-valued one."""
    likely: tuple[str, ...] = ()
    """Of a multi-valued attribute: the labels that are likelier than not, or the likeliest where none is, whatever the
    target precision and `top_k`."""

    @property
    def accepted(self) -> bool:
        """Whether the label may be used at the target precision."""
        return self.abstention is None


# --- protocols ---------------------------------------------------------------------------------------------


class Prepared(Protocol):
    """One listing, decoded and tokenized: ready to be batched, and opaque but for these."""

    @property
    def situation(self) -> Situation: ...
    @property
    def explain(self) -> bool: ...
    @property
    def nbytes(self) -> int:
        """Memory that it holds while it waits, in bytes."""
        ...

    @property
    def work(self) -> int:
        """How many listings the network computes for it: 1, and more where it is to be explained."""
        ...


class Prediction(Protocol):
    """One listing's answer: immutable, off the device."""

    @property
    def scope(self) -> Scope: ...
    @property
    def warnings(self) -> tuple[ListingWarning, ...]: ...

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """Return the prediction of one attribute, accepted or not by the threshold for this listing's situation."""
        ...


class BatchingPredictor(Protocol):
    """What all predictors share: each listing is prepared, and some of them are put into a batch.

    Prepared listings and batches are private to each predictor, hence `Any` between the steps.
    """

    @property
    def info(self) -> ModelInfo: ...
    @property
    def tasks(self) -> tuple[Task, ...]: ...
    @property
    def resizing(self) -> Resizing:
        """How images are fitted into the model's input: what a decode worker must know to make a `ModelImage`."""
        ...

    def prepare(
        self, title: str | None, image: Image | ModelImage | None, *, warnings: Sequence[ListingWarning] = ()
    ) -> Any:
        """Turn a title and an image into a `Prepared`; on the CPU, in any thread.

        image: RGB, of any size, or the model's pixels of one, as `resizing` says.
        `warnings`: those of the steps before, which an answer repeats. Raises `ValueError` when both are None.
        """
        ...

    def collate(self, items: Sequence[Any]) -> Any:
        """Put prepared listings together and move them to the device; may run beside the computation of a batch."""
        ...


class RawPredictor(BatchingPredictor, Protocol):
    """A predictor that can be calibrated and measured: it gives its outputs before calibration."""

    def outputs(self, batch: Any) -> Mapping[Situation, SituationOutputs]:
        """Compute a batch in every situation that occurs; one thread at a time.

        A listing with both modalities is in all three.
        """
        ...


class ListingPredictor(BatchingPredictor, Protocol):
    """A predictor that answers listings: `prepare` each, `collate` some, `predict` them together."""

    def prepare(
        self,
        title: str | None,
        image: Image | ModelImage | None,
        *,
        explain: bool = False,
        warnings: Sequence[ListingWarning] = (),
    ) -> Any:
        """Prepare a listing; with `explain`, one that is answered with explanations."""
        ...

    def predict(self, batch: Any) -> Sequence[Prediction]:
        """Answer a batch, in its order; one thread at a time."""
        ...

    def thresholds(self, attribute: str) -> Mapping[Situation, Mapping[float, float | None]]:
        """Return the threshold of each situation and target precision, None where none could be certified."""
        ...

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        """Run each padded shape once, so that no caller pays for it; return the seconds of each stage."""
        ...
