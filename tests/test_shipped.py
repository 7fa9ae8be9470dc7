"""The checkpoint in weights/fashion: whole, small enough, as good as it says, and as the README shows it."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.config import override, to_json
from model.inference.predictor import Predictor
from model.situations import Situation
from model.training.config import small_training
from service.commands.training import split_settings

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
    ours, bag_of_words = accuracies(metrics, Situation.IMAGE_AND_TITLE), baseline("title")
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
    measured = metrics["situations"][Situation.IMAGE_AND_TITLE]["attributes"]
    assert np.mean([measured[attribute]["modality_attention"]["image"] for attribute in ATTRIBUTES]) > 0.05


def test_the_example_of_the_readme(predictor: Predictor) -> None:
    image = Image.open(ROOT / "examples" / "images" / "navy-shirt.jpg").convert("RGB")
    prepared = predictor.prepare("Turtle Check Men Navy Blue Shirt", image)
    (prediction,) = predictor.predict(predictor.collate([prepared]))
    colour = prediction.attribute("baseColour", target_precision=0.95, top_k=2)
    assert colour.label == "Navy Blue"
    assert f"{colour.confidence:.3f}" in (ROOT / "README.md").read_text()


def card_commands() -> list[list[str]]:
    """The model card's `cma-clip train` commands, split as a shell would."""
    block = (FOLDER / "README.md").read_text(encoding="utf-8").split("```console\n")[1].split("```")[0]
    variables: dict[str, str] = {}
    commands = []
    for line in block.replace("\\\n", " ").splitlines():
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = assigned[2]
        else:
            commands.append(shlex.split(re.sub(r"\$(\w+)", lambda found: variables[found[1]], line)))
    return [command for command in commands if command[:2] == ["cma-clip", "train"]]


def leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


def test_the_cards_commands_ask_for_what_the_checkpoint_was_trained_with() -> None:
    # Whoever changes a default of training must say in the card what it was.
    training = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))["training"]
    trained = []
    while training:
        if "weights" in training["config"]:  # pre-training has none
            trained.insert(0, leaves(training["config"]))
            del trained[0]["optimiser.workers"]  # how it was read, not what
        training = training.get("initial", {}).get("training")
    commands = card_commands()
    assert len(commands) == len(trained)
    for command, recorded in zip(commands, trained, strict=True):
        settings = [value for option, value in itertools.pairwise(command) if option == "--set"]
        epochs = next((int(value) for option, value in itertools.pairwise(command) if option == "--epochs"), None)
        fusion, others = split_settings(settings, epochs)
        assert not fusion
        asked = leaves(to_json(override(small_training(), others)))
        del asked["optimiser.workers"]
        assert {name: asked[name] for name in recorded} == recorded
        # What the recorded training did not know yet must be off.
        assert not any(asked[name] for name in asked.keys() - recorded.keys())
