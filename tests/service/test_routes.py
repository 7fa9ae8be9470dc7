"""The shapes and statuses of DESIGN.md section 7, on the real application."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from model.inputs.preprocess import ModelImage
from service.schemas import ListingInput
from tests.service.conftest import Client, as_base64, encoded, in_process, until
from tests.service.fake_predictor import CONTEXT, DISAGREEING, UNFAMILIAR, FakePredictor, FakePrepared

PNG = {"base64": as_base64(encoded())}
MODEL = {"name": "fake", "version": "0123456789ab", "engine": "torch", "calibration": "ba9876543210"}


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that a response is a whole problem document, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    return body


# ── what is answered ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_listing_is_answered_for_every_attribute_by_default(client: Client) -> None:
    response = await client.classify(id="sku-1", title="Navy shirt", image=PNG)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"id", "model", "scope", "warnings", "attributes"}
    assert body["id"] == "sku-1"
    assert body["model"] == MODEL
    assert body["scope"] == {"situation": "image_and_title", "familiarity": 0.5, "in_scope": True, "agreement": 0.75}
    assert body["warnings"] == []
    assert set(body["attributes"]) == {"baseColour", "season"}
    colour = body["attributes"]["baseColour"]
    assert set(colour) == {
        "label", "confidence", "accepted", "abstention", "threshold", "target_precision", "candidates",
        "modality_attention",
    }  # fmt: skip
    assert colour["candidates"][0] == {"label": colour["label"], "confidence": colour["confidence"]}
    assert len(colour["candidates"]) == 3
    assert colour["accepted"] == (colour["confidence"] >= colour["threshold"])
    assert colour["abstention"] == (None if colour["accepted"] else "low_confidence")
    assert colour["target_precision"] == 0.95
    assert set(colour["modality_attention"]) == {"image", "text"}


@pytest.mark.parametrize(
    ("listing", "attention"),
    [({"title": "Navy shirt"}, {"image": 0, "text": 1}), ({"image": PNG}, {"image": 1, "text": 0})],
)
async def test_one_modality_is_enough(client: Client, listing: dict[str, Any], attention: dict[str, int]) -> None:
    body = (await client.classify(**listing)).json()
    assert body["id"] is None
    assert body["attributes"]["season"]["modality_attention"] == attention


@pytest.mark.parametrize(("listing", "situation"), [({"title": "Navy shirt"}, "title"), ({"image": PNG}, "image")])
async def test_the_scope_says_what_the_answer_is_from(client: Client, listing: dict[str, Any], situation: str) -> None:
    scope = (await client.classify(**listing)).json()["scope"]
    assert scope == {"situation": situation, "familiarity": 0.5, "in_scope": True, "agreement": None}


@pytest.mark.parametrize("target_precision", [0.9, 0.99])
async def test_of_an_unfamiliar_listing_nothing_is_accepted(client: Client, target_precision: float) -> None:
    body = (await client.classify(title=UNFAMILIAR, image=PNG, target_precision=target_precision)).json()
    assert (body["scope"]["familiarity"], body["scope"]["in_scope"]) == (0.001, False)
    for attribute in body["attributes"].values():
        assert (attribute["accepted"], attribute["abstention"]) == (False, "unfamiliar_listing")


async def test_image_and_title_may_contradict_each_other_over_all_or_on_one_attribute(client: Client) -> None:
    async def reasons(title: str, **options: Any) -> tuple[float | None, dict[str, str | None]]:
        body = (await client.classify(title=title, target_precision=0.9, **options)).json()
        return body["scope"]["agreement"], {name: each["abstention"] for name, each in body["attributes"].items()}

    everything = dict.fromkeys(("baseColour", "season"), "modalities_disagree")
    assert await reasons(f"shirt {DISAGREEING}", image=PNG) == (0.002, everything)
    agreement, found = await reasons(f"season {DISAGREEING}", image=PNG)
    assert (agreement, found["season"]) == (0.75, "modalities_disagree")
    assert found["baseColour"] != "modalities_disagree"
    agreement, found = await reasons(f"shirt {DISAGREEING}")
    assert agreement is None
    assert "modalities_disagree" not in found.values()


async def test_a_truncated_title_is_said(client: Client) -> None:
    assert (await client.classify(title="shirt " * (CONTEXT + 1))).json()["warnings"] == ["title_truncated"]
    assert (await client.classify(title="shirt " * CONTEXT)).json()["warnings"] == []


async def test_without_a_gate_and_a_calibration_the_answer_says_so() -> None:
    async with in_process(FakePredictor(bare=True)) as client:
        body = (await client.classify(title="shirt", image=PNG)).json()
        assert body["scope"] == {
            "situation": "image_and_title", "familiarity": None, "in_scope": None, "agreement": None,
        }  # fmt: skip
        assert body["model"]["calibration"] is None
        assert {each["abstention"] for each in body["attributes"].values()} == {"not_certified"}
        model = (await client.get("/v1/model")).json()
        assert (model["scope_gate"], model["calibration"]) == (False, None)


async def test_a_blank_title_beside_an_image_counts_as_none(client: Client) -> None:
    blank, none = [(await client.classify(title=title, image=PNG)).json() for title in (" \n ", None)]
    assert blank == none


async def test_options_choose_what_is_answered(client: Client) -> None:
    options = {"attributes": ["season", "season"], "target_precision": 0.99, "top_k": 1, "explain": True}
    body = (await client.classify(title="Navy shirt", image=PNG, **options)).json()
    assert list(body["attributes"]) == ["season"]
    season = body["attributes"]["season"]
    assert season["threshold"] is None
    assert (season["accepted"], season["abstention"]) == (False, "not_certified")
    assert season["target_precision"] == 0.99
    assert len(season["candidates"]) == 1
    frame = {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0}
    weights = [[0.25, 0.25], [0.25, 0.25]]
    assert season["explanation"]["image"] == {"rows": 2, "columns": 2, "weights": weights, "frame": frame}
    assert [token["token"] for token in season["explanation"]["text"]] == ["Navy", "shirt"]


async def test_an_explanation_is_null_for_the_modality_that_is_missing(client: Client) -> None:
    body = (await client.classify(title="Navy shirt", explain=True)).json()
    assert body["attributes"]["season"]["explanation"]["image"] is None
    body = (await client.classify(image=PNG, explain=True)).json()
    assert body["attributes"]["season"]["explanation"]["text"] is None


async def test_the_configured_target_precision_is_the_default() -> None:
    async with in_process(target_precision=0.9) as client:
        body = (await client.classify(title="Navy shirt")).json()
        assert body["attributes"]["season"]["target_precision"] == 0.9


@pytest.mark.parametrize("title", ["nan", "N/A", " - ", "\u200b", "(null)", "Untitled", "12345", "sku-1", "SKU-1 "])
async def test_a_title_that_says_nothing_is_ignored_and_told(client: Client, title: str) -> None:
    image = encoded()
    alone = (await client.classify(id="sku-1", image={"base64": as_base64(image)})).json()
    told = {**alone, "warnings": ["title_ignored"]}
    listing = {"id": "sku-1", "title": title, "image": {"base64": as_base64(image)}}
    assert (await client.classify(**listing)).json() == told
    batch = await client.post("/v1/classify/batch", json={"listings": [listing, {"id": "sku-1", "title": title}]})
    answered, refused = batch.json()["results"]
    assert answered == told
    assert (refused["id"], refused["error"]["code"]) == ("sku-1", "invalid_request")
    form = {"id": "sku-1", "title": title}
    assert (await client.post("/v1/classify/upload", data=form, files={"image": image})).json() == told
    without = await client.post("/v1/classify/upload", files={name: (None, value) for name, value in form.items()})
    assert "the title is a placeholder" in check_problem(without, 422, "invalid_request")["detail"]


@pytest.mark.parametrize(
    "write",
    [
        lambda plain: plain.rstrip("="),
        lambda plain: plain.replace("+", "-").replace("/", "_"),
        lambda plain: f"data:image/png;base64,{plain}",
        lambda plain: f" data:;base64,{plain}\n",
        lambda plain: f"DATA:image/png;name=a.png;BASE64,{plain.rstrip('=')}",
    ],
)
async def test_base64_is_taken_as_encoders_write_it(client: Client, write: Callable[[str], str]) -> None:
    file = encoded() + b"\xfb\xef\xbe" * 3 + b"\xff" * 3  # bytes behind the image, so that all characters occur
    plain = as_base64(file + b"\0" * (1 - len(file) % 3))
    assert plain.endswith("=")
    assert {"+", "/"} <= set(plain)
    expected = (await client.classify(image={"base64": plain})).json()
    sent = write(plain)
    assert (await client.classify(image={"base64": sent})).json() == expected
    if "data:" in sent.lower():
        assert (await client.classify(image={"url": sent})).json() == expected


async def test_a_data_url_may_be_longer_than_a_url(client: Client) -> None:
    sent = f"data:image/png;base64,{as_base64(encoded() + bytes(200_000))}"
    assert (await client.classify(image={"url": sent})).status_code == 200


@pytest.mark.parametrize("padding", [0, 100_000])
async def test_a_byte_order_mark_before_json_is_no_part_of_it(client: Client, padding: int) -> None:
    text = json.dumps({"title": "Red dress"}) + " " * padding
    headers = {"Content-Type": "application/json", "Content-Encoding": "UTF-8"}  # which is no compression
    marked = await client.post("/v1/classify", content=text.encode("utf-8-sig"), headers=headers)
    assert marked.json() == (await client.classify(title="Red dress")).json()
    wide = await client.post("/v1/classify", content=text.encode("utf-16"), headers=headers)
    assert "send it in UTF-8" in check_problem(wide, 422, "invalid_request")["detail"]


async def test_base64_may_be_wrapped_in_lines(client: Client) -> None:
    wrapped = "\n".join(PNG["base64"][start : start + 76] for start in range(0, len(PNG["base64"]), 76))
    assert (await client.classify(image={"base64": wrapped})).json() == (await client.classify(image=PNG)).json()


async def test_attributes_and_model_are_described(client: Client) -> None:
    attributes = (await client.get("/v1/attributes")).json()
    assert attributes["target_precisions"] == [0.9, 0.95, 0.99]
    assert attributes["product_type"] is None
    assert attributes["attributes"]["season"] == {
        "labels": ["Summer", "Winter"],
        "separator": None,
        "names": {},
        "not_applicable": {},
        "thresholds": {
            situation: {"0.9": 0.4, "0.95": 0.5, "0.99": None} for situation in ("image_and_title", "image", "title")
        },
    }
    assert (await client.get("/v1/model")).json() == {
        **MODEL, "scope_gate": True, "backbone": "none", "parameters": 1, "device": "cpu", "dtype": "float32",
        "image_size": [80, 60], "target_precisions": [0.9, 0.95, 0.99], "metrics": {"rows": 1},
    }  # fmt: skip


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_is_answered_in_order_and_as_each_listing_alone(client: Client) -> None:
    listings = [{"id": f"sku-{n}", "title": f"shirt {n}", "image": PNG if n % 2 else None} for n in range(50)]
    body = (await client.post("/v1/classify/batch", json={"listings": listings})).json()
    alone = [(await client.classify(**listing)).json() for listing in listings]
    assert body["results"] == alone


async def test_a_bad_listing_fails_alone_in_its_place(client: Client) -> None:
    listings = [
        {"id": "good", "title": "shirt"},
        {"id": "nothing"},
        {"id": "base64", "image": {"base64": "?"}},
        {"id": "nonsense", "image": {"base64": as_base64(b"nonsense" * 9)}},
        {"id": "damaged", "image": {"base64": as_base64(encoded()[:60])}},
        {"id": "both", "image": {"base64": "", "url": "http://x"}},
        {"id": 7, "title": "an id that is no string"},
        {"id": "i" * 257, "title": "an id that is too long"},
        {"id": "long", "title": "t" * 4097},
        {"id": "typo", "tilte": "shirt"},
        "not even an object",
        None,
        {"title": "good too"},
    ]
    response = await client.post("/v1/classify/batch", json={"listings": listings})
    assert response.status_code == 200
    results = response.json()["results"]
    codes = [result["error"]["code"] if "error" in result else None for result in results]
    assert codes == [
        None, "invalid_request", "invalid_request", "unsupported_media_type", "undecodable_image",
        *["invalid_request"] * 7, None,
    ]  # fmt: skip
    assert [result["id"] for result in results] == [
        "good", "nothing", "base64", "nonsense", "damaged", "both", None, None, "long", "typo", None, None, None,
    ]  # fmt: skip
    for result in results[1:-1]:
        assert set(result) == {"id", "error"}
        assert result["error"]["request_id"] == response.headers["x-request-id"]


async def test_options_of_a_batch_hold_for_all_its_listings(client: Client) -> None:
    body = {"listings": [{"title": "a"}, {"title": "b"}], "attributes": ["season"], "target_precision": 0.9}
    results = (await client.post("/v1/classify/batch", json=body)).json()["results"]
    assert [list(result["attributes"]) for result in results] == [["season"]] * 2
    assert {result["attributes"]["season"]["target_precision"] for result in results} == {0.9}


async def test_more_listings_than_the_limit_are_too_many() -> None:
    async with in_process(max_listings=3) as client:
        listings = [{"title": "shirt"}] * 4
        check_problem(await client.post("/v1/classify/batch", json={"listings": listings}), 413, "payload_too_large")
        assert (await client.post("/v1/classify/batch", json={"listings": listings[1:]})).status_code == 200


async def test_a_million_listings_are_refused_before_each_is_looked_at(client: Client) -> None:
    for body in (
        '{"listings":[' + ",".join(["0"] * 900_000) + "]}",
        '{"listings":[' + ",".join(["{}"] * 2_000_000) + "]}",
    ):
        response = await client.post("/v1/classify/batch", content=body, headers={"Content-Type": "application/json"})
        check_problem(response, 413, "payload_too_large")


@pytest.mark.parametrize("body", [{}, {"listings": []}, {"listings": {}}, {"listings": None}, [], "x", 1])
async def test_a_batch_of_another_shape_is_refused_whole(client: Client, body: Any) -> None:
    check_problem(await client.post("/v1/classify/batch", json=body), 422, "invalid_request")


# ── uploads ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_upload_is_answered_as_the_same_listing_in_json(client: Client) -> None:
    form = {"id": "sku-1", "title": "shirt", "attributes": "season, baseColour", "target_precision": "0.9"}
    options = {"top_k": 2, "explain": True}
    response = await client.post(
        "/v1/classify/upload",
        data={**form, **{name: str(value) for name, value in options.items()}},
        files={"image": ("photo.png", encoded(), "image/png")},
    )
    assert response.status_code == 200, response.text
    as_json = await client.classify(
        **{**form, "attributes": ["season", "baseColour"], "target_precision": 0.9}, **options, image=PNG
    )
    assert response.json() == as_json.json()


async def test_attributes_of_an_upload_may_be_repeated(client: Client) -> None:
    response = await client.post(
        "/v1/classify/upload",
        data={"attributes": ["season", "baseColour"]},
        files={"image": ("photo.png", encoded())},
    )
    assert list(response.json()["attributes"]) == ["season", "baseColour"]


@pytest.mark.parametrize(
    ("data", "image", "code"),
    [
        ({"id": "1"}, None, "invalid_request"),
        ({"title": "t" * 4097}, encoded(), "invalid_request"),
        ({"top_k": "many"}, encoded(), "invalid_request"),
        ({"tilte": "shirt"}, encoded(), "invalid_request"),
        ({"attributes": "colour"}, encoded(), "unknown_attribute"),
        ({}, b"", "undecodable_image"),
        ({}, encoded()[:50], "undecodable_image"),
    ],
)
async def test_a_bad_upload_is_named(client: Client, data: dict[str, str], image: bytes | None, code: str) -> None:
    files = {"image": ("photo.png", image)} if image is not None else {"other": ("", b"")}
    check_problem(await client.post("/v1/classify/upload", data=data, files=files), 422, code)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
async def test_an_upload_asks_for_a_precision_that_is_a_number(client: Client, value: str) -> None:
    response = await client.post("/v1/classify/upload", data={"target_precision": value}, files={"title": (None, "a")})
    assert "target_precision" in check_problem(response, 422, "invalid_request")["detail"]


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "utf-7", '"latin-1"', ""])
async def test_an_upload_in_another_encoding_is_unsupported(client: Client, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\nshirt\r\n--b--\r\n'
    for named, status in ((charset, 415), ("UTF-8", 200), ('"us-ascii"', 200)):
        headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={named}"}
        response = await client.post("/v1/classify/upload", content=body, headers=headers)
        assert response.status_code == status, (named, response.text)


async def test_an_upload_of_another_type_is_unsupported(client: Client) -> None:
    response = await client.post("/v1/classify/upload", data={"title": "as a plain form"})
    check_problem(response, 415, "unsupported_media_type")


async def test_a_broken_form_is_named(client: Client) -> None:
    for content_type, body in [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"nothing of the kind"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="image"'),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--"),
    ]:
        headers = {"Content-Type": content_type}
        response = await client.post("/v1/classify/upload", content=body, headers=headers)
        check_problem(response, 422, "invalid_request")


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("listing", "code", "named"),
    [
        ({}, "invalid_request", "title or an image"),
        ({"title": ""}, "invalid_request", "title or an image"),
        ({"title": "  "}, "invalid_request", "title or an image"),
        ({"title": "t" * 4097}, "invalid_request", "title"),
        ({"title": 7}, "invalid_request", "title"),
        ({"title": "\ud800"}, "invalid_request", "hex escape"),
        ({"title": "a", "id": "i" * 257}, "invalid_request", "id"),
        ({"title": "a", "titel": "b"}, "invalid_request", "no field 'titel' (did you mean title?); the fields are"),
        ({"title": "a", "sku": "b"}, "invalid_request", "did you mean id?"),
        ({"title": "a", "image_url": "b"}, "invalid_request", "did you mean image?"),
        ({"title": "a", "zzzz": "b"}, "invalid_request", "no field 'zzzz'; the fields are"),
        ({"listings": [{"title": "a"}]}, "invalid_request", "/v1/classify/batch"),
        ({"image": {"bas64": ""}}, "invalid_request", "image: there is no field 'bas64' (did you mean base64?)"),
        (
            {"image": "https://example.com/a.jpg"},
            "invalid_request",
            'image: an image is an object: {"url": "https://…"}',
        ),
        ({"image": ["a"]}, "invalid_request", "image: an image is an object"),
        ({"title": "nan"}, "invalid_request", "the title is a placeholder"),
        ({"title": "\u200b"}, "invalid_request", "has no letter"),
        ({"title": " SKU-1", "id": "sku-1"}, "invalid_request", "the listing's id"),
        ({"title": "a", "top_k": 0}, "invalid_request", "top_k"),
        ({"title": "a", "top_k": "3"}, "invalid_request", "top_k"),
        ({"title": "a", "top_k": True}, "invalid_request", "top_k"),
        ({"title": "a", "explain": 1}, "invalid_request", "explain"),
        ({"title": "a", "attributes": []}, "invalid_request", "attributes"),
        ({"title": "a", "attributes": [1] * 50_000}, "invalid_request", "attributes"),
        ({"title": "a", **{f"k{number}": 1 for number in range(30_000)}}, "invalid_request", "30001 members"),
        ({"image": {f"k{number}": 1 for number in range(30_000)}}, "invalid_request", "30000 members"),
        ({"title": "a", "x" * 10_000: 1}, "invalid_request", f"no field {'x' * 64!r};"),
        ({"title": "a", "x" * 100_000: 1}, "invalid_request", "the name of a field"),
        ({"title": "a", "attributes": ["colour"]}, "unknown_attribute", "baseColour, season"),
        ({"title": "a", "target_precision": 0.5}, "invalid_request", "0.9, 0.95, 0.99"),
        ({"title": "a", "target_precision": "0.9"}, "invalid_request", "target_precision"),
        ({"image": {}}, "invalid_request", "exactly one"),
        ({"image": {"base64": "", "url": "http://example.com"}}, "invalid_request", "exactly one"),
        ({"image": {"base64": "not base64!"}}, "invalid_request", "base64"),
        ({"image": {"base64": as_base64(encoded())[:101]}}, "invalid_request", "cut off"),
        ({"image": {"base64": "https://example.com/a.jpg"}}, "invalid_request", "image.url"),
        ({"image": {"base64": "./photos/a.jpg"}}, "invalid_request", "is it a path?"),
        ({"image": {"base64": "data:image/svg+xml,%3Csvg"}}, "invalid_request", "data:image/jpeg;base64,"),
        ({"image": {"url": "data:image/png;base64"}}, "invalid_request", "data:image/jpeg;base64,"),
        ({"image": {"base64": ""}}, "undecodable_image", "empty"),
        ({"image": {"base64": as_base64(encoded()[:-40])}}, "undecodable_image", "PNG"),
        ({"image": {"url": "http://" + "a" * 2048}}, "invalid_request", "url"),
        ({"image": {"url": "ftp://example.com/a.jpg"}}, "image_url_forbidden", "http"),
    ],
)
async def test_the_callers_mistake_is_named(client: Client, listing: dict[str, Any], code: str, named: str) -> None:
    body = json.dumps(listing)
    response = await client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert named in check_problem(response, 422, code)["detail"]
    assert client.predictor.batches == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"title": NaN}', b'{"top_k": ' + b"9" * 5000 + b"}", b"null", b"[]"]
)
async def test_a_body_that_is_no_listing_is_refused(client: Client, body: bytes) -> None:
    response = await client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
    check_problem(response, 422, "invalid_request")


async def test_a_body_of_mistakes_by_the_thousand_is_refused_at_once(client: Client) -> None:
    """pydantic would name each of them: seconds on the event loop, and a gigabyte."""
    crowd = {f"k{number}": 1 for number in range(40_000)}
    for listing in ({"title": "a", "attributes": [1] * 90_000}, {"title": "a", **crowd}, {"image": crowd}):
        began = time.process_time()
        check_problem(await client.classify(**listing), 422, "invalid_request")
        assert time.process_time() - began < 5  # most of it is writing and reading the JSON
    response = await client.post("/v1/classify/batch", json={"listings": [{"title": "a"}, {"id": "b", **crowd}]})
    good, bad = response.json()["results"]
    assert good["attributes"]
    assert bad["error"]["code"] == "invalid_request"
    assert "40001 members" in bad["error"]["detail"]


async def test_details_repeat_nothing_of_the_request(client: Client) -> None:
    response = await client.classify(title="secret words", top_k="secret", image={"base64": "secret!"})
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"%PDF-1.7 ...............", "the image is a PDF document, which is none of the accepted formats (JPEG, "),
        (b"II*\x00" + bytes(100), "a TIFF file"),
        (b"<svg></svg>", "an SVG drawing"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100), "a HEIC file"),
        (b"\n<!DOCTYPE html><title>Sorry</title>", "a web page"),
        (b"\x00" * 64, "the image is in none of the accepted formats"),
    ],
)
async def test_an_image_in_no_accepted_format_is_named(client: Client, data: bytes, told: str) -> None:
    """Whatever its name: the file is called .jpg."""
    response = await client.classify(image={"base64": as_base64(data)})
    detail = check_problem(response, 415, "unsupported_media_type")["detail"]
    assert told in detail
    assert "save it as JPEG" in detail
    upload = await client.post("/v1/classify/upload", files={"image": ("photo.jpg", data, "image/jpeg")})
    assert check_problem(upload, 415, "unsupported_media_type")["detail"] == detail


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_request_of_another_type_is_unsupported(client: Client, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = await client.post("/v1/classify", content=b'{"title": "shirt"}', headers=headers)
    check_problem(response, 415, "unsupported_media_type")


async def test_a_compressed_body_is_unsupported(client: Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = await client.post("/v1/classify", content=gzip.compress(b'{"title": "shirt"}'), headers=headers)
    check_problem(response, 415, "unsupported_media_type")


async def test_an_image_over_its_limits_is_too_large() -> None:
    async with in_process(max_image_bytes=2000, max_image_pixels=10_000) as client:
        spaced = " ".join(as_base64(bytes(3000)))
        check_problem(await client.classify(image={"base64": spaced}), 413, "payload_too_large")
        for image in (bytes(2001), encoded(size=(200, 100))):
            refused = check_problem(await client.classify(image={"base64": as_base64(image)}), 413, "payload_too_large")
            assert re.search(r"at most (2,000 bytes|10,000) are accepted \(CMA_CLIP_MAX_IMAGE_\w+\)", refused["detail"])
            upload = await client.post("/v1/classify/upload", files={"image": ("a.png", image)})
            check_problem(upload, 413, "payload_too_large")
        assert (await client.classify(image={"base64": as_base64(encoded(size=(100, 100)))})).status_code == 200


async def test_head_is_get_without_the_body(client: Client) -> None:
    for path in ("/", "/docs", "/healthz", "/readyz", "/metrics", "/v1/model", "/v1/attributes", "/static/docs.css"):
        assert (await client.head(path)).status_code == 200, path
    assert (await client.head("/v1/classify")).status_code == 405
    counted = {"method": "HEAD", "route": "/healthz", "status": "200"}
    assert await client.metric("cma_clip_http_requests_total", **counted) == 1


async def test_a_page_is_sent_whole_whatever_range_is_asked_for(client: Client) -> None:
    whole = await client.get("/")
    for asked in ("bytes=abc", "bytes=99999999-", "bytes=0-5"):
        response = await client.get("/", headers={"Range": asked})
        assert (response.status_code, response.content) == (200, whole.content)


async def test_unknown_paths_and_methods_are_problems_too(client: Client) -> None:
    check_problem(await client.get("/nowhere"), 404, "not_found")
    check_problem(await client.get("/v1/classify/"), 404, "not_found")
    response = await client.get("/v1/classify")
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


# ── keys, ids, headers ───────────────────────────────────────────────────────────────────────────────────────────


async def test_any_configured_key_opens_and_no_other() -> None:
    async with in_process(api_keys="first, second") as client:
        for path, method in [
            ("/v1/classify", "POST"), ("/v1/classify/batch", "POST"), ("/v1/classify/upload", "POST"),
            ("/v1/attributes", "GET"), ("/v1/model", "GET"),
        ]:  # fmt: skip
            for headers in (
                [],
                [(b"X-API-Key", b"third")],
                [(b"X-API-Key", b"")],
                [(b"X-API-Key", b"firs")],
                [(b"Authorization", b"Bearer first,")],
                [(b"Authorization", b"Basic first")],
                [(b"Authorization", b"Bearer")],
                [(b"X-API-Key", b"\xe9\xff")],
            ):
                response = await client.request(method, path, headers=headers)
                check_problem(response, 401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        for accepted in (
            {"X-API-Key": "first"},
            {"X-API-Key": "second"},
            {"Authorization": "Bearer first"},
            {"Authorization": "bearer second"},
        ):
            assert (await client.post("/v1/classify", json={"title": "a"}, headers=accepted)).status_code == 200
            assert (await client.get("/v1/model", headers=accepted)).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


async def test_a_keys_name_is_logged_and_counted_and_nothing_else_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async with in_process(api_keys="shop:SECRET1,SECRET2") as client:
        with caplog.at_level(logging.INFO, "service.request"):
            for key in ("SECRET1", "SECRET1", "SECRET2", "shop:SECRET1", "shop"):
                await client.post("/v1/classify", json={"title": "a"}, headers={"X-API-Key": key})
            await client.get("/v1/model", headers={"X-API-Key": "SECRET1"})
            await client.classify(title=7)
        fields = [record.fields for record in caplog.records if record.name == "service.request"]  # type: ignore[attr-defined]
        assert [each.get("key") for each in fields] == ["shop", "shop", "key-2", None, None, "shop", None]
        assert "SECRET" not in str(fields)
        assert await client.metric("cma_clip_key_requests_total", key="shop", status="200") == 3
        assert await client.metric("cma_clip_key_requests_total", key="key-2", status="200") == 1


async def test_one_key_over_its_rate_is_refused_and_another_is_not() -> None:
    async with in_process(api_keys="a:one, b:two", key_rate=5) as client:
        one, two = {"X-API-Key": "one"}, {"X-API-Key": "two"}
        batch = {"listings": [{"title": "a"}] * 60}
        assert (await client.post("/v1/classify/batch", json=batch, headers=one)).status_code == 200
        for path, body in (("/v1/classify", {"title": "late"}), ("/v1/classify/batch", batch)):
            refused = await client.post(path, json=body, headers=one)
            check_problem(refused, 429, "rate_limited")
            assert 8 <= int(refused.headers["retry-after"]) <= 12
            assert (await client.post("/v1/classify", json={"title": "a"}, headers=two)).status_code == 200
        assert await client.metric("cma_clip_key_requests_total", key="a", status="429") == 2


async def test_one_key_takes_no_more_than_its_share_of_the_queue() -> None:
    async with in_process(api_keys="a:one, b:two", max_queue=4, key_queue_share=0.5) as client:
        one, two = {"X-API-Key": "one"}, {"X-API-Key": "two"}
        client.predictor.free.clear()
        calls = [asyncio.create_task(client.post("/v1/classify", json={"title": "a"}, headers=one)) for _ in range(2)]
        await until(lambda: client.pipeline.admission.listings == 2)
        check_problem(await client.post("/v1/classify", json={"title": "b"}, headers=one), 429, "rate_limited")
        calls += [asyncio.create_task(client.post("/v1/classify", json={"title": "a"}, headers=two)) for _ in range(2)]
        await until(lambda: client.pipeline.admission.listings == 4)
        client.predictor.free.set()
        assert [(await call).status_code for call in calls] == [200] * 4
        assert (await client.post("/v1/classify", json={"title": "b"}, headers=one)).status_code == 200


async def test_probes_are_logged_only_when_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with in_process() as client:
        with caplog.at_level(logging.INFO, "service.request"):
            for path in ("/healthz", "/readyz", "/metrics", "/v1/model"):
                assert (await client.get(path)).status_code == 200
            client.lifecycle.drain()
            assert (await client.get("/readyz")).status_code == 503
        logged = [record.fields["route"] for record in caplog.records if record.name == "service.request"]  # type: ignore[attr-defined]
        assert logged == ["/v1/model", "/readyz"]


async def test_keys_are_declared_in_the_openapi_document_where_they_are_needed() -> None:
    async with in_process(api_keys="key") as client:
        document = (await client.get("/openapi.json")).json()
        assert len(document["paths"]["/v1/classify"]["post"]["security"]) == 2
        assert "security" not in document["paths"]["/healthz"]["get"]
    async with in_process() as client:
        assert "security" not in (await client.get("/openapi.json")).text


async def test_a_sane_request_id_is_kept_and_another_replaced(client: Client) -> None:
    for given in ("abc-123", "a" * 128, "A.b_c~d:e/f+g=h@i"):
        response = await client.get("/healthz", headers={"X-Request-ID": given})
        assert response.headers["x-request-id"] == given
    seen = set()
    for given in ("", "a" * 129, "a b", 'a"b', "a\tb", "é", "{}", "<a>"):
        response = await client.get("/healthz", headers=[(b"X-Request-ID", given.encode())])
        assert response.headers["x-request-id"] != given
        seen.add(response.headers["x-request-id"])
    assert len(seen) == 8


async def test_every_answer_carries_a_request_id(client: Client) -> None:
    for path in ("/", "/docs", "/metrics", "/readyz", "/nowhere", "/v1/classify", "/v1/model", "/static/docs.css"):
        response = await client.get(path)
        assert len(response.headers["x-request-id"]) == 32
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere(client: Client, path: str) -> None:
    response = await client.get(path)
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"""(src|href|srcset|action|data)\s*=\s*["']?(https?:)?//""", response.text)
    assert "@import" not in response.text
    for script in ("/static/docs.js", "/static/docs.css"):
        assert "http" not in (await client.get(script)).text


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_blanks_around_a_timeout_are_no_part_of_it(client: Client) -> None:
    headers = {"X-Request-Timeout-Ms": "\t 5000 "}
    response = await client.post("/v1/classify", json={"title": "a"}, headers=headers)
    assert response.status_code == 200


