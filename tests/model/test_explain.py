"""Explanations: what is taken away, how the answer's change becomes weights, and the predictor's own, asked anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.checkpoint.folder import load_checkpoint
from model.checkpoint.weights import save_checkpoint
from model.config import ModelConfig, PreprocessConfig
from model.inference.explain import ImageVariants, TitleVariants, log_odds
from model.inference.predictions import Explanation, Frame
from model.inference.predictor import ModelInput, Predictor
from model.inputs.tokenizer import TitleTokenizer
from model.network.cma_clip import CMAClip
from model.tasks import Task
from tests.conftest import draw

TITLE = "Plain Red Circle number nine"
FRAME = Frame(0.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def tokenize() -> TitleTokenizer:
    return TitleTokenizer(PreprocessConfig(image_size=(24, 16), context_length=16))


# ── titles ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_titles_variants_are_what_the_tokenizer_makes_of_the_words_left(tokenize: TitleTokenizer) -> None:
    variants = TitleVariants(tokenize(" Turtleneck  Red Turtleneck "))
    expected = [
        "Turtleneck Red Turtleneck",
        "",
        "Red Turtleneck",
        "Turtleneck Turtleneck",
        "Turtleneck Red",
        "Turtleneck",
        "Red",
        "Turtleneck",
    ]
    assert [list(tokens) for tokens in variants.tokens] == [list(tokenize(title).tokens) for title in expected]


def test_a_word_that_the_title_says_twice_is_not_missed(tokenize: TitleTokenizer) -> None:
    """Without either "Red" nothing is lost, yet each alone says it all; "Coat" alone even speaks against it."""
    variants = TitleVariants(tokenize("Red Red Coat"))
    odds = np.array([5.0, -1.0, *(5.0, 5.0, 5.5), *(5.0, 5.0, -2.0)])
    found = variants.explain(odds)
    assert [word.token for word in found] == ["Red", "Red", "Coat"]
    assert [word.weight for word in found] == [0.5, 0.5, 0.0]


def test_words_beyond_the_context_weigh_nothing(tokenize: TitleTokenizer) -> None:
    title = tokenize("x " * 20)
    variants = TitleVariants(title)
    assert len(variants.words) == 14  # of a context of 16, with start and end
    for odds in (np.array([13.0, 0.0, *range(14), *[0.0] * 14]), np.zeros(30)):
        weights = [word.weight for word in variants.explain(odds)]
        assert len(weights) == 20
        assert sum(weights) == pytest.approx(1)
        assert weights[14:] == [0.0] * 6
        assert weights[0] > 0


@pytest.mark.parametrize("title", ["Red", "\u0301\u0301", "a" * 500])
def test_titles_of_one_word_or_of_none_that_has_a_token(tokenize: TitleTokenizer, title: str) -> None:
    variants = TitleVariants(tokenize(title))
    found = variants.explain(np.linspace(1.0, 0.0, len(variants.tokens)))
    assert [word.weight for word in found] == [1.0]


# ── images ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("grid", "parts", "size"),
    [
        ((5, 4), (5, 4), (80, 64)),
        ((7, 7), (7, 7), (224, 224)),
        ((16, 16), (8, 8), (224, 224)),
        ((3, 20), (3, 8), (50, 61)),
    ],
)
def test_every_pixel_is_covered_once(grid: tuple[int, int], parts: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = np.zeros((3, *size), dtype=np.uint8)
    variants = ImageVariants(pixels, grid, fill=1)
    assert variants.parts == parts
    assert variants.images.shape == (1 + parts[0] * parts[1], 3, *size)
    assert not variants.images[0].any()
    assert (variants.images.sum(axis=0) == 1).all()
    assert (variants.covered(range(variants.count - 1)) == 1).all()
    assert not pixels.any()


def test_a_part_weighs_what_the_label_loses_without_it() -> None:
    variants = ImageVariants(np.zeros((3, 4, 4), dtype=np.uint8), (2, 2), fill=255)
    found = variants.explain(np.array([4.0, 3.0, 4.5, 4.0, 1.0]), FRAME)
    assert found.weights == [[0.25, 0.0], [0.0, 0.75]]
    assert variants.explain(np.array([4.0, 5.0, 5.0, 5.0, 5.0]), FRAME).weights == [[0.25, 0.25], [0.25, 0.25]]


def test_log_odds_do_not_saturate() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1]])
    assert log_odds(np.log(probabilities).astype(np.float32), 0) == pytest.approx(np.log(0.7 / 0.3), abs=1e-6)
    sure = np.array([[100.0, 0.0, 0.0], [200.0, 0.0, 0.0]], dtype=np.float32)
    assert log_odds(sure, 0) == pytest.approx([100 - np.log(2), 200 - np.log(2)])
    assert log_odds(sure[:, :1], 0).tolist() == [100.0, 200.0]


# ── the predictor's ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def predictor(checkpoint_folder: Path) -> Predictor:
    return Predictor.load(checkpoint_folder)


def explanations(predictor: Predictor, items: list[ModelInput]) -> list[dict[str, Explanation]]:
    found = [answer.explanations for answer in predictor.predict(predictor.collate(items))]
    return [dict(each) for each in found if each is not None]


def odds_of(
    predictor: Predictor, given: list[tuple[str | None, Image.Image | None]], t: int, label: int
) -> NDArray[np.float64]:
    """Ask for each listing alone, as a caller would."""
    raw = [logits_of(predictor, predictor.prepare(*each))[t] for each in given]
    return np.concatenate([log_odds(each, label) for each in raw])


def logits_of(predictor: Predictor, item: ModelInput) -> tuple[NDArray[np.float32], ...]:
    return predictor.outputs(predictor.collate([item]))[item.situation].raw.logits


def shares(values: NDArray[np.float64]) -> list[float]:
    positive = values.clip(min=0)
    return list(positive / positive.sum() if positive.any() else np.full(len(values), 1 / len(values)))


@pytest.mark.parametrize("with_title", [True, False])
@pytest.mark.parametrize("with_image", [True, False])
def test_an_explanation_is_what_asking_again_gives(predictor: Predictor, *, with_title: bool, with_image: bool) -> None:
    if not (with_title or with_image):
        return
    whole = draw("Red", "Circle").resize((16, 24))  # the network's own size: covered here, it is covered there
    title, image = TITLE if with_title else None, whole if with_image else None
    item = predictor.prepare(title, image, explain=True)
    (found,) = explanations(predictor, [item])
    (answer,) = predictor.predict(predictor.collate([item]))
    for t, (name, explanation) in enumerate(found.items()):
        label = predictor.tasks[t].labels.index(answer.attribute(name, target_precision=0.5, top_k=1).label)
        if with_title:
            words = TITLE.split()
            without = [" ".join(words[:at] + words[at + 1 :]) for at in range(len(words))]
            odds = odds_of(predictor, [(each, image) for each in (TITLE, *without, *words)], t, label)
            gained = odds[1 + len(words) :] - odds_of_nothing(predictor, item, t, label)
            assert explanation.text is not None
            expected = shares(odds[0] - odds[1 : 1 + len(words)] + gained)
            assert [word.weight for word in explanation.text] == pytest.approx(expected, abs=1e-3)
        if with_image:
            covered = [whole.copy() for _ in range(6)]
            for part, each in enumerate(covered):
                left, upper = part % 2 * 8, part // 2 * 8
                each.paste("white", (left, upper, left + 8, upper + 8))
            odds = odds_of(predictor, [(title, each) for each in (whole, *covered)], t, label)
            assert explanation.image is not None
            assert np.ravel(explanation.image.weights) == pytest.approx(shares(odds[0] - odds[1:]), abs=1e-3)


def odds_of_nothing(predictor: Predictor, item: ModelInput, t: int, label: int) -> float:
    """Of the listing with a title that says nothing: start and end alone."""
    assert item.title is not None
    title = replace(item.title, tokens=item.title.tokens[[0, -1]], word_of_token=())
    return float(log_odds(logits_of(predictor, replace(item, title=title))[t], label)[0])


def test_neighbours_change_no_explanation_and_explaining_no_answer(predictor: Predictor) -> None:
    titles = [TITLE, None, "a much longer title about a green square and many more words than the context has"]
    images = [draw("Red", "Circle"), draw("Black", "Circle", 5), None]
    given = list(zip(titles, images, strict=True))
    explained = [predictor.prepare(*each, explain=True) for each in given]
    plain = [predictor.prepare(*each) for each in given]
    together = explanations(predictor, explained)
    for item, expected in zip(explained, together, strict=True):
        (alone,) = explanations(predictor, [plain[1], item, plain[0]])
        for name, one in alone.items():
            other = expected[name]
            if one.image is not None and other.image is not None:
                assert np.allclose(one.image.weights, other.image.weights, atol=1e-6)
            assert [w.weight for w in one.text or ()] == pytest.approx([w.weight for w in other.text or ()], abs=1e-6)
    for items in (explained, [explained[0], plain[1], plain[2]]):
        for found, expected_answer in zip(
            predictor.predict(predictor.collate(items)), predictor.predict(predictor.collate(plain)), strict=True
        ):
            for task in predictor.tasks:
                explained_one, plain_one = (
                    each.attribute(task.name, target_precision=0.5, top_k=10) for each in (found, expected_answer)
                )
                assert replace(explained_one, explanation=None) == plain_one  # bit for bit


def test_nothing_is_run_twice_unless_asked_for(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "_variant_logits", None)
    (answer,) = predictor.predict(predictor.collate([predictor.prepare(TITLE, draw("Red", "Circle"))]))
    assert answer.explanations is None


@pytest.mark.parametrize(
    ("resize", "frame"),
    [("squash", (0, 0, 1, 1)), ("longest", (0, -0.25, 1, 1.25)), ("shortest", (1 / 6, 0, 5 / 6, 1))],
)
def test_an_explanation_says_where_its_grid_lies(
    tmp_path: Path,
    network: CMAClip,
    model_config: ModelConfig,
    tasks: tuple[Task, ...],
    resize: Literal["longest", "shortest", "squash"],
    frame: tuple[float, ...],
) -> None:
    """A square image before a network whose input is 24 high and 16 wide."""
    config = replace(model_config, preprocess=replace(model_config.preprocess, resize=resize))
    save_checkpoint(tmp_path / "cropping", network, name="cropping", config=config, tasks=tasks, training={})
    assert load_checkpoint(tmp_path / "cropping").config.preprocess.resize == resize
    predictor = Predictor.load(tmp_path / "cropping")
    (found,) = explanations(predictor, [predictor.prepare(None, Image.new("RGB", (90, 90)), explain=True)])
    image = found["colour"].image
    assert image is not None
    assert (image.frame.left, image.frame.top, image.frame.right, image.frame.bottom) == pytest.approx(frame)


def test_the_grid_of_a_trimmed_photo_lies_where_its_product_is(
    tmp_path: Path, network: CMAClip, model_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    """An input of 24 x 16 shows a product of 60 x 40 with a margin of 3 % of 60 on each side, and padding."""
    config = replace(model_config, preprocess=replace(model_config.preprocess, framing="product", resize="longest"))
    save_checkpoint(tmp_path / "framing", network, name="framing", config=config, tasks=tasks, training={})
    photo = Image.new("RGB", (160, 120), "white")
    photo.paste((20, 30, 120), (90, 30, 130, 90))
    predictor = Predictor.load(tmp_path / "framing")
    (found,) = explanations(predictor, [predictor.prepare(None, photo, explain=True)])
    image = found["colour"].image
    assert image is not None
    width = 43.6  # of the box, which is wider than the input's shape
    assert image.frame.left * 160 == pytest.approx(110 - width / 2)
    assert image.frame.right * 160 == pytest.approx(110 + width / 2)
    assert image.frame.top * 120 == pytest.approx(60 - width * 24 / 16 / 2)
    assert image.frame.bottom * 120 == pytest.approx(60 + width * 24 / 16 / 2)
