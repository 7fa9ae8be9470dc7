"""The deletion test, and its results for the shipped checkpoint on listings that were made for this repository."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.inference.explain import ImageVariants
from model.inference.predictor import Predictor
from research.faithfulness import GREY, PANELS, DeletionTest, Interval, main, summary
from research.saliency import METHODS, Question, Run, Variant, Weights, questions, served, torch_engine
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
            test.ask(questions(predictor, title, image))
    return summary(test.drops, [task.name for task in predictor.tasks])


@pytest.mark.parametrize(
    ("panel", "points"),
    [("words, both", 3), ("words, title alone", 5), ("parts, image alone", 5)],
)
def test_a_label_loses_more_without_what_its_explanation_names_than_at_random(
    shipped: dict[str, Any], panel: str, points: float
) -> None:
    shares = shipped[panel]["methods"]["served"]
    assert np.mean([shares[share]["more_than_random"]["mean"] for share in ("0.1", "0.25")]) > points


def test_with_both_the_image_matters_no_less_where_its_weights_are(shipped: dict[str, Any]) -> None:
    """The title decides most labels, so that little is lost; but no less than at random."""
    shares = shipped["parts, both"]["methods"]["served"]
    assert np.mean([shares[share]["more_than_random"]["mean"] for share in ("0.1", "0.25")]) > 0


# ── the test itself ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def predictor(checkpoint_folder: Path) -> Predictor:
    predictor = Predictor.load(checkpoint_folder)
    torch_engine(predictor).network.requires_grad_(False)
    return predictor


TITLE = "Plain Red Circle, very very red, 100% round"


def plain(question: Question, what: str, gone: tuple[int, ...], cover: int) -> list[float]:
    """The confidences of the labels in a listing that was changed before it was predicted like any other."""
    predictor, item = question.predictor, question.item
    if what == "words":
        left = " ".join(word for at, word in enumerate(TITLE.split()) if at not in gone)
        item = replace(item, title=predictor.tokenize(left))
    else:
        assert item.pixels is not None
        image = ImageVariants(item.pixels, predictor.engine.info.grid, cover)
        item = replace(item, pixels=image.covered(gone))
    (answer,) = predictor.predict(predictor.collate([item]))
    found = []
    for task, label in zip(predictor.tasks, question.labels, strict=True):
        candidates = answer.attribute(task.name, target_precision=0.95, top_k=len(task.labels)).candidates
        found.append(next(each.confidence for each in candidates if each.label == task.labels[label]))
    return found


@pytest.mark.parametrize("situation", ["both", "title alone", "image alone"])
def test_variants_are_predicted_as_plain_listings_are(predictor: Predictor, situation: str) -> None:
    """Whatever was predicted before, in whichever situation."""
    fill = predictor.transform.config.fill
    of_all = questions(predictor, TITLE, draw("Red", "Circle"))
    asked = [
        (what, gone, cover)
        for what, cover in (("words", fill), ("parts", fill), ("parts", GREY))
        for gone in ((), (0,), (1, 3), (0, 2))
        if of_all[situation].size[what]
    ]
    for question in (*of_all.values(), of_all[situation]):
        fitting = [each for each in asked if question.size[each[0]]]
        found = question.confidences([question.whole, *(question.without(*each) for each in fitting)])[1:]
    expected = [plain(question, *each) for each in asked]
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    assert len({tuple(np.round(each, 7)) for each in expected}) > 3


@pytest.mark.parametrize("title", [TITLE, "Red", "red " * 60])
def test_the_served_method_is_what_the_service_answers(predictor: Predictor, title: str) -> None:
    for situation, question in questions(predictor, title, draw("Red", "Circle")).items():
        (answer,) = predictor.predict(predictor.collate([replace(question.item, explain=True)]))
        assert answer.explanations is not None
        weights = served(question)
        for t, explanation in enumerate(answer.explanations.values()):
            for found, expected in ((weights.parts, explanation.image), (weights.words, explanation.text)):
                assert (found is None) == (expected is None), situation
            if explanation.image and weights.parts is not None:
                assert weights.parts[t] == pytest.approx(np.ravel(explanation.image.weights), abs=1e-3)
            if explanation.text and weights.words is not None:
                assert weights.words[t] == pytest.approx(np.array([e.weight for e in explanation.text]), abs=1e-3)


def test_nothing_is_encoded_twice(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, rows = torch_engine(predictor).network.backbone, {"image": 0, "text": 0}
    for name in rows:
        encode = getattr(backbone, f"encode_{name}")

        def counted(inputs: Any, name: str = name, encode: Any = encode) -> Any:
            rows[name] += len(inputs)
            return encode(inputs)

        monkeypatch.setattr(backbone, f"encode_{name}", counted)
    asked = questions(predictor, "Plain Red Circle", draw("Red", "Circle"))
    for question in [*asked.values()] * 2:
        served(question)
        METHODS["left out one by one"](question)
    assert rows == {"image": 1 + asked["both"].size["parts"], "text": 2 + 2 * 3}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_weighs_the_modalities_that_are_present(predictor: Predictor, method: str) -> None:
    for situation, question in questions(predictor, "Plain Red Circle", draw("Red", "Circle")).items():
        weights = METHODS[method](question)
        for what, found in (("parts", weights.parts), ("words", weights.words)):
            if question.size[what]:
                assert found is not None, situation
                assert found.shape == (2, question.size[what]), situation
                assert np.isfinite(found).all()
            else:
                assert found is None


@pytest.mark.parametrize("situation", ["both", "image alone"])
def test_gradients_along_the_whole_path_add_up(predictor: Predictor, situation: str) -> None:
    """Completeness (Sundararajan et al., section 3): their sum is the change of the log-odds over the whole path."""
    question = questions(predictor, "Red", draw("Red", "Circle"))[situation]
    weights = Run.along(question, [(k + 0.5) / 200 for k in range(200)]).integrated()
    assert weights.parts is not None
    sums = weights.parts.sum(axis=1) + (0 if weights.words is None else weights.words.sum(axis=1))
    ends = [Run.along(question, [share]) for share in (0.0, 1.0)]
    for t, label in enumerate(question.labels):
        before, after = (float(_odds(run.logits[t][0].tolist(), label)) for run in ends)
        assert sums[t] == pytest.approx(after - before, abs=2e-3)


def _odds(scores: Any, label: int) -> Any:
    others = [score for at, score in enumerate(scores) if at != label]
    return scores[label] - np.log(np.exp(others).sum())


def test_the_greatest_weights_are_taken_and_ties_are_drawn(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that knows what matters beats the others; one with equal weights is as good as chance."""
    question = questions(predictor, "one two three four five six", draw("Red", "Circle"))["both"]
    (three,) = set(predictor.tokenize("three").tokens[1:-1].tolist())

    def confidences(self: Question, variants: list[Variant]) -> np.ndarray[Any, Any]:
        """ "three" is all that matters, and only to the second attribute."""
        return np.array([[0.5, 0.9 if three in (each.title or ()) else 0.1] for each in variants])

    monkeypatch.setattr(Question, "confidences", confidences)
    one, size = np.eye(6)[[0, 2]], question.size["parts"]
    methods = {
        "knows": lambda _: Weights(np.zeros((2, size)), one),
        "knows not": lambda _: Weights(np.zeros((2, size)), 1 - one),
        "even": lambda _: Weights(np.zeros((2, size)), np.ones((2, 6))),
    }
    test = DeletionTest(methods, np.random.default_rng(0))
    for _ in range(200):
        test.ask({"both": question})
    found = summary(test.drops, ["colour", "shape"])["words, both"]
    assert found["listings"] == 200
    for share, chance in (("0.1", 1 / 6), ("0.25", 2 / 6)):
        drop = {name: shares[share]["by_attribute"]["shape"]["mean"] for name, shares in found["methods"].items()}
        assert drop["knows"] == 80
        assert drop["knows not"] == 0
        assert drop["even"] == pytest.approx(80 * chance, abs=9)
        assert drop["random"] == pytest.approx(80 * chance, abs=5)
        assert found["methods"]["knows"][share]["by_attribute"]["colour"]["mean"] == 0
        assert found["methods"]["knows"][share]["drop"]["mean"] == 40


def test_intervals_cover_the_mean_as_often_as_they_should() -> None:
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
    assert set(found["panels"]) == set(PANELS)
    for panel, method in itertools.product(found["panels"].values(), METHODS):
        assert set(panel["methods"][method]["0.25"]["by_attribute"]) == {"colour", "shape"}
        assert set(panel["methods"][method]["0.25"]["more_than_random"]) == {"mean", "low", "high"}


def test_a_checkpoint_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path)]) == 2
    assert "error" in capsys.readouterr().out
