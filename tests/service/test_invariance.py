"""A listing's answer is the same alone, in any batch and under load: the real network, through the real service."""

from __future__ import annotations

import asyncio
import base64
import io
import random
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.inference.predictor import ModelInput, Predictor
from tests.conftest import COLOURS, SHAPES, draw
from tests.service.conftest import Client, as_base64, on_port

SHIPPED = Path(__file__).parents[2] / "weights" / "fashion"
LISTINGS = 200


def image(row: int) -> dict[str, str]:
    buffer = io.BytesIO()
    draw(COLOURS[row % 4], SHAPES[row // 4 % 2], row).save(buffer, "PNG")
    return {"base64": as_base64(buffer.getvalue())}


def listings() -> list[dict[str, Any]]:
    """Titles of every length, images of every colour, and every third listing without one or the other."""
    chance = random.Random(3)
    words = ["navy", "blue", "shirt", "men", "turtle", "check", "summer", "shoes", "red", "2012", "Ünïcode", "-"]
    return [
        {
            "id": f"sku-{row}",
            # The first word has letters: a title without any is a placeholder.
            "title": None
            if row % 3 == 1
            else " ".join([chance.choice(words[:9]), *chance.choices(words, k=chance.randint(0, 29))]),
            "image": None if row % 3 == 2 else image(row),
        }
        for row in range(LISTINGS)
    ]


@pytest.fixture(params=["tiny", "shipped"])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    folder = request.getfixturevalue("checkpoint_folder") if request.param == "tiny" else SHIPPED
    if not (folder / "model.safetensors").exists():
        pytest.skip("no checkpoint is shipped yet")
    predictor: Any = Predictor.load(folder)
    async with on_port(predictor, request_timeout_ms=60_000) as client:
        yield client


async def test_two_hundred_listings_are_answered_the_same_in_any_company(service: Client) -> None:
    given = listings()
    alone = [(await service.classify(**listing)).json() for listing in given]
    for size in (7, 32):
        for start in range(0, LISTINGS, size):
            body = {"listings": given[start : start + size]}
            response = await service.post("/v1/classify/batch", json=body)
            check_same(alone[start : start + size], response.json()["results"])
    together = await asyncio.gather(*(service.classify(**listing) for listing in given))
    check_same(alone, [response.json() for response in together])
    assert await service.metric("cma_clip_batch_size_bucket", le="4.0") < await service.metric(
        "cma_clip_batch_size_count"
    )


def test_two_hundred_listings_are_read_the_same_in_batches_of_exactly_a_size() -> None:
    """The same without the service, whose batches hold whatever happens to wait."""
    predictor = Predictor.load(SHIPPED)

    def decoded(listing: dict[str, Any]) -> ModelInput:
        image = listing["image"] and Image.open(io.BytesIO(base64.b64decode(listing["image"]["base64"])))
        return predictor.prepare(listing["title"], image)

    items = [decoded(listing) for listing in listings()]
    alone = [predictor.predict(predictor.collate([item]))[0] for item in items]
    for size in (7, 32):
        batches = [items[start : start + size] for start in range(0, LISTINGS, size)]
        together = chain.from_iterable(predictor.predict(predictor.collate(batch)) for batch in batches)
        for single, batched in zip(alone, together, strict=True):
            for task in predictor.tasks:
                one, other = (each.attribute(task.name, target_precision=0.95, top_k=1) for each in (single, batched))
                assert (one.label, one.accepted) == (other.label, other.accepted)
                assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


def check_same(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Assert the same ids, labels and verdicts, and confidences and weights within a thousandth."""
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one["id"] == other["id"]
        assert one["attributes"].keys() == other["attributes"].keys()
        for name, attribute in one["attributes"].items():
            same = other["attributes"][name]
            assert (attribute["label"], attribute["accepted"]) == (same["label"], same["accepted"])
            assert attribute["confidence"] == pytest.approx(same["confidence"], abs=1e-3)
            assert attribute["modality_attention"] == pytest.approx(same["modality_attention"], abs=1e-3)
            assert sum(attribute["modality_attention"].values()) == pytest.approx(1, abs=1e-5)
