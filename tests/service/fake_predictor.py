"""A small deterministic predictor that can be made to fail, and remembers its batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from PIL import Image, ImageStat

from model.inference.predictions import (
    AttributePrediction,
    Candidate,
    Explanation,
    Frame,
    ImageExplanation,
    ListingWarning,
    ModelInfo,
    Scope,
    TokenWeight,
    verdict,
)
from model.situations import Situation
from model.tasks import Task

TASKS = (
    Task(name="baseColour", labels=("Black", "Blue", "Navy Blue", "Red")),
    Task(name="season", labels=("Summer", "Winter")),
)
TARGETS = (0.9, 0.95, 0.99)
WHOLE = Frame(0.0, 0.0, 1.0, 1.0)  # as of a network that squashes images to its size
WARM_UP = "warm-up"  # the title of the listing that the service warms up with


@dataclass(frozen=True, slots=True)
class FakePrepared:
    title: str | None
    pixel: tuple[int, ...] | None
    explain: bool
    warnings: tuple[ListingWarning, ...] = ()

    @property
    def situation(self) -> Situation:
        if self.title is None:
            return Situation.IMAGE
        return Situation.TITLE if self.pixel is None else Situation.IMAGE_AND_TITLE

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
        agreement = 0.75 if self.listing.situation is Situation.IMAGE_AND_TITLE else None
        return Scope(situation=self.listing.situation, familiarity=0.5, in_scope=True, agreement=agreement)

    @property
    def warnings(self) -> tuple[ListingWarning, ...]:
        return self.listing.warnings

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
        threshold = FakePredictor.threshold(name, target_precision)
        image = {Situation.IMAGE: 1.0, Situation.TITLE: 0.0, Situation.IMAGE_AND_TITLE: digest[-1] / 255}[
            listing.situation
        ]
        return AttributePrediction(
            label=ranked[0].label,
            confidence=ranked[0].confidence,
            abstention=verdict(ranked[0].confidence, threshold),
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

    info = ModelInfo(
        name="fake",
        version="0123456789ab",
        backbone="none",
        parameters=1,
        device="cpu",
        dtype="float32",
        image_size=(80, 60),
        target_precisions=TARGETS,
        metrics={"rows": 1},
    )
    tasks = TASKS

    def __post_init__(self) -> None:
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
        image: Image.Image | None,
        *,
        explain: bool = False,
        warnings: Sequence[ListingWarning] = (),
    ) -> FakePrepared:
        if title is None and image is None:
            raise ValueError("neither title nor image")
        pixel = None
        if image is not None:
            assert image.mode == "RGB"
            pixel = tuple(round(value) for value in ImageStat.Stat(image).mean)
        return FakePrepared(title, pixel, explain, tuple(warnings))

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
