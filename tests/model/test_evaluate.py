"""Calibrating and evaluating, from a catalogue to metrics, tables and plots."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ConfigError
from model.evaluation.calibrate import calibration_table, fit_calibration
from model.evaluation.evaluate import Evaluation, evaluation_tables, held_out_scores, measure, model_card_tables
from model.evaluation.plots import save_plots
from model.situations import Situation
from model.trust.calibration import Calibration
from tests.model.held_out_catalogue import ColourReader, catalogue, noisy_listings

CONSOLE = Console(file=io.StringIO())
UNKNOWN = Listing(
    id="mauve", title="blue shirt", image="blue", labels={"colour": "mauve"}, group="mauve", part=Part.TEST
)


@pytest.fixture(scope="module")
def squares() -> Catalogue:
    return catalogue(
        *noisy_listings(Part.TRAIN, 3, seed=1),
        *noisy_listings(Part.VALIDATION, 300, seed=2),
        *noisy_listings(Part.CALIBRATION, 400, seed=3),
        *noisy_listings(Part.TEST, 200, seed=4),
        UNKNOWN,
    )


@pytest.fixture(scope="module")
def calibration(squares: Catalogue) -> Calibration:
    return fit_calibration(ColourReader(), squares, console=CONSOLE)[0]


@pytest.fixture(scope="module")
def evaluation(squares: Catalogue, calibration: Calibration) -> Evaluation:
    return measure(ColourReader(), calibration, None, squares, console=CONSOLE)


def test_what_can_be_certified_is_and_the_rest_abstains(calibration: Calibration) -> None:
    title = calibration.situations[Situation.TITLE]["colour"].thresholds
    assert title[0.9] is not None
    assert title[0.9].support == 400
    assert title[0.99] is None  # titles are right 98 times of 100
    assert set(calibration.situations[Situation.IMAGE]["colour"].thresholds.values()) == {None}
    assert set(calibration.situations[Situation.IMAGE_AND_TITLE]["season"].thresholds.values()) == {None}  # no labels


def test_the_temperature_makes_the_confidence_the_accuracy(calibration: Calibration) -> None:
    # The image alone is right in 0.7 + 0.3 / 3 = 0.8 of all cases, and says so with a logit of 1.5.
    temperature = calibration.situations[Situation.IMAGE]["colour"].temperature
    confidence = np.exp(1.5 / temperature) / (np.exp(1.5 / temperature) + 2)
    assert confidence == pytest.approx(0.8, abs=0.05)
    assert calibration.situations[Situation.IMAGE]["season"].temperature == 1.0


def test_a_calibration_carries_its_weights_version_and_survives_json(calibration: Calibration) -> None:
    assert calibration.version == "0123456789ab"
    assert calibration.target_precisions == (0.9, 0.95, 0.99)
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


def test_temperature_and_thresholds_come_from_their_own_parts(calibration: Calibration) -> None:
    others = catalogue(
        *noisy_listings(Part.VALIDATION, 300, seed=2),
        *noisy_listings(Part.CALIBRATION, 400, seed=3, title_right=0.0, image_right=0.0),
        *noisy_listings(Part.TEST, 10, title_right=0.0),
    )
    changed, _ = fit_calibration(ColourReader(), others, console=CONSOLE)
    for situation in Situation:
        before, after = calibration.situations[situation]["colour"], changed.situations[situation]["colour"]
        assert after.temperature == before.temperature
        assert set(after.thresholds.values()) == {None}


def test_promises_kept_together_ask_for_more_evidence_each(squares: Catalogue, calibration: Calibration) -> None:
    together, _ = fit_calibration(ColourReader(), squares, console=CONSOLE, together=True)
    shared, _ = fit_calibration(ColourReader(), squares, console=CONSOLE, delta=0.05 / len(ColourReader().tasks))
    assert together.situations == shared.situations
    assert together.confidence_level == 0.95
    assert together.method.startswith(calibration.method)
    assert "at once" in together.method
    assert Calibration.from_json(json.loads(json.dumps(together.to_json()))) == together
    for situation, attributes in calibration.situations.items():
        for attribute, single in attributes.items():
            for target, certificate in together.situations[situation][attribute].thresholds.items():
                alone = single.thresholds[target]
                assert certificate is None or (alone is not None and certificate.threshold >= alone.threshold)
    with pytest.raises(ConfigError, match="not both"):
        fit_calibration(ColourReader(), squares, console=CONSOLE, together=True, per_label=True)


def test_labels_are_certified_and_measured_by_themselves(squares: Catalogue, calibration: Calibration) -> None:
    per_label, _ = fit_calibration(ColourReader(), squares, console=CONSOLE, per_label=True)
    for situation in Situation:
        plain, own = calibration.situations[situation]["colour"], per_label.situations[situation]["colour"]
        assert (own.temperature, own.thresholds, plain.labels) == (plain.temperature, plain.thresholds, {})
    title = per_label.situations[Situation.TITLE]["colour"]
    assert set(title.labels) == {"blue", "green", "red"}
    assert all(0.99 not in certificates for certificates in title.labels.values())
    output = io.StringIO()
    Console(file=output, width=200).print(calibration_table(per_label))
    assert "labels with a threshold of their own" in output.getvalue()

    # An attribute without a threshold, and one label that has one: that label alone is accepted.
    reader, certificate = ColourReader(), title.thresholds[0.9]
    one = dataclasses.replace(title, thresholds=dict.fromkeys(title.thresholds), labels={"red": {0.9: certificate}})
    changed = dataclasses.replace(
        per_label,
        situations={situation: {**attributes, "colour": one} for situation, attributes in per_label.situations.items()},
    )
    metrics = measure(reader, changed, None, squares, console=CONSOLE).metrics
    figures = metrics["situations"][Situation.TITLE]["attributes"]["colour"]
    red = [listing for listing in squares.part(Part.TEST) if str(listing.title).startswith("red")]
    assert figures["accepted"]["0.9"]["threshold"] is None
    assert figures["accepted"]["0.9"]["accepted"] == len(red)
    assert figures["accepted"]["0.9"]["precision"] == np.mean([x.labels["colour"] == "red" for x in red])
    assert figures["accepted"]["0.99"] is None


@pytest.mark.parametrize("wrong", [{"target_precisions": (0.9, 1.0)}, {"delta": 0.0}])
def test_impossible_promises_are_refused(squares: Catalogue, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        fit_calibration(ColourReader(), squares, console=CONSOLE, **wrong)  # type: ignore[arg-type]


def test_a_catalogue_whose_labels_the_model_does_not_know_is_refused_with_the_list(calibration: Calibration) -> None:
    german = {"blue": "blau", "green": "grün", "red": "rot"}
    listings = [
        dataclasses.replace(each, labels={"colour": german[each.labels["colour"]]})
        for part in (Part.VALIDATION, Part.CALIBRATION, Part.TEST)
        for each in noisy_listings(part, 50)
    ]
    message = r"knows none of the labels .* for colour: blau, grün, rot; it knows blue, green, red"
    with pytest.raises(ConfigError, match=message):
        fit_calibration(ColourReader(), catalogue(*listings), console=CONSOLE)
    with pytest.raises(ConfigError, match=message):
        measure(ColourReader(), calibration, None, catalogue(*listings), console=CONSOLE)


def test_other_spellings_are_known_and_unknown_labels_are_told(calibration: Calibration) -> None:
    shouted = [
        dataclasses.replace(each, labels={"colour": each.labels["colour"].upper()})
        for each in noisy_listings(Part.TEST, 50)
    ]
    console = Console(file=io.StringIO(), width=200)
    evaluation = measure(ColourReader(), calibration, None, catalogue(*shouted, UNKNOWN), console=console)
    figures = evaluation.metrics["situations"]["title"]["attributes"]["colour"]
    assert figures["accuracy"] > 0.8
    assert "listings with unknown labels: colour 1 of 51 (mauve)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_metrics_equal_a_count_by_hand(squares: Catalogue, evaluation: Evaluation) -> None:
    listings = squares.part(Part.TEST)
    right = sum(str(listing.title).split()[0] == listing.labels["colour"] for listing in listings)
    figures = evaluation.metrics["situations"][Situation.TITLE]["attributes"]["colour"]
    assert figures["support"] == 201
    assert figures["out_of_vocabulary"] == 1
    assert figures["accuracy"] == right / 201
    assert figures["accuracy_interval"][0] < right / 201 < figures["accuracy_interval"][1]
    assert figures["accepted"]["0.9"]["coverage"] == 1.0
    assert figures["accepted"]["0.9"]["precision"] == right / 201
    assert figures["recall_at_precision"]["0.9"]["recall"] == right / 201
    assert figures["modality_attention"] == {"image": 0.0, "text": 1.0}
    assert figures["calibration_error"]["after"] < 0.05
    words = Counter(str(listing.title).split()[0] for listing in listings)
    assert {label: share for label, share in figures["answered"].items() if share} == {
        word: count / 201 for word, count in words.items()
    }


def test_metrics_are_json_without_nan_and_say_what_they_are_of(evaluation: Evaluation) -> None:
    metrics = json.loads(json.dumps(evaluation.metrics, allow_nan=False))
    assert metrics["version"] == "0123456789ab"
    assert metrics["data"]["name"] == "squares"
    assert metrics["data"]["listings"] == {"train": 3, "validation": 300, "calibration": 400, "test": 201}
    season = metrics["situations"]["image"]["attributes"]["season"]
    assert season["support"] == 0
    assert season["accuracy"] is None
    assert season["macro_f1"] is None
    assert season["recall_at_precision"]["0.95"] == {"recall": None, "interval": None}
    assert season["accepted"] == {"0.9": None, "0.95": None, "0.99": None}


def test_tables_show_every_attribute_in_every_situation(evaluation: Evaluation) -> None:
    output = io.StringIO()
    Console(file=output, width=200).print(
        *evaluation_tables(evaluation.metrics), calibration_table(evaluation.calibration)
    )
    for expected in ("Image alone: 201 test listings", "accepted at 99", "season", "abstains"):
        assert expected in output.getvalue()


def test_the_model_card_can_be_made_from_the_file(evaluation: Evaluation) -> None:
    text = model_card_tables(json.loads(json.dumps(evaluation.metrics)))
    assert text == model_card_tables(evaluation.metrics)
    rows = [line for line in text.splitlines() if line.startswith("| colour")]
    assert len(rows) == 3
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_held_out_scores_are_of_the_calibration_and_test_parts(squares: Catalogue, evaluation: Evaluation) -> None:
    scores = held_out_scores(ColourReader(), evaluation, squares, console=CONSOLE)[Situation.TITLE]["colour"]
    test = evaluation.answers[Situation.TITLE]["colour"]
    assert len(scores.labels) == 400 + 201
    np.testing.assert_array_equal(scores.confidence[400:], test.confidence)
    assert not set(scores.group[:400]) & set(scores.group[400:])


def test_plots_are_written(evaluation: Evaluation, tmp_path: Path) -> None:
    paths = save_plots(evaluation, tmp_path / "plots")
    assert [path.name for path in paths] == ["coverage_precision.png", "reliability.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.size[0] > 1000
