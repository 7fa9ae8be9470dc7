"""A small deterministic predictor that can be made to fail, and remembers its batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from PIL import Image

from model.config import PreprocessConfig
from model.inference.predictions import (
    Abstention,
    AttributePrediction,
    Candidate,
    Explanation,
    Frame,
    ImageExplanation,
    ListingWarning,
    ModelInfo,
    Scope,
    TokenWeight,
)
from model.inputs.preprocess import ModelImage
from model.situations import Situation
from model.tasks import Task
from tests.verdicts import verdict

TASKS: tuple[Task, ...] = (
    Task(name="baseColour", labels=("Black", "Blue", "Navy Blue", "Red")),
    Task(name="season", labels=("Summer", "Winter")),
)
TARGETS = (0.9, 0.95, 0.99)
WHOLE = Frame(0.0, 0.0, 1.0, 1.0)  # as of a network that squashes images to its size
WARM_UP = "warm-up"  # the title of the listing that the service warms up with
UNFAMILIAR = "cordless drill"  # a title with these words makes the listing unfamiliar
DISAGREEING = "contradicts"  # beside an image: on the whole listing; as in "season contradicts": on that attribute
CONTEXT = 40  # words of a title that are read
SCOPE_LEVEL = 0.01


INFO = ModelInfo(
    name="fake",
    version="0123456789ab",
    backbone="none",
    parameters=1,
    device="cpu",
    dtype="float32",
    image_size=(80, 60),
    target_precisions=TARGETS,
    calibration="ba9876543210",
    scope_gate=True,
    metrics={"rows": 1},
)

RESIZING = PreprocessConfig(image_size=INFO.image_size, context_length=CONTEXT, resize="squash")


@dataclass(frozen=True, slots=True)
class FakePrepared:
    title: str | None
    pixel: tuple[int, ...] | None
    explain: bool
    warnings: tuple[ListingWarning, ...] = ()
    bare: bool = False

    @property
    def situation(self) -> Situation:
        if self.title is None:
            return Situation.IMAGE
        return Situation.TITLE if self.pixel is None else Situation.IMAGE_AND_TITLE

    def says(self, words: str) -> bool:
        return self.title is not None and words in self.title

    @property
    def nbytes(self) -> int:
        return 1000

    @property
    def work(self) -> int:
        return 20 if self.explain else 1


@dataclass(frozen=True, slots=True)
class FakePrediction:
    listing: FakePrepared

    @property
    def scope(self) -> Scope:
        listing = self.listing
        if listing.bare:
            return Scope(situation=listing.situation, familiarity=None, in_scope=None, agreement=None)
        familiarity = 0.001 if listing.says(UNFAMILIAR) else 0.5
        agreement = None
        if listing.situation is Situation.IMAGE_AND_TITLE:
            agreement = 0.002 if self._disagrees() else 0.75
        return Scope(
            situation=listing.situation,
            familiarity=familiarity,
            in_scope=familiarity >= SCOPE_LEVEL,
            agreement=agreement,
        )

    @property
    def warnings(self) -> tuple[ListingWarning, ...]:
        return self.listing.warnings

    def _disagrees(self) -> bool:
        """Whether image and title contradict each other over the listing as a whole."""
        attributes = any(self.listing.says(f"{task.name} {DISAGREEING}") for task in TASKS)
        return self.listing.says(DISAGREEING) and not attributes

    def _abstention(self, name: str, confidence: float, threshold: float | None) -> Abstention | None:
        listing = self.listing
        by_threshold = verdict(confidence, threshold)
        if listing.says(UNFAMILIAR) and not listing.bare:
            return Abstention.UNFAMILIAR_LISTING
        if by_threshold is Abstention.NOT_CERTIFIED:
            return by_threshold
        apart = self._disagrees() or listing.says(f"{name} {DISAGREEING}")
        if listing.situation is Situation.IMAGE_AND_TITLE and apart:
            return Abstention.MODALITIES_DISAGREE
        return by_threshold

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """The answer is a function of the listing alone, so that any mix-up of answers shows."""
        listing = self.listing
        (labels,) = (task.labels for task in TASKS if task.name == name)
        digest = sha256(f"{name}|{listing.title}|{listing.pixel}".encode()).digest()
        weights = [1 + digest[position] for position in range(len(labels))]
        ranked = sorted(
            (Candidate(label, weight / sum(weights)) for label, weight in zip(labels, weights, strict=True)),
            key=lambda candidate: -candidate.confidence,
        )
        threshold = None if listing.bare else FakePredictor.threshold(name, target_precision)
        image = {Situation.IMAGE: 1.0, Situation.TITLE: 0.0, Situation.IMAGE_AND_TITLE: digest[-1] / 255}[
            listing.situation
        ]
        return AttributePrediction(
            label=ranked[0].label,
            confidence=ranked[0].confidence,
            abstention=self._abstention(name, ranked[0].confidence, threshold),
            threshold=threshold,
            target_precision=target_precision,
            candidates=tuple(ranked[:top_k]),
            modality_attention={"image": image, "text": 1 - image},
            explanation=self._explanation() if listing.explain else None,
        )

    def _explanation(self) -> Explanation:
        words = self.listing.title.split() if self.listing.title else None
        return Explanation(
            image=None if self.listing.pixel is None else ImageExplanation(2, 2, [[0.25, 0.25], [0.25, 0.25]], WHOLE),
            text=None if words is None else tuple(TokenWeight(word, 1 / len(words)) for word in words),
        )


@dataclass
class FakePredictor:
    """`trouble` is called with each listing's title inside `predict`, and may raise or sleep."""

    seconds: float = 0.0
    trouble: Callable[[str | None], None] = lambda title: None
    bare: bool = False
    """Without a calibration and a scope gate."""

    info = INFO
    tasks = TASKS
    resizing = RESIZING

    def __post_init__(self) -> None:
        if self.bare:
            self.info = replace(INFO, target_precisions=(), calibration="", scope_gate=False)
        self.batches: list[list[str | None]] = []
        self.free = threading.Event()  # cleared: batches hang until it is set
        self.free.set()

    @staticmethod
    def threshold(attribute: str, target_precision: float) -> float | None:
        """The highest target is certified for nothing, to have that case too."""
        return {0.9: 0.4, 0.95: 0.5, 0.99: None}[target_precision]

    def thresholds(self, attribute: str) -> Mapping[Situation, Mapping[float, float | None]]:
        return {situation: {target: self.threshold(attribute, target) for target in TARGETS} for situation in Situation}

    def prepare(
        self,
        title: str | None,
        image: Image.Image | ModelImage | None,
        *,
        explain: bool = False,
        warnings: Sequence[ListingWarning] = (),
    ) -> FakePrepared:
        if title is None and image is None:
            raise ValueError("neither title nor image")
        pixel = None
        if image is not None:
            pixels = np.asarray(image).transpose(2, 0, 1) if isinstance(image, Image.Image) else image.pixels
            pixel = tuple(round(float(channel.mean())) for channel in pixels)
        truncated = (ListingWarning.TITLE_TRUNCATED,) if title and len(title.split()) > CONTEXT else ()
        return FakePrepared(title, pixel, explain, (*warnings, *truncated), self.bare)

    def collate(self, items: Sequence[FakePrepared]) -> list[FakePrepared]:
        return list(items)

    def predict(self, batch: list[FakePrepared]) -> list[FakePrediction]:
        if any(listing.title != WARM_UP for listing in batch):
            self.batches.append([listing.title for listing in batch])
            assert self.free.wait(30)
            time.sleep(self.seconds)
        for listing in batch:
            self.trouble(listing.title)
        return [FakePrediction(listing) for listing in batch]

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        return {"forward": 0.0}
