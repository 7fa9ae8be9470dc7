"""The checkpoint in weights/fashion: whole, small enough, as good as it says, and as the README shows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.predictor import Predictor
from model.readings import Situation

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "weights" / "fashion"
ATTRIBUTES = ("gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "usage")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(FOLDER, device="cpu")


@pytest.fixture(scope="module")
def metrics(predictor: Predictor) -> dict:  # type: ignore[type-arg]
    return dict(predictor.info.metrics)


def test_it_is_small_and_holds_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "calibration.json", "metrics.json", "README.md"}
    assert sum(files.values()) <= 60e6


def test_it_reads_the_seven_attributes_at_three_target_precisions(predictor: Predictor) -> None:
    assert tuple(task.name for task in predictor.tasks) == ATTRIBUTES
    assert predictor.info.target_precisions == (0.9, 0.95, 0.99)
    for attribute in ATTRIBUTES:
        for thresholds in predictor.thresholds(attribute).values():
            certified = [np.inf if t is None else t for t in thresholds.values()]
            assert certified == sorted(certified)


def test_the_test_part_is_large_enough(metrics: dict) -> None:  # type: ignore[type-arg]
    assert metrics["data"]["listings"]["test"] >= 3000


def accuracies(metrics: dict, situation: Situation) -> dict[str, float]:  # type: ignore[type-arg]
    measured = metrics["situations"][situation]["attributes"]
    return {attribute: measured[attribute]["accuracy"] for attribute in ATTRIBUTES}


def baseline(name: str) -> dict[str, float]:
    content = json.loads((ROOT / "benchmarks" / "results" / f"baseline_{name}.json").read_text())
    return {attribute: content["attributes"][attribute]["accuracy"] for attribute in ATTRIBUTES}


LEAVES_ROOM = ("articleType", "baseColour", "season", "usage")


def test_it_beats_a_bag_of_words_wherever_that_leaves_room(metrics: dict) -> None:  # type: ignore[type-arg]
    ours, bag_of_words = accuracies(metrics, Situation.BOTH), baseline("title")
    for attribute in LEAVES_ROOM:
        assert ours[attribute] > bag_of_words[attribute], attribute
    for attribute in ATTRIBUTES:
        assert ours[attribute] >= bag_of_words[attribute] - 0.002, attribute


def test_a_title_alone_is_read_nearly_as_well_as_by_a_bag_of_words(metrics: dict) -> None:  # type: ignore[type-arg]
    ours, bag_of_words = accuracies(metrics, Situation.TITLE), baseline("title")
    for attribute in ATTRIBUTES:
        assert ours[attribute] >= bag_of_words[attribute] - 0.01, attribute


def test_an_image_alone_is_read_as_well_as_by_a_convnet(metrics: dict) -> None:  # type: ignore[type-arg]
    ours, convnet = accuracies(metrics, Situation.IMAGE), baseline("image")
    for attribute in ATTRIBUTES:
        assert ours[attribute] >= convnet[attribute], attribute


def test_accepted_labels_meet_the_target_everywhere(metrics: dict) -> None:  # type: ignore[type-arg]
    met = [
        point["precision"] >= float(target)
        for measured in metrics["situations"].values()
        for figures in measured["attributes"].values()
        for target, point in figures["accepted"].items()
        if point is not None
    ]
    assert len(met) >= 40
    assert all(met)


def test_modalities_did_not_collapse(metrics: dict) -> None:  # type: ignore[type-arg]
    measured = metrics["situations"][Situation.BOTH]["attributes"]
    assert np.mean([measured[attribute]["modality_attention"]["image"] for attribute in ATTRIBUTES]) > 0.05


def test_the_example_of_the_readme(predictor: Predictor) -> None:
    image = Image.open(ROOT / "examples" / "images" / "navy-shirt.jpg").convert("RGB")
    prepared = predictor.prepare("Turtle Check Men Navy Blue Shirt", image)
    reading = predictor.predict(predictor.collate([prepared]))[0].read("baseColour", target_precision=0.95, top_k=2)
    assert reading.label == "Navy Blue"
    assert f"{reading.confidence:.3f}" in (ROOT / "README.md").read_text()
