"""Multi-valued attributes and applicability, end to end: train, calibrate, evaluate, answer, label; titles alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.reviewed import NONE_FITS, ReviewedImages, ReviewedListing, reviewed_catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import CALIBRATION, CONFIG, METRICS, load_checkpoint, write_part
from model.config import ModelConfig
from model.evaluation import fit_gate
from model.evaluation.audit import NOTHING, Evidence, find_contradictions
from model.evaluation.calibrate import calibrate
from model.evaluation.compare import compare
from model.evaluation.evaluate import evaluate, evaluation_tables, model_card_tables
from model.evaluation.heldout import PairAnswers, load_scores
from model.inference.label import label_catalogue
from model.inference.predictions import Abstention, AttributePrediction
from model.inference.predictor import Predictor
from model.situations import Situation
from model.training.config import TrainConfig
from model.training.train import train
from tests.model.clothes import MATERIALS, write_clothes

TITLE = "Shirt Cotton Wool Long Sleeve number 7"
WATCH = "Watch Steel number 8"


def silent() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("clothes"), 1600)


@pytest.fixture(scope="module")
def clothes(toml: Path) -> Catalogue:
    return Catalogue.open(toml)


@pytest.fixture(scope="module")
def said() -> Console:
    return silent()


@pytest.fixture(scope="module")
def trained(
    clothes: Catalogue,
    tmp_path_factory: pytest.TempPathFactory,
    model_config: ModelConfig,
    train_config: TrainConfig,
    said: Console,
) -> Path:
    """A checkpoint folder that is trained, calibrated and evaluated."""
    optimiser = dataclasses.replace(train_config.optimiser, epochs=3, batch_size=16, learning_rate=1e-2, patience=1.0)
    config = dataclasses.replace(train_config, optimiser=optimiser)
    out = tmp_path_factory.mktemp("runs")
    folder = train(clothes, out, name="clothes", model=model_config, config=config, device="cpu", console=said)
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(fit_gate, "OUTLIERS", 40)
        calibrate(folder, clothes, per_label=True, device="cpu", console=silent())
    evaluate(folder, clothes, scores_file=out / "scores.npz", device="cpu", console=silent())
    return folder


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained, device="cpu")


def answers(predictor: Predictor, title: str, **options: Any) -> dict[str, AttributePrediction]:
    (answer,) = predictor.classify([(title, None)], **options)
    return answer


@pytest.mark.usefixtures("trained")
def test_training_tells_what_it_learned(said: Console) -> None:
    assert isinstance(said.file, io.StringIO)
    text = said.file.getvalue()
    assert "material: 4 labels, any number of them for each listing" in text
    assert "sleeve: not applicable to Watch (0 of " in text
    assert "material: not applicable" not in text


def test_the_checkpoint_carries_separator_names_and_applicability(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    kind, material, sleeve = checkpoint.tasks
    assert (kind.separator, material.separator, sleeve.separator) == (None, "|", None)
    # Silk is no label of the table: its name is left out.
    assert material.names == {"Wool": {"de": "Wolle", "fr": "Laine", "description": "of sheep"}}
    assert checkpoint.applicability is not None
    assert checkpoint.applicability.product_type == "kind"
    assert set(checkpoint.applicability.never) == {"sleeve"}
    content = json.loads((trained / CONFIG).read_text())
    assert content["attributes"][0] == {"name": "kind", "labels": ["Shirt", "Watch"]}
    assert checkpoint.training["validation"]["title"] > 0.9


def test_several_labels_are_accepted_each_by_itself(predictor: Predictor) -> None:
    material = answers(predictor, TITLE, target_precision=0.9)["material"]
    assert {each.label for each in material.labels if each.accepted} == {"Wool", "Cotton"}
    assert material.accepted
    assert (material.label, material.confidence) == (material.labels[0].label, material.labels[0].confidence)
    assert len(material.labels) == 3  # one more, up to `top_k`
    assert not material.labels[2].accepted
    assert material.labels[2].abstention is Abstention.LOW_CONFIDENCE
    assert set(material.likely) == {"Wool", "Cotton"}
    assert sum(each.confidence for each in material.labels) > 1.5
    assert material.labels[0].confidence >= material.labels[1].confidence


def test_all_accepted_labels_are_answered_whatever_top_k_is(predictor: Predictor) -> None:
    one, many = (answers(predictor, TITLE, target_precision=0.9, top_k=k)["material"].labels for k in (1, 100))
    assert [each.label for each in one] == [each.label for each in many[:2]]
    assert {each.label for each in many} == set(MATERIALS)


def test_a_watch_has_no_sleeve(predictor: Predictor) -> None:
    for target in predictor.info.target_precisions:
        watch = answers(predictor, WATCH, target_precision=target)
        assert watch["sleeve"].abstention is Abstention.NOT_APPLICABLE
        assert watch["material"].abstention is not Abstention.NOT_APPLICABLE
        assert answers(predictor, TITLE, target_precision=target)["sleeve"].abstention is not Abstention.NOT_APPLICABLE


def test_where_the_product_type_is_not_accepted_nothing_is_decided(
    trained: Path, predictor: Predictor, tmp_path: Path
) -> None:
    calibration = predictor.checkpoint.calibration
    assert calibration is not None
    uncertain = {
        situation: dict(attributes)
        | {"kind": dataclasses.replace(attributes["kind"], thresholds=dict.fromkeys((0.9, 0.95, 0.99)), labels={})}
        for situation, attributes in calibration.situations.items()
    }
    copy = tmp_path / "checkpoint"
    shutil.copytree(trained, copy)
    changed = dataclasses.replace(calibration, situations=uncertain)
    write_part(load_checkpoint(copy), CALIBRATION, changed.to_json())
    assert answers(Predictor.load(copy, device="cpu"), WATCH)["sleeve"].abstention is not Abstention.NOT_APPLICABLE


def test_certificates_hold_on_the_test_part(trained: Path) -> None:
    metrics = json.loads((trained / METRICS).read_text())
    attributes = metrics["situations"]["title"]["attributes"]
    material, sleeve = attributes["material"], attributes["sleeve"]
    assert material["micro_f1"] > 0.9
    assert material["macro_f1"] > 0.9
    assert material["labels"] > 1.5 * material["support"]
    accepted = material["accepted"]["0.9"]
    assert accepted["precision"] >= 0.9
    assert accepted["recall"] > 0.5
    assert 0.5 < accepted["coverage"] <= 1
    assert material["recall_at_precision"]["0.9"]["recall"] >= accepted["recall"]
    assert sum(material["answered"].values()) == pytest.approx(1)
    assert sleeve["not_applicable"]["labelled"] == 0
    assert sleeve["not_applicable"]["listings"] > 0.8 * metrics["data"]["listings"]["test"] / 2
    assert "accuracy" not in material


def test_thresholds_per_label_are_of_pairs(trained: Path, clothes: Catalogue) -> None:
    calibration = load_checkpoint(trained).calibration
    assert calibration is not None
    calibrated = calibration.situations[Situation.TITLE]["material"]
    listings = clothes.part(Part.CALIBRATION)
    labelled = sum(each.has_label("material") for each in listings)
    of_all = calibrated.thresholds[0.9]
    assert of_all is not None
    assert of_all.support > labelled > of_all.coverage * labelled  # more labels than listings
    own = {label: found for label, each in calibrated.labels.items() if (found := each[0.9])}
    assert own  # others have too few examples
    for label, found in own.items():
        bearing = sum(label in each.label_sets.get("material", ()) for each in listings)
        assert 57 <= found.support <= bearing / 0.9


@pytest.mark.parametrize("none_fit", [0, 4])
def test_thresholds_are_certified_on_reviews_whose_listings_have_several_labels(
    trained: Path, clothes: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, none_fit: int
) -> None:
    """none_fit: of every so many listings, one has none of the labels, so that all of its accepted ones are wrong."""
    monkeypatch.setattr(fit_gate, "OUTLIERS", 40)
    found = [
        ReviewedListing(
            name=each.id,
            id=each.id,
            title=each.title,
            has_image=False,
            labels=each.labels,
            label_sets={"material": (NONE_FITS,)} if none_fit and number % none_fit == 0 else each.label_sets,
        )
        for number, each in enumerate((*clothes.part(Part.CALIBRATION), *clothes.part(Part.TEST)))
        if each.has_label("material")
    ]
    catalogue = reviewed_catalogue(found, clothes.config.attributes, ReviewedImages(lambda name: None))
    folder = shutil.copytree(trained, tmp_path / "copy")
    calibration = calibrate(folder, catalogue, keep_temperatures=True, device="cpu", console=silent())
    certificate = calibration.situations[Situation.TITLE]["material"].thresholds[0.9]
    assert (certificate is None) is (none_fit > 0)
    if certificate is not None:
        assert certificate.support > len(catalogue.part(Part.CALIBRATION))  # pairs: more labels than listings


def test_tables_show_both_kinds(trained: Path) -> None:
    metrics = json.loads((trained / METRICS).read_text())
    card = model_card_tables(metrics)
    assert "| attribute | rows | unknown | accuracy | micro F1 | macro F1 |" in card
    assert "multi-valued" in card
    assert [column.header for column in evaluation_tables(metrics)[0].columns][3:5] == ["accuracy", "micro F1"]


def test_scores_survive_the_disk(trained: Path, clothes: Catalogue) -> None:
    found = load_scores(trained.parent / "scores.npz")[Situation.TITLE]["material"]
    assert isinstance(found, PairAnswers)
    rows = [each for part in (Part.CALIBRATION, Part.TEST) for each in clothes.part(part) if each.has_label("material")]
    assert len(found.confidence) == len(rows) * len(MATERIALS)
    assert len(np.unique(found.listing)) == len(rows)


def test_the_cells_of_a_label_column_are_joined_in_one_order(predictor: Predictor, toml: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        label_catalogue(
            predictor, toml, tmp_path / f"out.{suffix}", target_precision=0.9, batch_size=64, progress=False
        )
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    several = next(row for row in rows if row["material_accepted"] == "true|true")
    confidences = [float(each) for each in several["material_confidence"].split("|")]
    assert confidences == sorted(confidences, reverse=True)
    assert len(several["material"].split("|")) == 2
    assert several["material_abstention"] == "|"
    assert float(several["material_image_weight"]) == 0
    columns = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert columns["material"] == [row["material"] for row in rows]
    assert columns["material_accepted"] == [row["material_accepted"] for row in rows]
    assert columns["kind_accepted"] == [row["kind_accepted"] == "true" for row in rows]


def test_an_explanation_is_of_the_likeliest_label(predictor: Predictor) -> None:
    material = answers(predictor, TITLE, explain=True)["material"]
    assert material.explanation is not None
    assert material.explanation.text is not None
    heaviest = max(material.explanation.text, key=lambda each: each.weight)
    assert heaviest.token == material.candidates[0].label


def test_an_answer_does_not_depend_on_the_batch(predictor: Predictor, clothes: Catalogue) -> None:
    titles = [(listing.title, None) for listing in clothes.part(Part.TEST)[:12]]
    together = list(predictor.classify(titles, batch_size=12))
    alone = [next(predictor.classify([each])) for each in titles]
    for one, other in zip(together, alone, strict=True):
        assert [each.label for each in one["material"].labels] == [each.label for each in other["material"].labels]
        for each, same in itertools.zip_longest(one["material"].labels, other["material"].labels):
            assert each.confidence == pytest.approx(same.confidence, abs=1e-5)


def test_an_audit_finds_wrong_label_sets(predictor: Predictor, clothes: Catalogue) -> None:
    listings = [each for each in clothes.part(Part.TEST) if "material" in each.label_sets][:80]
    lacking, having = listings[:8], listings[8:16]
    wrong = {each.id: each.label_sets["material"][1:] for each in lacking if len(each.label_sets["material"]) > 1}
    for each in having:
        absent = next((name for name in MATERIALS if name not in each.label_sets["material"]), None)
        if absent:
            wrong[each.id] = (*each.label_sets["material"], absent)
    mistaken = [
        dataclasses.replace(each, label_sets={"material": wrong[each.id]}) if each.id in wrong else each
        for each in listings
    ]
    evidence = Evidence(clothes, silent())
    evidence.add(predictor, mistaken, [])
    audits = {audit.name: audit for audit in evidence.judge()}
    material = audits["material"]
    first = material.suspects[: len(wrong)]
    assert {each.id for each in first} == set(wrong)
    truth = {each.id: each.label_sets["material"] for each in listings}
    assert all(each.label == "|".join(wrong[each.id]) for each in first)
    suggested = {each.id: set((each.suggestion or "").split("|")) for each in first}
    assert all(found != set(wrong[name]) for name, found in suggested.items())
    right = sum(found == set(truth[name]) for name, found in suggested.items())
    assert right >= 0.8 * len(first)  # the network is a small one
    assert material.noise is not None
    assert material.noise.share == pytest.approx(len(wrong) / (len(listings) * len(MATERIALS)), abs=0.01)
    assert any(given == NOTHING for given, _, _ in material.confusions())
    assert any(true == NOTHING for _, true, _ in material.confusions())
    assert [each.rank for each in audits["kind"].suspects] == list(range(1, len(listings) + 1))


def test_materials_that_contradict_each_other_need_no_model(clothes: Catalogue) -> None:
    one, other = (
        dataclasses.replace(each, title="Shirt", label_sets={"material": materials})
        for each, materials in zip(clothes.listings, (("Wool", "Cotton"), ("Cotton",)), strict=False)
    )
    same = dataclasses.replace(one, id="same", label_sets={"material": ("Cotton", "Wool")})
    found = find_contradictions(dataclasses.replace(clothes, listings=(one, same)))
    assert not [each for each in found if each.attribute == "material"]
    found = find_contradictions(dataclasses.replace(clothes, listings=(one, other)))
    assert [each.same for each in found if each.attribute == "material"] == ["title"]


def test_a_comparison_knows_what_is_not_applicable(trained: Path, clothes: Catalogue, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(trained, copy)
    config = json.loads((copy / CONFIG).read_text())
    assert config.pop("applicability")
    (copy / CONFIG).write_text(json.dumps(config))
    before, after = (Predictor.load(folder, device="cpu") for folder in (trained, copy))
    found = compare(before, after, clothes, clothes.part(Part.TEST), target_precision=0.9, console=silent())
    sleeves = found.figures["situations"][Situation.TITLE]["sleeve"]
    kinds = {each.id: each.labels["kind"] for each in clothes.listings}
    changed = [each for each in found.changed if each.attribute == "sleeve"]
    assert changed
    assert {kinds[each.id] for each in changed} == {"Watch"}
    assert not any(each.before.accepted for each in changed)
    assert sleeves["labels"] == 0
    assert sleeves["verdicts"] == pytest.approx(len(changed) / found.figures["listings"])
    assert sleeves["coverage"][0] < sleeves["coverage"][1]
