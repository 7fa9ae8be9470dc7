"""The whole way of SigLIP's towers, tiny and with random weights: trained, calibrated, measured, compiled, and served
where neither PyTorch nor transformers nor a hub's library can be imported.

Run by `make test-towers`.
"""

from __future__ import annotations

import base64
import csv
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoint.folder import CALIBRATION, METRICS, TOKENIZER, load_checkpoint
from model.inference.engines.engine import EngineName
from model.inference.label import label
from model.inference.predictor import Predictor
from tests.conftest import draw, write_catalogue
from tests.model.pretrained_towers import FAMILIES, write_towers
from tests.processes import free_port, wait_until_ready
from tests.test_commands import run

ROOT = Path(__file__).parents[2]
ENGINE = EngineName.OPENVINO_F32

SECONDS = 120

TOLERANCE = 0.02
"""By how much confidences and attention weights may differ: the engine keeps its weights in half precision."""

WITHOUT = ("huggingface_hub", "open_clip", "timm", "torch", "torchvision", "transformers")

MAIN = textwrap.dedent("""
    import sys
    from importlib.machinery import PathFinder

    find, missing = PathFinder.find_spec, set(sys.argv.pop(1).split(","))

    def find_others(name, path=None, target=None):
        return None if name.partition(".")[0] in missing else find(name, path, target)

    PathFinder.find_spec = find_others

    from service.cli import main
    main()
""")


def command(*arguments: object, without: tuple[str, ...] = WITHOUT) -> list[str]:
    return [sys.executable, "-c", MAIN, ",".join(without), *map(str, arguments)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue's TOML file; beside it, in `run/checkpoint`, what was trained on it, with its engine."""
    folder = tmp_path_factory.mktemp("siglip")
    write_towers(folder / "published", FAMILIES["SigLIP, Marqo"])
    toml, checkpoint = write_catalogue(folder / "shop", 300), folder / "run" / "checkpoint"
    small = ("--set", "optimiser.batch_size=32", "--set", "optimiser.workers=0", "--set", "fusion.width=32")
    start = ("--init", f"local-dir:{folder / 'published'}", "--epochs", 2)
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "train", toml, "--out", folder / "run", *start, *small) == 0
        assert run(patch, "calibrate", checkpoint, toml, "--target-precision", 0.5) == 0
        assert run(patch, "evaluate", checkpoint, toml) == 0
        assert run(patch, "compile", checkpoint, toml, "--engine", ENGINE) == 0
    return toml


@pytest.fixture(scope="module")
def checkpoint(shop: Path) -> Path:
    return shop.parents[1] / "run" / "checkpoint"


def test_all_parts_are_there(checkpoint: Path) -> None:
    assert (checkpoint / TOKENIZER).is_file()
    assert all((checkpoint / part).is_file() for part in (CALIBRATION, METRICS))
    compiled = load_checkpoint(checkpoint, ENGINE)
    assert compiled.calibration is not None
    assert compiled.metrics is not None
    assert compiled.config.preprocess.resize == "squash", "as SigLIP's images are"


def test_a_catalogue_is_labelled_as_by_pytorch(shop: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine.csv"
    asked = ("label", shop, "--out", out, "--checkpoint", checkpoint, "--target-precision", 0.5)
    subprocess.run(command(*asked), cwd=ROOT, check=True, timeout=SECONDS)  # noqa: S603 - our own program
    label(checkpoint, shop, tmp_path / "torch.csv", target_precision=0.5, engine="torch", device="cpu")
    texts = ((tmp_path / f"{name}.csv").read_text() for name in ("engine", "torch"))
    rows, expected = (list(csv.DictReader(text.splitlines())) for text in texts)
    assert len(rows) == 300
    for row, wanted in zip(rows, expected, strict=True):
        assert row["error"] == wanted["error"] == ""
        for name in ("colour", "shape"):
            for cell in (f"{name}_confidence", f"{name}_image_weight"):
                assert float(row[cell]) == pytest.approx(float(wanted[cell]), abs=TOLERANCE)
            if float(wanted[f"{name}_confidence"]) > 0.5 + TOLERANCE:  # else another one may be a hair above
                assert row[name] == wanted[name]


@contextmanager
def served(checkpoint: Path) -> Iterator[str]:
    """Serve the checkpoint, and return where."""
    port = free_port()
    settings = {"CMA_CLIP_CHECKPOINT": str(checkpoint), "CMA_CLIP_PORT": str(port), "CMA_CLIP_TARGET_PRECISION": "0.5"}
    environment = {"PATH": os.environ["PATH"], **settings}
    process = subprocess.Popen(command("serve"), cwd=ROOT, env=environment, stderr=subprocess.PIPE)  # noqa: S603 - ours
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, seconds=SECONDS)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def test_it_is_served_as_pytorch_answers(checkpoint: Path, tmp_path: Path) -> None:
    draw("Red", "Circle").save(tmp_path / "photo.png")
    data, title = (tmp_path / "photo.png").read_bytes(), "Plain Red Circle number 7"
    reference = Predictor.load(checkpoint, device="cpu", engine="torch")
    given: dict[str, Any] = {"image": {"base64": base64.b64encode(data).decode()}, "title": title}
    with served(checkpoint) as url:
        for kept in (("image", "title"), ("image",), ("title",)):
            reply = httpx.post(f"{url}/v1/classify", json={name: given[name] for name in kept}, timeout=60)
            assert reply.status_code == 200, reply.text
            assert reply.json()["model"]["engine"] == ENGINE
            listing = (title if "title" in kept else None, data if "image" in kept else None)
            (expected,) = reference.classify([listing], target_precision=0.5)
            for name, answer in reply.json()["attributes"].items():
                assert answer["confidence"] == pytest.approx(expected[name].confidence, abs=TOLERANCE)
                assert answer["modality_attention"] == pytest.approx(expected[name].modality_attention, abs=TOLERANCE)


def test_without_the_library_of_its_tokenizer_it_says_what_to_install(checkpoint: Path) -> None:
    asked = command("predict", "--title", "Red", "--checkpoint", checkpoint, without=(*WITHOUT, "tokenizers"))
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603 - ours
    assert done.returncode == 2
    assert "pip install 'cma-clip[tokenizers]'" in done.stderr
    assert done.stderr.count("\n") == 1
