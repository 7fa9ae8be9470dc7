"""What a predictor answers, and what it must be able to do: plain types, no torch.

`model/inference/predictor.py` implements the protocols below; `service/` is written and tested against them alone, so
that its tests run a small fake and need neither torch nor a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from model.situations import Situation
from model.tasks import Task

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a checkpoint says of itself, and how it has been loaded."""

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
    """Those that have been calibrated, ascending; no other can be asked for."""
    calibration: str = ""
    """Stands for all temperatures and thresholds: another one, another calibration; empty for none."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's metrics.json, as measured on its test part."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A label and its calibrated confidence, in [0, 1]."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a picture that the network sees, its edges as shares of the picture's width and height.

    From 0 to 1 is the picture as it was given; below and above lies what it is padded with, and where the
    network sees a crop alone, the frame lies within.
    """

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class ImageExplanation:
    """How much each part of the image speaks for the label: `weights[row][column]`, non-negative, summing to 1.

    The grid covers `frame` evenly.
    """

    rows: int
    columns: int
    weights: list[list[float]]
    frame: Frame


@dataclass(frozen=True, slots=True)
class TokenWeight:
    """How much one word of the title speaks for the label; non-negative, summing to 1 over the title."""

    token: str
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an attribute's label rests on; a modality that the listing lacks is None."""

    image: ImageExplanation | None
    text: tuple[TokenWeight, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributePrediction:
    """The answer for one attribute of one listing."""

    label: str
    """The best candidate, whether accepted or not."""
    confidence: float
    accepted: bool
    threshold: float | None
    """None where no threshold could be certified at this target precision: then nothing is accepted."""
    target_precision: float
    candidates: tuple[Candidate, ...]
    """Best first, at most `top_k`; the first is `label`."""
    modality_attention: Mapping[str, float]
    """`{"image": …, "text": …}`, summing to 1; an absent modality has 0."""
    explanation: Explanation | None


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
        """How many listings it is to the network: 1, and more where it is to be explained."""
        ...


class Prediction(Protocol):
    """One listing's answer: immutable, off the device."""

    @property
    def situation(self) -> Situation: ...

    def read(self, attribute: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """Return the answer for `attribute`, its threshold chosen by this listing's own situation."""
        ...


class Predictor(Protocol):
    """A loaded checkpoint: `prepare` each listing, `collate` some, `predict` them together."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def tasks(self) -> tuple[Task, ...]: ...

    def thresholds(self, attribute: str) -> Mapping[Situation, Mapping[float, float | None]]:
        """Return the threshold of each situation and target precision, None where none could be certified."""
        ...

    # What is prepared and batched is each predictor's own matter, hence `Any` between the three steps.

    def prepare(self, title: str | None, image: Image | None, *, explain: bool = False) -> Any:
        """Turn a title and an RGB image of any size into a `Prepared`; on the CPU, in any thread.

        Raises `ValueError` when both are None.
        """
        ...

    def collate(self, items: Sequence[Any]) -> Any:
        """Put prepared listings together and move them to the device; may run beside `predict`."""
        ...

    def predict(self, batch: Any) -> Sequence[Prediction]:
        """Answer a batch, in its order; one thread at a time."""
        ...

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        """Run each padded shape once, so that no caller pays for it; return the seconds of each stage."""
        ...
