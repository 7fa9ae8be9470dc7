"""The shapes and statuses of section 7, on the real application."""

from __future__ import annotations

from tests.service.conftest import Client, as_base64, encoded


async def test_classify_answers_every_attribute_by_default(client: Client) -> None:
    response = await client.classify(id="sku-1", title="Navy shirt", image={"base64": as_base64(encoded())})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["id"] == "sku-1"
    assert body["model"] == {"name": "fake", "version": "0123456789ab"}
    assert set(body["attributes"]) == {"baseColour", "season"}
    colour = body["attributes"]["baseColour"]
    assert set(colour) == {
        "label",
        "confidence",
        "accepted",
        "threshold",
        "target_precision",
        "candidates",
        "modality_attention",
    }
    assert colour["label"] == colour["candidates"][0]["label"]
    assert len(colour["candidates"]) == 3
    assert colour["target_precision"] == 0.95
    assert sum(colour["modality_attention"].values()) == 1
