"""The checkpoint in weights/fashion: whole, small enough, as good as it says, and as the README shows it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.config import FusionConfig, from_json, to_json, update
from model.inference.predictor import Predictor
from model.situations import Situation
from model.training.config import TrainConfig, small_training
from model.training.initialise import IMAGENET, initial_model
from model.training.recipe import CalibrateStage, EvaluateStage, Recipe, TrainStage
from model.trust.certificates import METHOD

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "weights" / "fashion"
ATTRIBUTES = ("gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "usage")


ENGINES = ("torch", *sorted(path.name for path in (FOLDER / "engines").glob("openvino-*")))


@pytest.fixture(scope="module", params=ENGINES)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return Predictor.load(FOLDER, device="cpu", engine=request.param)


@pytest.fixture(scope="module")
def metrics(predictor: Predictor) -> dict[str, Any]:
    return dict(predictor.info.metrics)


def test_it_is_small_and_holds_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    parts = {"config.json", "model.safetensors", "scope.safetensors", "calibration.json", "metrics.json", "README.md"}
    assert set(files) == parts
    assert sum(files.values()) <= 45e6


def test_it_carries_one_engine_at_most_and_a_small_one() -> None:
    assert len(ENGINES) <= 2
    for name in ENGINES[1:]:
        files = {path.name: path.stat().st_size for path in (FOLDER / "engines" / name).iterdir()}
        network = {f"{part}.{suffix}" for part in ("image", "text", "fusion") for suffix in ("xml", "bin")}
        assert set(files) == {"engine.json", "scope.safetensors", "calibration.json", "metrics.json", *network}
        assert sum(files.values()) <= 40e6


def test_an_engine_is_as_accurate_as_the_reference(predictor: Predictor, metrics: dict[str, Any]) -> None:
    reference = Predictor.load(FOLDER, device="cpu", engine="torch").info.metrics
    for situation in Situation:
        ours, theirs = accuracies(metrics, situation), accuracies(dict(reference), situation)
        assert all(ours[attribute] >= theirs[attribute] - 0.002 for attribute in ATTRIBUTES)
    assert predictor.info.calibration


def test_it_reads_the_seven_attributes_at_three_target_precisions(predictor: Predictor) -> None:
    assert tuple(task.name for task in predictor.tasks) == ATTRIBUTES
    assert predictor.info.target_precisions == (0.9, 0.95, 0.99)
    for attribute in ATTRIBUTES:
        for thresholds in predictor.thresholds(attribute).values():
            certified = [np.inf if t is None else t for t in thresholds.values()]
            assert certified == sorted(certified)


def test_the_test_part_is_large_enough(metrics: dict[str, Any]) -> None:
    assert metrics["data"]["listings"]["test"] >= 3000


def accuracies(metrics: dict[str, Any], situation: Situation) -> dict[str, float]:
    measured = metrics["situations"][situation]["attributes"]
    return {attribute: measured[attribute]["accuracy"] for attribute in ATTRIBUTES}


def baseline(name: str) -> dict[str, float]:
    content = json.loads((ROOT / "benchmarks" / "results" / f"baseline_{name}.json").read_text())
    return {attribute: content["attributes"][attribute]["accuracy"] for attribute in ATTRIBUTES}


LEAVES_ROOM = ("articleType", "baseColour", "season", "usage")


def test_it_beats_a_bag_of_words_wherever_that_leaves_room(metrics: dict[str, Any]) -> None:
    ours, bag_of_words = accuracies(metrics, Situation.IMAGE_AND_TITLE), baseline("title")
    for attribute in LEAVES_ROOM:
        assert ours[attribute] > bag_of_words[attribute], attribute
    for attribute in ATTRIBUTES:
        assert ours[attribute] >= bag_of_words[attribute] - 0.002, attribute


def test_a_title_alone_is_read_nearly_as_well_as_by_a_bag_of_words(metrics: dict[str, Any]) -> None:
    ours, bag_of_words = accuracies(metrics, Situation.TITLE), baseline("title")
    for attribute in ATTRIBUTES:
        assert ours[attribute] >= bag_of_words[attribute] - 0.01, attribute


def test_an_image_alone_is_read_as_well_as_by_a_convnet(metrics: dict[str, Any]) -> None:
    ours, convnet = accuracies(metrics, Situation.IMAGE), baseline("image")
    for attribute in ATTRIBUTES:
        assert ours[attribute] >= convnet[attribute], attribute


def test_accepted_labels_meet_the_target_everywhere(metrics: dict[str, Any]) -> None:
    met = [
        point["precision"] >= float(target)
        for measured in metrics["situations"].values()
        for figures in measured["attributes"].values()
        for target, point in figures["accepted"].items()
        if point is not None
    ]
    assert len(met) >= 40
    assert all(met)


def test_modalities_did_not_collapse(metrics: dict[str, Any]) -> None:
    measured = metrics["situations"][Situation.IMAGE_AND_TITLE]["attributes"]
    assert np.mean([measured[attribute]["modality_attention"]["image"] for attribute in ATTRIBUTES]) > 0.05


def test_the_example_of_the_readme(predictor: Predictor) -> None:
    image = Image.open(ROOT / "examples" / "images" / "navy-shirt.jpg").convert("RGB")
    prepared = predictor.prepare("Turtle Check Men Navy Blue Shirt", image)
    (prediction,) = predictor.predict(predictor.collate([prepared]))
    colour = prediction.attribute("baseColour", target_precision=0.95, top_k=2)
    assert colour.label == "Navy Blue"
    assert f"{colour.confidence:.3f}" in (ROOT / "README.md").read_text()


def leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


HOW_NOT_WHAT = "optimiser.workers"
"""What changes how listings are loaded, and no number."""


@pytest.fixture(scope="module")
def recorded() -> list[dict[str, Any]]:
    """What the shipped checkpoint says of each training that led to it, the first one first."""
    training = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))["training"]
    found: list[dict[str, Any]] = []
    while training:
        found.insert(0, training)
        initial = training["initial"]
        training = initial["training"] if isinstance(initial, dict) else None
    return found


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load(ROOT / "recipes" / "fashion.toml")


def trainings(recipe: Recipe) -> list[TrainStage]:
    return [stage for stage in recipe.stages if isinstance(stage, TrainStage)]


def test_the_recipe_asks_for_what_the_checkpoint_was_trained_with(
    recipe: Recipe, recorded: list[dict[str, Any]]
) -> None:
    assert len(recipe.stages) <= 6
    assert len(trainings(recipe)) == len(recorded) == 3
    for stage, training in zip(trainings(recipe), recorded, strict=True):
        # A setting that there was not yet has its default, which changes nothing.
        was = leaves(to_json(from_json(TrainConfig, training["config"])))
        asked = leaves(to_json(update(small_training(30_139), stage.settings)))
        for settings in (was, asked):
            del settings[HOW_NOT_WHAT]
        assert asked == was, stage.name


def test_the_recipe_leaves_no_setting_to_a_default(recipe: Recipe) -> None:
    for stage in trainings(recipe):
        assert leaves(stage.settings).keys() == leaves(to_json(small_training(30_139))).keys(), stage.name
        assert stage.fusion.keys() == vars(FusionConfig()).keys(), stage.name


def test_the_recipes_stages_follow_one_another_as_the_trainings_did(
    recipe: Recipe, recorded: list[dict[str, Any]]
) -> None:
    """Each from the one before, and the first from ImageNet weights."""
    names = [None, *(stage.name for stage in recipe.stages)]
    assert [stage.start for stage in recipe.stages] == names[:-1]
    assert [stage.init for stage in trainings(recipe)] == [IMAGENET, None, None]
    first, *others = [training["initial"] for training in recorded]
    assert first == IMAGENET
    assert [each["name"] for each in others] == [recipe.name, recipe.name]


def test_the_recipe_builds_the_shipped_network(recipe: Recipe, predictor: Predictor) -> None:
    shipped, stages = predictor.checkpoint.config, trainings(recipe)
    start = initial_model(stages[0].backbone, stages[0].init)
    size = next(stage.image_size for stage in reversed(stages) if stage.image_size)
    preprocess = dataclasses.replace(start.preprocess, image_size=size)
    expected = dataclasses.replace(start, preprocess=preprocess)
    assert shipped == dataclasses.replace(predictor.checkpoint.config, **vars(expected))
    for stage in stages:
        assert update(FusionConfig(), stage.fusion) == shipped.fusion
    assert [stage.backbone for stage in stages[1:]] == [None, None]


def test_the_recipe_calibrates_and_evaluates_as_the_checkpoint_was(recipe: Recipe, predictor: Predictor) -> None:
    calibrated, evaluated = recipe.stages[-2:]
    assert isinstance(calibrated, CalibrateStage)
    assert isinstance(evaluated, EvaluateStage)
    assert not calibrated.together
    assert not calibrated.per_label
    assert calibrated.target_precision == predictor.info.target_precisions
    calibration = predictor.checkpoint.calibration
    assert calibration is not None
    assert calibration.method == METHOD
    assert calibration.gate is not None
    assert set(calibration.gate.scope_level.values()) == {calibrated.scope_level}


def test_in_scope_listings_are_refused_no_more_often_than_the_level_allows(metrics: dict[str, Any]) -> None:
    for measured in metrics["situations"].values():
        low, _ = measured["gate"]["unfamiliar"]["interval"]
        assert low <= 0.01


@pytest.mark.parametrize("title", ["asdf qwer zxcv", "Bosch 18V cordless drill driver with two batteries", "N/A"])
def test_nothing_is_accepted_of_a_title_of_another_field(predictor: Predictor, title: str) -> None:
    (prediction,) = predictor.predict(predictor.collate([predictor.prepare(title, None)]))
    assert prediction.scope.in_scope is False
    for attribute in ATTRIBUTES:
        assert not prediction.attribute(attribute, target_precision=0.9, top_k=1).accepted


def test_the_card_names_the_recipe_and_its_stages(recipe: Recipe) -> None:
    training = (FOLDER / "README.md").read_text(encoding="utf-8").split("## Training\n")[1].split("\n## ")[0]
    assert "cma-clip train --recipe recipes/fashion.toml --out runs/fashion" in training
    named = [cells[1].strip(" `") for line in training.splitlines() if len(cells := line.split("|")) > 2]
    assert named[2:] == [stage.name for stage in recipe.stages]