async def test_an_explanation_that_cannot_be_in_time_is_not_computed(client: Client) -> None:
    """On arrival nobody knows how long a title is; once it is known, the forecast is made again."""
    for size in [1, 32] * 5:
        client.batcher.cost.observe(size, 0.1 * size)
    headers = {"X-Request-Timeout-Ms": "1000"}
    asked = {"title": "a", "explain": True}
    response = await client.post("/v1/classify", json=asked, headers=headers)
    assert "would take about" in check_problem(response, 504, "deadline_exceeded")["detail"]
    assert client.predictor.batches == []
    assert (await client.post("/v1/classify", json=asked | {"explain": False}, headers=headers)).status_code == 200


@pytest.mark.parametrize("value", ["", "0", "-5", "1.5", "soon", "1e3", "9" * 5000, "٣"])
async def test_a_nonsensical_timeout_is_the_callers_mistake(client: Client, value: str) -> None:
    headers = [(b"X-Request-Timeout-Ms", value.encode())]
    response = await client.post("/v1/classify", json={"title": "a"}, headers=headers)
    check_problem(response, 422, "invalid_request")


async def test_the_callers_deadline_is_kept_and_capped_by_the_servers() -> None:
    async with in_process(request_timeout_ms=50) as client:
        client.predictor.free.clear()
        for headers in ({"X-Request-Timeout-Ms": "20"}, {"X-Request-Timeout-Ms": "999999999"}, {}):
            response = await client.post("/v1/classify", json={"title": "a"}, headers=headers)
            check_problem(response, 504, "deadline_exceeded")


