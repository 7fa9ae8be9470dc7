"""Whatever is sent: an answer that the OpenAPI document declares, never a 500, and the service continues."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.http.server import configuration
from service.observability.metrics import Metrics
from service.pipeline.admission import TIMEOUT_HEADER
from service.pipeline.pipeline import Pipeline
from service.settings import Settings
from tests.service.conftest import encoded, shared_workers
from tests.service.fake_predictor import FakePredictor
from tests.service.tally import TALLY

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of metadata in damaged files

# Hypothesis generates a whole run's examples from one seed, so that a failure in CI is a failure here.
FUZZ = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The application on a real port, for the whole module: nothing that is sent may break it for the rest."""
    app = create_app(
        Settings(max_image_pixels=100_000, max_body_bytes=200_000), lambda _: FakePredictor(), decoding=shared_workers()
    )
    uvicorn_server = uvicorn.Server(configuration(app, port=0))
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{uvicorn_server.servers[0].sockets[0].getsockname()[1]}"
    while httpx.get(f"{url}/readyz").status_code != 200:
        time.sleep(0.01)
    yield url
    pipeline: Pipeline = app.state.pipeline
    assert pipeline.inference.batcher.alive
    assert (pipeline.admission.listings, pipeline.admission.nbytes) == (0, 0)
    for status, count in statuses(pipeline.metrics).items():
        TALLY[f"fuzz: requests answered {status}"] += count
    assert httpx.get(f"{url}/healthz").status_code == 200
    uvicorn_server.should_exit = True
    thread.join()


def statuses(metrics: Metrics) -> Counter[str]:
    """Count the requests that the service has answered, by status."""
    found: Counter[str] = Counter()
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "cma_clip_http_requests_total":
                found[sample.labels["status"]] += int(sample.value)
    return found


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


# ── by the OpenAPI document ──────────────────────────────────────────────────────────────────────────────────────


SCHEMATHESIS = """
[checks.positive_data_acceptance]
enabled = false  # base64 of random bytes is by the schema a good image, and by its content none: 415, 422

[[operations]]
include-path = "/v1/classify/batch"
checks.negative_data_rejection.enabled = false  # a bad listing is answered in its place, with 200 for the batch
"""


def test_answers_conform_to_the_openapi_document(server: str, tmp_path: Path) -> None:
    """By schemathesis: every operation, with data that keeps to the schema and data that breaks it."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(SCHEMATHESIS)
    # Time limits are left to `test_any_headers_are_answered`: a millisecond is tried, and rightly answered with 504.
    document = httpx.get(f"{server}/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            given = operation.get("parameters", [])
            operation["parameters"] = [each for each in given if each.get("name") != TIMEOUT_HEADER]
    openapi = tmp_path / "openapi.json"
    openapi.write_text(json.dumps(document))
    run = subprocess.run(  # noqa: S603 - our own program
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config),
            *("run", str(openapi), "--url", server, "--max-examples", "100", "--seed", "1", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "Tested: 11" in run.stdout


def test_every_documented_status_of_the_contract_is_declared(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/classify", "/v1/classify/batch", "/v1/classify/upload"):
        responses = paths[path]["post"]["responses"]
        assert {"200", "401", "408", "413", "415", "422", "424", "429", "500", "503", "504"} == set(responses)
        for status, response in responses.items():
            expected = "application/json" if status == "200" else "application/problem+json"
            assert list(response["content"]) == [expected]
        assert all("Retry-After" in responses[status]["headers"] for status in ("429", "503", "504"))


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────

ALLOWED = {200, 413, 415, 422, 424}
PNG = base64.b64encode(encoded(size=(4, 4))).decode()

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["season", PNG, "9" * 5000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
image = anything | st.fixed_dictionaries(
    {},
    optional={
        "base64": anything | st.binary(max_size=80).map(lambda data: base64.b64encode(data).decode()) | st.just(PNG),
        "url": anything
        | st.builds(
            "{}://{}/{}".format, st.sampled_from(["http", "https", "file"]), st.text(max_size=9), st.text(max_size=5)
        )
        | st.sampled_from(
            ["http://127.0.0.1/", "http://[::1]/", "http://localhost:1/", "http://10.0.0.1/", "http://0/"]
        ),
    },
)
fields = {
    "id": anything | st.text(max_size=300),
    "title": anything | st.text(max_size=5000) | st.just("shirt"),
    "image": image,
    "attributes": anything | st.lists(st.sampled_from(["season", "baseColour", "x"]), max_size=3),
    "target_precision": anything | st.sampled_from([0.9, 0.95, 0.99, 0.5]),
    "top_k": anything | st.integers(-1, 5),
    "explain": anything | st.booleans(),
    "unknown": anything,
}
listings = st.fixed_dictionaries({}, optional=fields)


def send(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    content = json.dumps(body, ensure_ascii=True)  # lone surrogates, NaN and infinities are written as they are
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


def check(response: httpx.Response) -> None:
    """Assert that an answer is one of those a caller's input may cause, and whole."""
    assert response.status_code in ALLOWED, response.text
    body = response.json()
    if response.status_code != 200:
        assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert "Traceback" not in response.text
    assert "/site-packages/" not in response.text


