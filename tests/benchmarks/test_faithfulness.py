"""The deletion test, and what it says of the shipped checkpoint on listings that were made for this repository."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import faithfulness
from benchmarks.faithfulness import METHODS, DeletionTest, Interval, Question, Weights, main, questions, served, summary
from model.predictor import Predictor
from tests.conftest import draw

ROOT = Path(__file__).parents[2]
MADE = {
    "navy-shirt": ("Turtle Check Men Navy Blue Shirt", "Mark Taylor Men Striped Navy Blue Casual Shirt"),
    "red-dress": ("Femella Women Red Dress", "Red Sleeveless Summer Dress for Women"),
    "black-shoe": ("Men Black Sports Shoes", "Runner Men's Lite Black Running Shoes"),
    "brown-watch": ("Men Brown Leather Strap Watch", "Classic Men Brown Dial Analog Watch"),
}


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """The panels of the shipped checkpoint on the examples."""
    predictor = Predictor.load(ROOT / "weights" / "fashion", device="cpu", dtype="float32")
    test = DeletionTest({"served": served}, np.random.default_rng(0))
    for name, titles in MADE.items():
        image = Image.open(ROOT / "examples" / "images" / f"{name}.jpg").convert("RGB")
        for title in titles:
            for situation, question in questions(predictor, title, image):
                test.ask(situation, question)
    return summary(test.drops, [task.name for task in predictor.tasks])


@pytest.mark.parametrize(
    ("panel", "points"),
    [("words, both", 3), ("words, title alone", 5), ("parts, image alone", 5)],
)
def test_without_what_an_explanation_names_a_label_loses_more_than_without_anything_else(
    shipped: dict[str, Any], panel: str, points: float
) -> None:
    shares = shipped[panel]["methods"]["served"]
    assert np.mean([shares[share]["more_than_random"]["mean"] for share in ("0.1", "0.25")]) > points


def test_with_both_the_picture_never_matters_less_where_its_heat_is(shipped: dict[str, Any]) -> None:
    """Titles say most of it, so that little is lost; but no less than at random."""
    shares = shipped["parts, both"]["methods"]["served"]
    assert np.mean([shares[share]["more_than_random"]["mean"] for share in ("0.1", "0.25")]) > 0


# ── the test itself ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def predictor(checkpoint_folder: Path) -> Predictor:
    predictor = Predictor.load(checkpoint_folder)
    predictor.network.requires_grad_(False)
    return predictor


@pytest.mark.parametrize("method", METHODS)
def test_each_method_weighs_what_there_is(predictor: Predictor, method: str) -> None:
    for situation, question in questions(predictor, "Plain Red Circle", draw("Red", "Circle")):
        weights = METHODS[method](question)
        for what, found in (("parts", weights.parts), ("words", weights.words)):
            if question.size[what]:
                assert np.shape(found) == (2, question.size[what]), situation
                assert np.isfinite(found).all()  # type: ignore[arg-type]
            else:
                assert found is None


def test_gradients_along_the_whole_way_add_up(predictor: Predictor) -> None:
    """Completeness (Sundararajan et al., section 3): together they are what the whole input changes in the log-odds."""
    (_, question), *_ = questions(predictor, "Red", draw("Red", "Circle"))
    steps = [(k + 0.5) / 200 for k in range(200)]
    weights = faithfulness.Run(question, steps).along()
    assert weights.parts is not None
    assert weights.words is not None
    ends = [faithfulness.Run(question, [share]) for share in (0.0, 1.0)]
    for t, label in enumerate(question.labels):
        before, after = (float(_odds(run.logits[t][0].tolist(), label)) for run in ends)
        assert weights.parts[t].sum() + weights.words[t].sum() == pytest.approx(after - before, abs=2e-3)


def _odds(scores: Any, label: int) -> Any:
    others = [score for at, score in enumerate(scores) if at != label]
    return scores[label] - np.log(np.exp(others).sum())


def test_the_greatest_weights_are_taken_and_ties_are_drawn(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that knows what matters beats the others; one that weighs all alike is as good as chance."""
    (_, question), *_ = questions(predictor, "one two three four five six", draw("Red", "Circle"))

    def confidences(self: Question, items: list[Any]) -> np.ndarray[Any, Any]:
        """ "three" is all that matters, and only to the second attribute."""
        said = [item.title.words for item in items]
        return np.array([[0.5, 0.9 if "three" in words else 0.1] for words in said])

    monkeypatch.setattr(Question, "confidences", confidences)
    one = np.eye(6)[[0, 2]]
    methods = {
        "knows": lambda _: Weights(np.zeros((2, 6)), one),
        "knows not": lambda _: Weights(np.zeros((2, 6)), 1 - one),
        "even": lambda _: Weights(np.zeros((2, 6)), np.ones((2, 6))),
    }
    test = DeletionTest(methods, np.random.default_rng(0))
    for _ in range(200):
        test.ask("both", question)
    found = summary(test.drops, ["colour", "shape"])["words, both"]
    assert found["listings"] == 200
    for share, chance in (("0.1", 1 / 6), ("0.25", 2 / 6), ("0.5", 3 / 6)):
        drop = {name: shares[share]["by_attribute"]["shape"]["mean"] for name, shares in found["methods"].items()}
        assert drop["knows"] == 80
        assert drop["knows not"] == 0
        assert drop["even"] == pytest.approx(80 * chance, abs=9)
        assert drop["random"] == pytest.approx(80 * chance, abs=5)
        assert found["methods"]["knows"][share]["by_attribute"]["colour"]["mean"] == 0
        assert found["methods"]["knows"][share]["drop"]["mean"] == 40


def test_intervals_hold_what_they_promise() -> None:
    generator = np.random.default_rng(1)
    found = [Interval.of(generator.normal(0.3, 0.2, 50)) for _ in range(500)]
    assert 0.91 < np.mean([each.low <= 30 <= each.high for each in found]) < 0.98


def test_one_command_measures_and_writes(
    checkpoint_folder: Path, catalogue_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    options = ["--checkpoint", checkpoint_folder, "--catalogue", catalogue_toml, "--listings", "2", "--json", out]
    assert main([str(option) for option in options]) == 0
    assert "words, title alone" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["listings"] == 2
    assert set(found["milliseconds"]) == {"plain answer", *METHODS}
    for panel, method in itertools.product(found["panels"].values(), METHODS):
        assert set(panel["methods"][method]["0.5"]["by_attribute"]) == {"colour", "shape"}


def test_a_checkpoint_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path)]) == 2
    assert "error" in capsys.readouterr().out