# ── unexpected errors ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_bug_is_a_bare_500_and_the_service_continues(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("at /some/path with a title")

    with monkeypatch.context() as patch:
        patch.setattr(FakePredictor, "prepare", broken)
        body = check_problem(await client.classify(title="a"), 500, "internal_error")
        assert "path" not in str(body)
    assert (await client.classify(title="a")).status_code == 200
    assert client.pipeline.admission.listings == client.pipeline.admission.nbytes == 0


async def test_places_are_given_back_whatever_happens(client: Client) -> None:
    await client.classify(title="a")
    await client.classify(title=7)
    await client.classify(image={"base64": "?"})
    await client.post("/v1/classify/batch", json={"listings": [{"title": "a"}, {}, {"image": PNG}]})
    await client.post("/v1/classify/batch", json={"listings": [{}] * 100})
    admission = client.pipeline.admission
    assert (admission.listings, admission.nbytes) == (0, 0)


async def test_a_request_that_was_refused_costs_no_inference() -> None:
    async with in_process(api_keys="key", max_body_bytes=5000) as client:
        await client.classify(title="no key")
        client.headers["X-API-Key"] = "key"
        await client.classify(title="too long" * 1000)
        await client.classify(title="bad", attributes=["none"])
        await client.classify(title="bad", image={"base64": "?"})
        client.lifecycle.drain()
        check_problem(await client.classify(title="draining"), 503, "draining")
        assert client.predictor.batches == []


