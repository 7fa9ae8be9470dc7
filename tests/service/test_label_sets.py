"""Multi-valued attributes, applicability and label names over HTTP, in the metrics and on the terminal."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console

from model.inference.predictions import (
    Abstention,
    AttributePrediction,
    Candidate,
    Explanation,
    LabelPrediction,
    TokenWeight,
)
from model.tasks import Task
from model.trust.applicability import Applicability, Borne
from service.commands import predict as oneshot
from service.commands.names import REASONS
from service.schemas import ClassifyReply, LabelSetReply
from tests.service.conftest import in_process
from tests.service.fake_predictor import INFO, TASKS, FakePrediction, FakePredictor, FakePrepared

MATERIAL = Task(
    name="material",
    labels=("Cotton", "Linen", "Wool"),
    separator="|",
    names={"Wool": {"de": "Wolle", "description": "of sheep"}},
)
NAMED = Applicability(product_type="baseColour", never={"season": {"Black": Borne(80, 0)}})
CERTAIN = LabelPrediction(label="Wool", confidence=0.99, abstention=None, threshold=0.6)
LIKELY = LabelPrediction(label="Cotton", confidence=0.7, abstention=None, threshold=0.6)
UNLIKELY = LabelPrediction(label="Linen", confidence=0.1, abstention=Abstention.LOW_CONFIDENCE, threshold=0.6)
NOWHERE = "watch"  # a title with this word: the attribute is not applicable


@dataclass(frozen=True, slots=True)
class SetPrediction(FakePrediction):
    """Wool and cotton, always."""

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        if name != MATERIAL.name:
            return FakePrediction.attribute(self, name, target_precision=target_precision, top_k=top_k)
        labels: tuple[LabelPrediction, ...] = (CERTAIN, LIKELY, UNLIKELY)
        if self.listing.says(NOWHERE):
            labels = tuple(replace(each, abstention=Abstention.NOT_APPLICABLE) for each in labels)
        accepted = sum(each.accepted for each in labels)
        shown = labels[: max(1, top_k, accepted)]
        return AttributePrediction(
            label=shown[0].label,
            confidence=shown[0].confidence,
            abstention=shown[0].abstention,
            threshold=shown[0].threshold,
            target_precision=target_precision,
            candidates=tuple(Candidate(each.label, each.confidence) for each in labels[:top_k]),
            modality_attention={"image": 0.0, "text": 1.0},
            explanation=Explanation(image=None, text=(TokenWeight("Wool", 1.0),)) if self.listing.explain else None,
            labels=shown,
            likely=("Wool", "Cotton"),
        )


class SetPredictor(FakePredictor):
    tasks = (*TASKS, MATERIAL)
    info = replace(INFO, applicability=NAMED)

    def predict(self, batch: list[FakePrepared]) -> list[FakePrediction]:
        super().predict(batch)
        return [SetPrediction(listing) for listing in batch]


async def material(**listing: Any) -> dict[str, Any]:
    async with in_process(SetPredictor()) as client:
        reply = await client.classify(**listing)
        assert reply.status_code == 200
        found: dict[str, Any] = reply.json()["attributes"]["material"]
        return found


async def test_a_multi_valued_attribute_has_labels_instead_of_a_label() -> None:
    found = await material(title="Wool and cotton", top_k=1)
    assert found == {
        "labels": [
            {"label": "Wool", "confidence": 0.99, "accepted": True, "abstention": None, "threshold": 0.6},
            {"label": "Cotton", "confidence": 0.7, "accepted": True, "abstention": None, "threshold": 0.6},
        ],
        "target_precision": 0.95,
        "modality_attention": {"image": 0.0, "text": 1.0},
    }
    further = (await material(title="Wool and cotton", top_k=3, explain=True))["labels"][2]
    assert (further["label"], further["accepted"], further["abstention"]) == ("Linen", False, "low_confidence")


async def test_an_explanation_stays() -> None:
    found = await material(title="Wool and cotton", explain=True)
    assert found["explanation"] == {"image": None, "text": [{"token": "Wool", "weight": 1.0}]}


async def test_attributes_tell_separators_names_and_product_types() -> None:
    async with in_process(SetPredictor()) as client:
        found = (await client.get("/v1/attributes")).json()
    assert found["product_type"] == "baseColour"
    attributes = found["attributes"]
    assert attributes["material"]["separator"] == "|"
    assert attributes["material"]["names"] == {"Wool": {"de": "Wolle", "description": "of sheep"}}
    assert attributes["season"]["not_applicable"] == {"Black": {"listings": 80, "labelled": 0}}


async def test_metrics_count_every_label_that_is_likely_and_the_attribute_once() -> None:
    async with in_process(SetPredictor()) as client:
        await client.classify(title="Wool and cotton", top_k=1)
        await client.classify(title=f"Wool {NOWHERE}")
        labels = {each: await client.metric("cma_clip_labels_total", attribute="material", label=each) for each in
                  MATERIAL.labels}  # fmt: skip
        assert labels == {"Cotton": 2, "Linen": 0, "Wool": 2}
        outcomes = {each: await client.metric("cma_clip_predictions_total", attribute="material", outcome=each) for
                    each in ("accepted", "abstained")}  # fmt: skip
        assert outcomes == {"accepted": 1, "abstained": 1}
        reason = {"attribute": "material", "reason": "not_applicable"}
        assert await client.metric("cma_clip_abstentions_total", **reason) == 1


@pytest.mark.parametrize("width", [160, 80])
def test_the_terminal_shows_each_accepted_label(width: int) -> None:
    predictor = SetPredictor()
    (prediction,) = predictor.predict([FakePrepared("Wool and cotton", None, explain=False)])
    answers = {"material": prediction.attribute("material", target_precision=0.95, top_k=3)}
    reply = ClassifyReply.of(None, predictor.info, prediction, answers)
    assert isinstance(reply.attributes["material"], LabelSetReply)
    console = Console(file=io.StringIO(), width=width)
    oneshot.draw(reply, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    wool, cotton = (next(line for line in lines if label in line) for label in ("Wool", "Cotton"))
    assert "99.0%" in wool and "accepted" in wool  # noqa: PT018
    assert "70.0%" in cotton and "accepted" in cotton  # noqa: PT018
    assert any("Linen 10%" in line for line in lines)


def test_every_reason_has_a_short_form() -> None:
    assert set(REASONS) == set(Abstention)
