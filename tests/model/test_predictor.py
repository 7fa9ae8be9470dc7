"""The predictor: the same answer in any company, exact absent modalities, verdicts by the listing's own situation."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint.folder import CALIBRATION, load_checkpoint, write_part
from model.checkpoint.weights import save_checkpoint
from model.errors import CheckpointError, ConfigError
from model.inference.predictions import Prepared
from model.inference.predictor import ModelInput, Predictor
from model.network.cma_clip import CMAClip
from model.situations import ListingWarning, Situation
from model.trust.calibration import AttributeCalibration, Calibration, Certificate
from tests.conftest import draw

TARGETS = (0.5, 0.9)


@pytest.fixture(params=["torch", "openvino-f32"])
def predictor(request: pytest.FixtureRequest, checkpoint_folder: Path, compiled_folder: Path) -> Predictor:
    """The tiny network on each engine, with a threshold of its own for each situation and target."""
    engine: str = request.param
    shutil.copytree(compiled_folder, checkpoint_folder / "engines")
    checkpoint = load_checkpoint(checkpoint_folder, None if engine == "torch" else engine)
    thresholds = {Situation.IMAGE_AND_TITLE: (0.1, None), Situation.IMAGE: (0.2, 0.9), Situation.TITLE: (None, None)}
    situations = {
        situation: {
            task.name: AttributeCalibration(
                temperature=1.5,
                thresholds={
                    target: None if t is None else Certificate(threshold=t, coverage=1.0, support=100, bound=target)
                    for target, t in zip(TARGETS, pair, strict=True)
                },
            )
            for task in checkpoint.tasks
        }
        for situation, pair in thresholds.items()
    }
    calibration = Calibration(
        version=checkpoint.version,
        method="made up",
        confidence_level=0.95,
        target_precisions=TARGETS,
        situations=situations,
    )
    write_part(checkpoint, CALIBRATION, calibration.to_json())
    return Predictor.load(checkpoint_folder, engine=engine)


def listings(predictor: Predictor, *, explain: bool = False) -> list[ModelInput]:
    titles = ["Plain Red Circle", "x", "a much longer title about a green square and many more words", None, "Blue"]
    images = [draw("Red", "Circle"), None, draw("Green", "Square", 3), draw("Black", "Circle", 5), None]
    return [predictor.prepare(t, i, explain=explain) for t, i in zip(titles, images, strict=True)]


def confidences(predictor: Predictor, items: list[ModelInput]) -> list[dict[str, float]]:
    return [
        {
            f"{task.name}={candidate.label}": candidate.confidence
            for task in predictor.tasks
            for candidate in answer.attribute(task.name, target_precision=0.5, top_k=10).candidates
        }
        for answer in predictor.predict(predictor.collate(items))
    ]


def test_a_listing_is_answered_the_same_in_any_company(predictor: Predictor) -> None:
    items = listings(predictor)
    together = confidences(predictor, items)
    for item, expected in zip(items, together, strict=True):
        assert confidences(predictor, [item])[0] == pytest.approx(expected, abs=1e-6)
    for shift in range(1, 5):
        rolled = confidences(predictor, items[shift:] + items[:shift] + items)
        assert rolled[-5:] == [pytest.approx(each, abs=1e-6) for each in together]


def test_each_answer_is_judged_by_its_own_situation(predictor: Predictor) -> None:
    both, title, _, image, _ = predictor.predict(predictor.collate(listings(predictor)))
    assert (both.scope.situation, title.scope.situation, image.scope.situation) == (
        Situation.IMAGE_AND_TITLE,
        Situation.TITLE,
        Situation.IMAGE,
    )
    found = [each.attribute("colour", target_precision=0.5, top_k=2) for each in (both, image, title)]
    assert [(r.threshold, r.accepted) for r in found] == [(0.1, True), (0.2, True), (None, False)]
    assert image.attribute("colour", target_precision=0.9, top_k=1).accepted is False
    assert predictor.thresholds("colour")[Situation.IMAGE] == {0.5: 0.2, 0.9: 0.9}


def test_a_label_with_a_threshold_of_its_own_is_judged_by_it(predictor: Predictor) -> None:
    item = predictor.prepare("Plain Red Circle", None)
    plain = predictor.predict(predictor.collate([item]))[0].attribute("colour", target_precision=0.5, top_k=1)
    assert (plain.threshold, plain.accepted) == (None, False)
    folder = predictor.checkpoint.folder
    calibration = predictor.checkpoint.calibration
    assert calibration is not None

    def judged(labels: dict[str, dict[float, Certificate | None]]) -> tuple[float | None, bool]:
        attributes = calibration.situations[Situation.TITLE]
        own = {**attributes, "colour": dataclasses.replace(attributes["colour"], labels=labels)}
        changed = dataclasses.replace(calibration, situations={**calibration.situations, Situation.TITLE: own})
        write_part(predictor.checkpoint, CALIBRATION, changed.to_json())
        loaded = Predictor.load(folder, engine=predictor.info.engine)
        assert loaded.info.calibration != predictor.info.calibration
        prediction = loaded.predict(loaded.collate([item]))[0].attribute("colour", target_precision=0.5, top_k=1)
        return prediction.threshold, prediction.accepted

    exactly = Certificate(threshold=plain.confidence, coverage=1.0, support=100, bound=0.6)
    assert judged({plain.label: {0.5: exactly}}) == (plain.confidence, True)
    above = dataclasses.replace(exactly, threshold=float(np.nextafter(plain.confidence, 1)))
    assert judged({plain.label: {0.5: above}}) == (above.threshold, False)
    certified = Certificate(threshold=0.01, coverage=1.0, support=100, bound=0.6)
    assert judged({plain.label: {0.5: certified}}) == (0.01, True)
    assert judged({plain.label: {0.5: None}}) == (None, False)
    other = next(label for label in predictor.tasks[0].labels if label != plain.label)
    assert judged({other: {0.5: certified}}) == (None, False)
    with pytest.raises(CheckpointError, match="colour has no label 'Mauve' in config"):
        judged({"Mauve": {0.5: certified}})


def test_a_calibration_of_other_attributes_is_named(predictor: Predictor) -> None:
    calibration = predictor.checkpoint.calibration
    assert calibration is not None
    situations = {
        situation: {"size" if name == "colour" else name: own for name, own in attributes.items()}
        for situation, attributes in calibration.situations.items()
    }
    changed = dataclasses.replace(calibration, situations=situations)
    write_part(predictor.checkpoint, CALIBRATION, changed.to_json())
    with pytest.raises(CheckpointError, match=r"situation image_and_title and config.json differ in 'colour'"):
        Predictor.load(predictor.checkpoint.folder, engine=predictor.info.engine)


def test_predictions_are_complete(predictor: Predictor) -> None:
    for answer in predictor.predict(predictor.collate(listings(predictor))):
        prediction = answer.attribute("colour", target_precision=0.9, top_k=10)
        confidences = [candidate.confidence for candidate in prediction.candidates]
        assert sum(confidences) == pytest.approx(1)
        assert confidences == sorted(confidences, reverse=True)
        assert (prediction.label, prediction.confidence) == dataclasses.astuple(prediction.candidates[0])
        assert sum(prediction.modality_attention.values()) == pytest.approx(1)
        assert prediction.explanation is None
        assert answer.attribute("colour", target_precision=0.9, top_k=1).candidates == prediction.candidates[:1]


def test_an_absent_modality_weighs_exactly_nothing(predictor: Predictor) -> None:
    answers = predictor.predict(predictor.collate(listings(predictor)))
    weights = [each.attribute("shape", target_precision=0.5, top_k=1).modality_attention for each in answers]
    assert weights[1] == {"image": 0.0, "text": 1.0}
    assert weights[3] == {"image": 1.0, "text": 0.0}


def test_explanations_cover_patches_and_the_callers_words(predictor: Predictor) -> None:
    answers = predictor.predict(predictor.collate(listings(predictor, explain=True)))
    explanation = answers[0].attribute("colour", target_precision=0.5, top_k=1).explanation
    assert explanation is not None
    assert explanation.image is not None
    assert (explanation.image.rows, explanation.image.columns) == (3, 2)
    assert np.shape(explanation.image.weights) == (3, 2)
    assert np.sum(explanation.image.weights) == pytest.approx(1)
    assert explanation.text is not None
    assert [part.token for part in explanation.text] == ["Plain", "Red", "Circle"]
    assert sum(part.weight for part in explanation.text) == pytest.approx(1)
    assert min(part.weight for part in explanation.text) >= 0
    title_alone = answers[1].attribute("colour", target_precision=0.5, top_k=1).explanation
    image_alone = answers[3].attribute("colour", target_precision=0.5, top_k=1).explanation
    assert title_alone is not None
    assert title_alone.image is None
    assert image_alone is not None
    assert image_alone.text is None


def test_a_batch_of_one_modality_alone(predictor: Predictor) -> None:
    items = listings(predictor)
    for group in ([items[1], items[4]], [items[3], items[3]]):
        batch = predictor.collate(group)
        assert (batch.placed.pixels is None) != (batch.placed.tokens is None)
        assert len(predictor.predict(batch)) == 2


@pytest.mark.parametrize(("words", "length"), [(1, 8), (6, 8), (7, 16), (14, 16), (60, 16)])
def test_titles_are_padded_to_few_sizes(predictor: Predictor, words: int, length: int) -> None:
    tokens = predictor.collate([predictor.prepare("x " * words, None)]).placed.tokens
    assert tokens is not None
    assert tokens.shape == (1, length)


def test_a_listing_without_title_and_image_is_refused(predictor: Predictor) -> None:
    for title in (None, "", " \t\n"):
        with pytest.raises(ValueError, match="needs a title or an image"):
            predictor.prepare(title, None)
    assert predictor.prepare("  ", draw("Red", "Circle")).situation is Situation.IMAGE


def test_a_title_that_is_cut_is_warned_of_beside_what_was_before(predictor: Predictor) -> None:
    room = 16 - 2  # of the context, without start and end
    given = [
        predictor.prepare("x " * room, None),
        predictor.prepare("x " * (room + 1), None, warnings=(ListingWarning.PROFILE_UNREADABLE,)),
    ]
    fits, cut = predictor.predict(predictor.collate(given))
    assert fits.warnings == ()
    assert cut.warnings == (ListingWarning.PROFILE_UNREADABLE, ListingWarning.TITLE_TRUNCATED)


def test_memory_of_a_waiting_listing_is_counted(predictor: Predictor) -> None:
    items: Sequence[Prepared] = listings(predictor)
    assert items[0].nbytes >= 3 * 24 * 16
    assert items[1].nbytes < 100


def test_info_says_what_is_loaded(predictor: Predictor, network: CMAClip) -> None:
    info = predictor.info
    assert (info.name, info.backbone, info.device, info.dtype) == ("tiny", "tiny", "cpu", "float32")
    assert (info.image_size, info.target_precisions) == ((24, 16), TARGETS)
    assert info.parameters == sum(p.numel() for p in network.parameters())


def test_warm_up_runs_every_padded_shape_where_the_engine_needs_it(predictor: Predictor) -> None:
    shapes = {"1 x 16 tokens", "4 x 16 tokens"}
    if predictor.info.engine == "torch":
        shapes |= {"1 x 8 tokens", "4 x 8 tokens"}
    assert set(predictor.warm_up(4)) == {*shapes, "1 explained"}


def test_an_uncalibrated_checkpoint_accepts_nothing(checkpoint_folder: Path) -> None:
    predictor = Predictor.load(checkpoint_folder)
    answer = predictor.predict(predictor.collate([predictor.prepare("Red", None)]))[0]
    prediction = answer.attribute("colour", target_precision=0.95, top_k=3)
    assert (prediction.accepted, prediction.threshold, predictor.info.target_precisions) == (False, None, ())


def test_half_precision_gives_nearly_the_same(checkpoint_folder: Path, predictor: Predictor) -> None:
    half = Predictor.load(checkpoint_folder, dtype="bfloat16")
    for a, b in zip(confidences(predictor, listings(predictor)), confidences(half, listings(half)), strict=True):
        assert b == pytest.approx(a, abs=0.03)


@pytest.mark.parametrize(
    ("device", "dtype"), [("tpu", "auto"), ("cuda:7", "auto"), ("cpu", "float8"), ("meta", "auto")]
)
def test_impossible_devices_and_dtypes_are_named(checkpoint_folder: Path, device: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"{device}|{dtype}"):
        Predictor.load(checkpoint_folder, device=device, dtype=dtype)


@pytest.mark.parametrize("explain", [False, True])
def test_engines_answer_alike(checkpoint_folder: Path, compiled_folder: Path, explain: bool) -> None:
    shutil.copytree(compiled_folder, checkpoint_folder / "engines")
    reference, compiled = (Predictor.load(checkpoint_folder, engine=name) for name in ("torch", "openvino-f32"))
    answers = [each.predict(each.collate(listings(each, explain=explain))) for each in (compiled, reference)]
    for answer, expected in zip(*answers, strict=True):
        for task in reference.tasks:
            one, other = (each.attribute(task.name, target_precision=0.5, top_k=10) for each in (answer, expected))
            assert one.label == other.label
            assert one.confidence == pytest.approx(other.confidence, abs=2e-3)
            assert one.modality_attention == pytest.approx(other.modality_attention, abs=2e-3)
            assert (one.explanation is None) == (other.explanation is None) == (not explain)
            if one.explanation and other.explanation and one.explanation.image and other.explanation.image:
                assert np.allclose(one.explanation.image.weights, other.explanation.image.weights, atol=0.02)
            if one.explanation and other.explanation and one.explanation.text and other.explanation.text:
                weights = [[part.weight for part in each] for each in (one.explanation.text, other.explanation.text)]
                assert weights[0] == pytest.approx(weights[1], abs=0.02)


def test_towers_without_attributes_cannot_be_served(tmp_path: Path, checkpoint_folder: Path, network: CMAClip) -> None:
    config = load_checkpoint(checkpoint_folder).config
    save_checkpoint(tmp_path / "towers", network, name="towers", config=config, tasks=(), training={})
    with pytest.raises(CheckpointError, match="without attributes"):
        Predictor.load(tmp_path / "towers")
