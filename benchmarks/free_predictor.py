"""A predictor whose answers cost nothing: what `benchmarks.tables` measures bulk labelling around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from model.config import PreprocessConfig
from model.inference.predictions import AttributePrediction, Candidate, ListingWarning, ModelInfo, Scope
from model.inputs.preprocess import ModelImage
from model.situations import Situation
from model.tasks import Task

_SCOPE = Scope(situation=Situation.TITLE, familiarity=0.5, in_scope=True, agreement=None)

_PREDICTION = AttributePrediction(
    label="Red",
    confidence=0.975,
    abstention=None,
    threshold=0.5,
    target_precision=0.95,
    candidates=(Candidate("Red", 0.975),),
    modality_attention={"image": 0.0, "text": 1.0},
    explanation=None,
)


class FreePrediction:
    """The same answer for every listing."""

    scope = _SCOPE
    warnings: tuple[ListingWarning, ...] = ()

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """Return the answer."""
        return _PREDICTION


class FreePredictor:
    """Knows one attribute, and computes nothing."""

    info = ModelInfo(
        name="free",
        version="000000000000",
        backbone="none",
        parameters=0,
        device="cpu",
        dtype="float32",
        image_size=(8, 8),
        target_precisions=(0.95,),
        calibration="none",
        engine="none",
        scope_gate=True,
    )
    resizing = PreprocessConfig(image_size=(8, 8), context_length=8)
    tasks = (Task(name="colour", labels=("Blue", "Red")),)

    def thresholds(self, attribute: str) -> Mapping[Situation, Mapping[float, float | None]]:
        """Return thresholds that everything passes."""
        return {situation: {0.95: 0.5} for situation in Situation}

    def prepare(
        self,
        title: str | None,
        image: Image.Image | ModelImage | None,
        *,
        explain: bool = False,
        warnings: Sequence[ListingWarning] = (),
    ) -> FreePrediction:
        """Return the answer."""
        return FreePrediction()

    def collate(self, items: Sequence[Any]) -> Any:
        """Return the items."""
        return items

    def predict(self, batch: Any) -> Sequence[FreePrediction]:
        """Return the answers."""
        return list(batch)

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        """Do nothing."""
        return {}
