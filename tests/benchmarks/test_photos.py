"""The benchmark of photo formats: each format shows the same product, and the figures count what they say."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks import photos
from benchmarks.photo_formats import FORMATS, cut_out
from benchmarks.photos import ORIGINAL, Figures, figures, table
from model.catalogue.listings import Catalogue
from model.inference.predictions import Abstention, AttributePrediction, Candidate
from model.inputs.decode import decode_image


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A dark product with a white label on it, on white."""
    image = Image.new("RGB", (60, 80), "white")
    image.paste((150, 20, 90), (15, 20, 45, 60))
    image.paste((255, 255, 255), (25, 35, 35, 45))
    return image


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_the_product_and_is_the_same_each_time(name: str, photo: Image.Image) -> None:
    data = FORMATS[name](photo, random.Random(5))
    assert data == FORMATS[name](photo, random.Random(5))
    decoded = decode_image(data)
    assert decoded.warnings == ()
    pixels = np.asarray(decoded.image).astype(int)
    shown = (np.abs(pixels - np.array((150, 20, 90))) < 25).all(axis=2).mean() * pixels[..., 0].size
    scale = decoded.image.width / 60 * decoded.image.height / 80 if name.startswith(("1200", "squashed")) else 1
    assert shown / scale == pytest.approx(1100, rel=0.2)  # edges are soft


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB", "ProPhoto RGB"])
def test_other_spaces_have_other_values_and_the_same_colours(name: str, photo: Image.Image) -> None:
    data = FORMATS[name](photo, random.Random(5))
    values = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(values - np.asarray(photo)).max() > 10
    assert np.abs(np.asarray(decode_image(data).image).astype(int) - np.asarray(photo)).max() <= 8


def test_the_ground_is_cut_out_and_the_label_on_the_product_is_not(photo: Image.Image) -> None:
    cover = cut_out(photo)
    assert [cover.getpixel(at) for at in ((2, 2), (57, 77), (30, 40), (20, 30))] == [0, 0, 255, 255]


def answer(label: str, *, accepted: bool) -> AttributePrediction:
    return AttributePrediction(
        label=label,
        confidence=0.9,
        abstention=None if accepted else Abstention.LOW_CONFIDENCE,
        threshold=0.5,
        target_precision=0.95,
        candidates=(Candidate(label, 0.9),),
        modality_attention={"image": 1.0, "text": 0.0},
        explanation=None,
    )


def test_figures_count_the_right_the_accepted_and_the_changed() -> None:
    red, blue, sure = answer("Red", accepted=False), answer("Blue", accepted=True), answer("Red", accepted=True)
    found = figures([("Red", red, red), ("Red", blue, red), ("Red", sure, red), ("Blue", blue, blue)])
    assert found == Figures(labelled=4, accuracy=0.75, coverage=0.75, precision=2 / 3, changed=0.25)
    assert figures([("Red", red, blue)]).precision is None


def test_a_checkpoint_is_measured_on_every_format(
    checkpoint_folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    out = tmp_path / "photos.json"
    arguments = ["--checkpoint", str(checkpoint_folder), "--catalogue", str(catalogue.config.path), "--out", str(out)]
    app = typer.Typer()
    app.command()(photos.main)
    result = CliRunner().invoke(app, [*arguments, "--listings", "3", "--attribute", "colour"])
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["listings"] == 3
    assert list(document["formats"]) == [ORIGINAL, *FORMATS]
    for situations in document["formats"].values():
        assert list(situations) == ["image", "image_and_title"]
    original = document["formats"][ORIGINAL]["image"]
    assert original["all"]["changed"] == 0
    assert original["all"]["labelled"] == sum(original[name]["labelled"] for name in original if name != "all")
    assert table(document["formats"], "colour") in result.output
    wrong = CliRunner().invoke(app, [*arguments, "--attribute", "weight"])
    assert wrong.exit_code == 2
    assert "no attribute weight" in wrong.output