@settings(FUZZ, max_examples=400)
@given(body=listings | anything)
def test_any_json_is_answered(client: httpx.Client, body: Any) -> None:
    check(send(client, "/v1/classify", body))


@settings(FUZZ, max_examples=200)
@given(body=st.fixed_dictionaries({"listings": st.lists(listings | anything, max_size=4)}) | anything)
def test_any_json_is_answered_as_a_batch(client: httpx.Client, body: Any) -> None:
    response = send(client, "/v1/classify/batch", body)
    check(response)
    if response.status_code == 200:
        results = response.json()["results"]
        assert len(results) == len(body["listings"])
        assert all(("error" in result) != ("attributes" in result) for result in results)
        assert {result["error"]["status"] for result in results if "error" in result} <= ALLOWED


@settings(FUZZ, max_examples=200)
@given(
    content=st.binary(max_size=200),
    content_type=st.sampled_from(["application/json", "multipart/form-data; boundary=x", ""]),
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classify/batch", "/v1/classify/upload"])
def test_any_bytes_are_answered(client: httpx.Client, path: str, content: bytes, content_type: str) -> None:
    check(client.post(path, content=content, headers={"Content-Type": content_type}))


@settings(FUZZ, max_examples=200)
@given(
    data=st.dictionaries(st.sampled_from([*fields, "x"]), st.text(max_size=20), max_size=4), file=st.binary(max_size=60)
)
def test_any_form_is_answered(client: httpx.Client, data: dict[str, str], file: bytes) -> None:
    usable = {name: value for name, value in data.items() if value.isprintable()}
    check(client.post("/v1/classify/upload", data=usable, files={"image": ("a.png", encoded(size=(2, 2))[:40] + file)}))


@settings(FUZZ, max_examples=200)
@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["X-Request-ID", "X-Request-Timeout-Ms", "X-API-Key", "Authorization", "Accept", "Accept-Encoding", "Range",
             "Content-Encoding", "Expect", "Cookie", "Origin", "Host", "If-Match"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40),
    )
)  # fmt: skip
def test_any_headers_are_answered(client: httpx.Client, headers: dict[str, str]) -> None:
    sent = [(name.encode(), value.strip().encode("latin-1")) for name, value in headers.items()]
    response = client.post("/v1/classify", json={"title": "a"}, headers=sent)
    # 400: uvicorn's own, of what is no HTTP; 415: a Content-Encoding, since compressed bodies are refused
    assert response.status_code in {200, 400, 415, 417, 422, 504}
    assert client.get("/metrics", headers=sent).status_code in {200, 400}


printable = st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f", exclude_categories=["Cc"])


@settings(FUZZ, max_examples=200)
@given(
    path=st.text(printable, max_size=40),
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "X"]),
)
def test_any_path_is_answered(client: httpx.Client, path: str, method: str) -> None:
    response = client.request(method, "/" + quote(path, safe="/?#[]@!$&'()*+,;=:%", encoding="latin-1"))
    assert response.status_code in {200, 400, 404, 405, 415}