class SlowToPrepare(FakePredictor):
    """Decoding and tokenising takes until it is let; `inside` holds the threads that are at it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.may_prepare = threading.Event()
        self.may_prepare.set()  # for the listing that the service warms up with
        self.inside: set[int] = set()

    def prepare(self, title: str | None, image: Image.Image | ModelImage | None, **options: Any) -> FakePrepared:
        self.inside.add(threading.get_ident())
        assert self.may_prepare.wait(10)
        self.inside.discard(threading.get_ident())
        return super().prepare(title, image, **options)


async def test_listings_are_prepared_by_few_threads_off_the_event_loop() -> None:
    predictor = SlowToPrepare()
    async with in_process(predictor) as client:
        predictor.may_prepare.clear()
        waiting = [asyncio.create_task(client.classify(title=str(n), image=PNG)) for n in range(40)]
        threads = client.pipeline.decoding.workers
        await until(lambda: len(predictor.inside) == threads)
        await asyncio.sleep(0.05)
        assert len(predictor.inside) == threads
        assert threading.get_ident() not in predictor.inside
        assert (await client.get("/healthz")).status_code == 200
        predictor.may_prepare.set()
        assert {(await task).status_code for task in waiting} == {200}


async def test_what_has_been_answered_waits_for_no_thread_and_counts_while_one_works_on_it() -> None:
    predictor = SlowToPrepare()
    async with in_process(predictor, request_timeout_ms=300) as client:
        predictor.may_prepare.clear()
        answers = await asyncio.gather(*(client.classify(title=str(n), image=PNG) for n in range(40)))
        for answer in answers:
            check_problem(answer, 504, "deadline_exceeded")
        threads = client.pipeline.decoding.workers
        alive = [each for each in gc.get_objects() if type(each) is ListingInput]
        assert len(alive) == len(predictor.inside) == threads
        assert client.pipeline.admission.listings == 0
        body = len(answers[0].request.content)
        assert threads * body <= client.pipeline.admission.nbytes <= threads * (body + 1)
        predictor.may_prepare.set()
        await until(lambda: client.pipeline.admission.nbytes == 0)
        assert (await client.classify(title="a", image=PNG)).status_code == 200


async def test_requests_are_answered_while_others_wait_for_the_device(client: Client) -> None:
    client.predictor.free.clear()
    waiting = asyncio.create_task(client.classify(title="a"))
    await until(lambda: client.predictor.batches)
    assert (await client.get("/healthz")).status_code == 200
    check_problem(await client.classify(title=7), 422, "invalid_request")
    client.predictor.free.set()
    assert (await waiting).status_code == 200
