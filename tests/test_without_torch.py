"""The shipped checkpoint where PyTorch is not installed: serve, predict and label, by OpenVINO.

In a process of its own, which finds neither PyTorch nor what is built on it.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from model.inference.predictor import Predictor
from tests.processes import free_port, wait_until_ready

ROOT = Path(__file__).parent.parent
SHIRT = ROOT / "examples" / "images" / "navy-shirt.jpg"
TITLE = "Turtle Check Men Navy Blue Shirt"
LISTING = {"id": "shirt", "title": TITLE, "image": {"base64": base64.b64encode(SHIRT.read_bytes()).decode()}}

TOLERANCE = 0.02
"""By how much confidences and attention weights may differ from those of PyTorch in float32."""

MAIN = textwrap.dedent("""
    from importlib.machinery import PathFinder

    find = PathFinder.find_spec

    def find_others(name, path=None, target=None):
        missing = name.partition(".")[0] in {"open_clip", "timm", "torch", "torchvision"}
        return None if missing else find(name, path, target)

    PathFinder.find_spec = find_others

    from service.cli import main
    main()
""")


def start(*arguments: object, **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **{f"CMA_CLIP_{name.upper()}": str(each) for name, each in settings.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, status: int = 0, **settings: object) -> tuple[str, str]:
    """Run a command and return what it prints on standard output and on standard error."""
    process = start(*arguments, **settings)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    return out, errors


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where the service listens, once it is ready."""
    port = free_port()
    process, url = start("serve", port=port, device="cpu"), f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def reference() -> Predictor:
    """The same checkpoint in this process, computed by PyTorch."""
    return Predictor.load(ROOT / "weights" / "fashion", device="cpu", engine="torch")


def check(reply: dict[str, Any], reference: Predictor, *, image: bool = True, title: bool = True) -> None:
    """Assert that a reply to the listing says what PyTorch says."""
    with Image.open(SHIRT) as opened:
        listing = (TITLE if title else None, opened.convert("RGB") if image else None)
        (expected,) = reference.classify([listing])
    assert set(reply["attributes"]) == set(expected)
    for name, answer in reply["attributes"].items():
        assert answer["label"] == expected[name].label
        assert answer["confidence"] == pytest.approx(expected[name].confidence, abs=TOLERANCE)
        assert answer["modality_attention"] == pytest.approx(expected[name].modality_attention, abs=TOLERANCE)


def test_one_listing(url: str, reference: Predictor) -> None:
    for image, title in ((True, True), (True, False), (False, True)):
        given = {name: LISTING[name] for name, wanted in (("image", image), ("title", title)) if wanted}
        reply = httpx.post(f"{url}/v1/classify", json=given)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"]["engine"].startswith("openvino")
        check(reply.json(), reference, image=image, title=title)


def test_a_batch(url: str, reference: Predictor) -> None:
    reply = httpx.post(f"{url}/v1/classify/batch", json={"listings": [LISTING] * 3}).json()
    assert len(reply["results"]) == 3
    for result in reply["results"]:
        check(result, reference)


def test_an_upload(url: str, reference: Predictor) -> None:
    files = {"image": SHIRT.read_bytes()}
    check(httpx.post(f"{url}/v1/classify/upload", files=files, data={"title": TITLE}).json(), reference)


def test_an_explanation(url: str) -> None:
    reply = httpx.post(f"{url}/v1/classify", json={**LISTING, "explain": True}, timeout=60).json()
    explanation = reply["attributes"]["baseColour"]["explanation"]
    assert sum(map(sum, explanation["image"]["weights"])) == pytest.approx(1)
    assert max(explanation["text"], key=lambda word: word["weight"])["token"] in ("Navy", "Blue")


def test_predict(reference: Predictor) -> None:
    out, _ = run("predict", SHIRT, "--title", TITLE, "--json")
    check(json.loads(out), reference)


def test_label(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(SHIRT.parent)
    (tmp_path / "table.csv").write_text(f"id,title\nnavy-shirt,{TITLE}\nred-dress,Red summer dress\n")
    (tmp_path / "shop.toml").write_text(
        '[catalogue]\ntable = "table.csv"\nimages = "images"\nimage = "{id}.jpg"\nid = "id"\ntitle = "title"\n'
    )
    out = tmp_path / "labels.csv"
    run("label", tmp_path / "shop.toml", "--out", out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["navy-shirt", "red-dress"]
    assert [row["articleType"] for row in rows] == ["Shirts", "Dresses"]


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("predict", "--title", TITLE), "gpu"),
        (("train", "benchmarks/fashion.toml", "--out", "unused"), "train"),
    ],
)
def test_what_needs_pytorch_names_the_extra(arguments: tuple[str, ...], extra: str) -> None:
    _, errors = run(*arguments, status=2, engine="torch")
    assert f"cma-clip[{extra}]" in errors
    assert errors.count("\n") == 1
