"""The metrics of DESIGN.md section 9: their names, that their series are bounded, and that they add up."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.observability.logs import JsonFormatter, TextFormatter, configure
from tests.service.conftest import Client, as_base64, encoded, in_process, on_port
from tests.service.fake_predictor import DISAGREEING, UNFAMILIAR, FakePredictor

NAMES = {
    "cma_clip_http_requests": {"method", "route", "status"},
    "cma_clip_http_request_duration_seconds": {"method", "route", "le"},
    "cma_clip_stage_duration_seconds": {"stage", "le"},
    "cma_clip_batch_size": {"le"},
    "cma_clip_queue_depth": set(),
    "cma_clip_in_flight": set(),
    "cma_clip_rejected": {"reason"},
    "cma_clip_predictions": {"attribute", "outcome"},
    "cma_clip_labels": {"attribute", "label"},
    "cma_clip_confidence": {"attribute", "le"},
    "cma_clip_modality_attention": {"attribute", "modality", "le"},
    "cma_clip_model_info": {"name", "version", "backbone", "device", "dtype", "engine"},
    "cma_clip_abstentions": {"attribute", "reason"},
    "cma_clip_familiarity": {"situation", "le"},
    "cma_clip_unfamiliar": {"situation"},
}
REVIEW_NAMES = {
    "cma_clip_reviewed": {"attribute", "situation", "target", "verdict"},
    "cma_clip_reviewed_precision": {"attribute", "situation", "target"},
    "cma_clip_reviewed_precision_lower_bound": {"attribute", "situation", "target"},
    "cma_clip_reviewed_precision_upper_bound": {"attribute", "situation", "target"},
    "cma_clip_reviewed_target_precision": {"attribute", "situation", "target"},
    "cma_clip_reviews_dropped": set(),
}
"""Where a store is configured; the other replicas have no series of them."""
PNG = {"base64": as_base64(encoded())}
FORMATS: tuple[Literal["json", "text"], ...] = ("json", "text")


async def exposition(client: Client) -> str:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return response.text


async def test_names_and_labels_are_as_agreed(client: Client) -> None:
    await client.classify(title="a", image=PNG)
    await client.classify(title=7)
    families = {family.name: family for family in text_string_to_metric_families(await exposition(client))}
    for name, labels in NAMES.items():
        samples = [sample for sample in families[name].samples if not sample.name.endswith("_created")]
        assert samples, name
        assert {label for sample in samples for label in sample.labels} == labels, name
    buckets = {
        float(sample.labels["le"])
        for sample in families["cma_clip_http_request_duration_seconds"].samples
        if "le" in sample.labels
    }
    assert (min(buckets), sorted(buckets)[-2]) == (0.001, 10)
    sizes = [sample.labels["le"] for sample in families["cma_clip_batch_size"].samples if "le" in sample.labels]
    assert [float(size) for size in sizes] == [*(2.0**power for power in range(11)), float("inf")]
    assert families["cma_clip_model_info"].samples[0].value == 1


async def test_names_and_labels_of_reviews_are_as_agreed(tmp_path: Path) -> None:
    async with in_process(store=f"sqlite:///{tmp_path / 'store.db'}") as client:
        families = {family.name: family for family in text_string_to_metric_families(await exposition(client))}
    for name, labels in REVIEW_NAMES.items():
        samples = [sample for sample in families[name].samples if not sample.name.endswith("_created")]
        assert samples, name
        assert {label for sample in samples for label in sample.labels} == labels, name
    targets = families["cma_clip_reviewed_target_precision"].samples
    assert {sample.labels["target"]: sample.value for sample in targets} == {"0.9": 0.9, "0.95": 0.95, "0.99": 0.99}


async def test_a_scraper_of_no_known_version_gets_the_text_format(client: Client) -> None:
    for accept in ('application/openmetrics-text;version="1.0.0"', "text/plain;version=x", "*/*", ""):
        response = await client.get("/metrics", headers={"Accept": accept})
        assert response.status_code == 200
        assert b"cma_clip_queue_depth" in response.content


async def test_files_of_the_pages_are_counted_apart_from_unknown_paths(client: Client) -> None:
    await client.get("/static/docs.css")
    await client.get("/nowhere")
    for route, status in (("/static", "200"), ("unknown", "404")):
        counted = {"method": "GET", "route": route, "status": status}
        assert await client.metric("cma_clip_http_requests_total", **counted) == 1


async def test_series_exist_at_zero_before_anything_is_answered(client: Client) -> None:
    text = await exposition(client)
    assert 'cma_clip_predictions_total{attribute="season",outcome="accepted"} 0.0' in text
    assert 'cma_clip_labels_total{attribute="season",label="Winter"} 0.0' in text
    assert 'cma_clip_abstentions_total{attribute="season",reason="modalities_disagree"} 0.0' in text
    assert 'cma_clip_unfamiliar_total{situation="image"} 0.0' in text
    assert 'cma_clip_familiarity_bucket{le="0.01",situation="image"} 0.0' in text


async def test_abstentions_are_counted_by_reason_and_unfamiliar_listings_by_situation(client: Client) -> None:
    options = {"target_precision": 0.9, "attributes": ["season"]}
    titles = [UNFAMILIAR, f"season {DISAGREEING}", f"season {DISAGREEING}"]
    for title in titles:
        await client.classify(title=title, image=PNG, **options)
    await client.classify(title=UNFAMILIAR, **options)
    for reason, count in {"unfamiliar_listing": 2, "modalities_disagree": 2, "not_certified": 0}.items():
        assert await client.metric("cma_clip_abstentions_total", attribute="season", reason=reason) == count
    assert await client.metric("cma_clip_abstentions_total", attribute="baseColour", reason="unfamiliar_listing") == 0
    for situation, unfamiliar, listings in (("image_and_title", 1, 3), ("title", 1, 1), ("image", 0, 0)):
        assert await client.metric("cma_clip_unfamiliar_total", situation=situation) == unfamiliar
        assert await client.metric("cma_clip_familiarity_count", situation=situation) == listings
        assert await client.metric("cma_clip_familiarity_bucket", situation=situation, le="0.01") == unfamiliar


async def test_without_a_gate_no_familiarity_is_counted() -> None:
    async with in_process(FakePredictor(bare=True)) as client:
        await client.classify(title=UNFAMILIAR)
        assert await client.metric("cma_clip_familiarity_count", situation="title") == 0
        assert await client.metric("cma_clip_unfamiliar_total", situation="title") == 0
        assert await client.metric("cma_clip_abstentions_total", attribute="season", reason="not_certified") == 1


async def test_nothing_a_caller_sends_grows_the_number_of_series(client: Client) -> None:
    async def some_of_everything(n: int) -> None:
        await client.get(f"/nowhere/{n}")
        await client.request(f"METHOD{n}", "/healthz")
        await client.classify(title=f"title {n}", id=f"id {n}", image=PNG)
        await client.classify(title="a", attributes=[f"attribute {n}"])
        await client.get(f"/static/{n}.js")
        await client.get("/healthz", headers={"X-Request-ID": f"id-{n}", "User-Agent": f"agent {n}"})

    await some_of_everything(0)
    await exposition(client)
    before = len((await exposition(client)).splitlines())
    for n in range(1, 30):
        await some_of_everything(n)
    assert len((await exposition(client)).splitlines()) == before


async def test_the_sums_agree() -> None:
    def trouble(title: str | None) -> None:
        if title and "raise" in title:
            raise ValueError(title)

    async with on_port(FakePredictor(trouble=trouble, seconds=0.002), max_queue=40, max_batch_size=8) as client:
        found: Counter[int] = Counter()
        answered = 0

        async def one(n: int) -> None:
            nonlocal answered
            match n % 5:
                case 0:
                    response = await client.classify(title=f"shirt {n}")
                    answered += response.status_code == 200
                case 1:
                    response = await client.classify(title=f"raise {n}")
                case 2:
                    listings = [{"title": f"{n} {m}"} for m in range(5)] + [{"id": "bad"}, {"title": f"raise {n}"}]
                    response = await client.post("/v1/classify/batch", json={"listings": listings})
                    if response.status_code == 200:
                        answered += sum("attributes" in result for result in response.json()["results"])
                case 3:
                    response = await client.post("/v1/classify/upload", files={"image": ("a.png", encoded())})
                    answered += response.status_code == 200
                case _:
                    response = await client.classify(title=7)
            found[response.status_code] += 1

        await asyncio.gather(*(one(n) for n in range(200)))
        assert found.total() == 200
        assert {200, 422, 500, 503} <= set(found)
        statuses, sums = Counter[int](), defaultdict[str, float](float)
        for family in text_string_to_metric_families(await exposition(client)):
            for sample in family.samples:
                sums[sample.name] += sample.value
                match sample.name:
                    case "cma_clip_http_requests_total" if sample.labels["route"].startswith("/v1/classify"):
                        statuses[int(sample.labels["status"])] += int(sample.value)
                    case "cma_clip_predictions_total" if sample.labels["outcome"] == "abstained":
                        sums["abstained"] += sample.value
        assert statuses == found
        for name in ("predictions_total", "labels_total", "confidence_count"):
            assert sums[f"cma_clip_{name}"] / 2 == answered
        assert sums["cma_clip_abstentions_total"] == sums["abstained"] > 0
        assert sums["cma_clip_familiarity_count"] == answered
        assert sums["cma_clip_batch_size_sum"] == answered  # whatever was computed was answered
        assert await client.metric("cma_clip_in_flight") == 0
        assert await client.metric("cma_clip_queue_depth") == 0
        for stage in ("queue", "inference"):
            assert await client.metric("cma_clip_stage_duration_seconds_count", stage=stage) == answered


async def test_refusals_are_counted_by_reason(client: Client) -> None:
    await client.classify(title=7)
    await client.get("/nowhere")
    await client.post("/v1/classify/batch", json={"listings": [{"title": "a"}, {}, {"image": {"base64": ""}}]})
    assert await client.metric("cma_clip_rejected_total", reason="invalid_request") == 2
    assert await client.metric("cma_clip_rejected_total", reason="undecodable_image") == 1
    assert await client.metric("cma_clip_rejected_total", reason="not_found") == 1


async def test_apps_do_not_share_their_metrics(client: Client) -> None:
    await client.classify(title="a")
    async with in_process() as other:
        assert await other.metric("cma_clip_batch_size_count") == 0


# ── log lines ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_is_one_line_with_its_id_route_status_and_stages(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.request"):
        listing = {"title": "SECRET title", "id": "SECRET id", "image": {"base64": as_base64(encoded())}}
        headers = {"X-Request-ID": "abc-1", "X-API-Key": "SECRET key"}
        await client.post("/v1/classify?q=SECRET", json=listing, headers=headers)
        await client.classify(title="SECRET", top_k="SECRET", image={"base64": "SECRET"})
        await client.classify(image={"url": "http://127.0.0.1/SECRET"})
        await client.get("/SECRET")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert len(lines) == 4
    first = lines[0]
    assert first["request_id"] == "abc-1"
    assert (first["method"], first["route"], first["status"], first["listings"]) == ("POST", "/v1/classify", 200, 1)
    assert set(first["stages_ms"]) == {"decode", "queue", "inference", "respond"}
    assert first["milliseconds"] > 0
    assert [line.get("code") for line in lines[1:]] == ["invalid_request", "image_url_forbidden", "not_found"]
    for record in caplog.records:
        assert "SECRET" not in JsonFormatter().format(record) + TextFormatter().format(record)
        assert json.loads(JsonFormatter().format(record))["level"] == "info"


def test_either_format_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in FORMATS:
        configure(log_format)
        logging.getLogger("test").info("hello", extra={"fields": {"a": 1}})
        logging.getLogger("httpx").info("GET http://example.com/SECRET")
    json_line, text_line = capsys.readouterr().out.splitlines()
    assert {"message": "hello", "a": 1}.items() <= json.loads(json_line).items()
    assert text_line.endswith("hello a=1")
