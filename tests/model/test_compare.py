"""`cma-clip compare`: what would change if one checkpoint replaced another."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import CALIBRATION, load_checkpoint, write_part
from model.checkpoint.weights import save_checkpoint
from model.config import ModelConfig
from model.errors import ConfigError
from model.evaluation.compare import compare, comparison_tables
from model.evaluation.evaluate import HEADINGS
from model.inference.predictor import Predictor
from model.network.cma_clip import build_cma_clip
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import AttributeCalibration, Calibration, Certificate
from service.commands.compare import page
from tests.conftest import COLOURS, SHAPES
from tests.test_commands import run

CONSOLE = Console(file=io.StringIO())


def calibrated(folder: Path, *, threshold: float | None) -> Path:
    """Write a made-up calibration into a checkpoint; a threshold of None accepts nothing."""
    checkpoint = load_checkpoint(folder)
    certificate = None if threshold is None else Certificate(threshold=threshold, coverage=1.0, support=99, bound=0.96)
    attribute = AttributeCalibration(temperature=1.0, thresholds={0.95: certificate})
    calibration = Calibration(
        version=checkpoint.version,
        method="made up",
        confidence_level=0.95,
        target_precisions=(0.95,),
        situations={each: {task.name: attribute for task in checkpoint.tasks} for each in Situation},
    )
    write_part(checkpoint, CALIBRATION, calibration.to_json())
    return folder


@pytest.fixture
def other(tmp_path: Path, model_config: ModelConfig) -> Path:
    """A checkpoint of the same kind with other weights; it knows no squares, and another attribute."""
    tasks = (Task(name="colour", labels=COLOURS), Task(name="fabric", labels=("cotton", "wool")))
    torch.manual_seed(5)
    folder = tmp_path / "other"
    save_checkpoint(
        folder, build_cma_clip(model_config, tasks).eval(), name="other", config=model_config, tasks=tasks, training={}
    )
    return calibrated(folder, threshold=0.0)


def test_a_checkpoint_differs_from_itself_in_nothing(checkpoint_folder: Path, catalogue: Catalogue) -> None:
    predictor = Predictor.load(calibrated(checkpoint_folder, threshold=0.0), device="cpu")
    found = compare(predictor, predictor, catalogue, catalogue.part(Part.TEST), console=CONSOLE)
    assert found.changed == []
    for by_attribute in found.figures["situations"].values():
        for figures in by_attribute.values():
            assert figures["labels"] == figures["verdicts"] == figures["unexplained"] == 0
            assert figures["coverage"] == [1.0, 1.0]


def test_what_differs_is_listed_and_counted(checkpoint_folder: Path, other: Path, catalogue: Catalogue) -> None:
    listings = [replace(each, image=None) for each in catalogue.part(Part.TEST) if each.title]
    before, after = (
        Predictor.load(folder, device="cpu") for folder in (calibrated(checkpoint_folder, threshold=0.0), other)
    )
    found = compare(before, after, catalogue, listings, console=CONSOLE)
    assert found.figures["attributes_of_one_alone"] == ["fabric", "shape"]
    assert found.figures["situations"][Situation.IMAGE]["colour"] is None
    figures = found.figures["situations"][Situation.TITLE]["colour"]
    answers = [
        [each["colour"] for each in predictor.classify([(listing.title, None) for listing in listings])]
        for predictor in (before, after)
    ]
    differ = [a.label != b.label for a, b in zip(*answers, strict=True)]
    assert 0 < sum(differ) == len(found.changed)
    assert figures["labels"] == figures["accepted"] == pytest.approx(sum(differ) / len(listings))
    assert figures["verdicts"] == 0
    truth = [listing.labels.get("colour") for listing in listings]
    known = [place for place, label in enumerate(truth) if label]
    for side in (0, 1):
        right = sum(answers[side][place].label == truth[place] for place in known)
        assert figures["accuracy"][side] == pytest.approx(right / len(known))
    assert all(each.before.label != each.after.label for each in found.changed)
    weights = [each.weight for each in found.changed]
    assert weights == sorted(weights, reverse=True)
    json.dumps(found.to_json(), allow_nan=False)
    assert len(comparison_tables(found.figures, HEADINGS)) == 1


def test_without_a_calibration_at_the_target_there_is_nothing_to_compare(
    checkpoint_folder: Path, other: Path, catalogue: Catalogue
) -> None:
    uncalibrated, second = (Predictor.load(folder, device="cpu") for folder in (checkpoint_folder, other))
    with pytest.raises(ConfigError, match=r"tiny [0-9a-f]{12} is not calibrated at 0\.95; .*cma-clip calibrate"):
        compare(uncalibrated, second, catalogue, catalogue.part(Part.TEST), console=CONSOLE)


def test_checkpoints_without_a_common_attribute_are_refused(
    tmp_path: Path, other: Path, model_config: ModelConfig, catalogue: Catalogue
) -> None:
    tasks = (Task(name="shape", labels=SHAPES),)
    folder = tmp_path / "shapes"
    save_checkpoint(
        folder, build_cma_clip(model_config, tasks).eval(), name="shapes", config=model_config, tasks=tasks, training={}
    )
    predictors = [Predictor.load(each, device="cpu") for each in (calibrated(folder, threshold=0.0), other)]
    with pytest.raises(ConfigError, match="no attribute in common"):
        compare(predictors[0], predictors[1], catalogue, catalogue.part(Part.TEST), console=CONSOLE)


def test_the_page_shows_what_changed_and_escapes_titles(
    checkpoint_folder: Path, other: Path, catalogue: Catalogue
) -> None:
    listings = [replace(each, title=f"<b>{each.title}") for each in catalogue.part(Part.TEST)]
    predictors = [
        Predictor.load(folder, device="cpu") for folder in (calibrated(checkpoint_folder, threshold=None), other)
    ]
    found = compare(predictors[0], predictors[1], catalogue, listings, console=CONSOLE)
    html = page(found, catalogue)
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "data:image/jpeg;base64," in html
    assert "accepted" in html


def test_the_command_writes_a_table_a_page_and_json(
    checkpoint_folder: Path,
    other: Path,
    catalogue_toml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = calibrated(checkpoint_folder, threshold=None)
    page, figures = tmp_path / "c.html", tmp_path / "c.json"
    assert run(monkeypatch, "compare", before, other, catalogue_toml, "--html", page, "--json", figures) == 0
    assert "0 are accepted by both" in capsys.readouterr().out
    assert json.loads(figures.read_text())["after"]["name"] == "other"
    assert page.read_text().startswith("<!doctype html>")
    assert run(monkeypatch, "compare", before, other, catalogue_toml, "--html", tmp_path / "none" / "c.html") == 2
    assert "there is no folder" in capsys.readouterr().err
