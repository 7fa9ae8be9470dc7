"""The study of wrong labels: noise of each kind is what it says, every remedy trains, and a cell is measured once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.inputs.unnoticeable import IMAGE_CHANGES
from model.tasks import Task
from research.noise import cells as cells_module
from research.noise import folds, proxy
from research.noise.__main__ import REMEDIES, cells, over_seeds, summary
from research.noise.cells import SERVED, Cell, Study
from research.noise.features import Images, no_images
from research.noise.kinds import BLOCKS, KINDS
from research.noise.proxy import Remedy
from research.noise.report import shipped_tables, tables
from research.noise.shipped import measured
from tests.model.held_out_catalogue import COLOURS, catalogue, noisy_listings

N = 6_000


def labels_and_chances() -> tuple[np.ndarray, np.ndarray]:
    """Four labels, of which 0 and 1 are taken for each other, and 2 and 3; every tenth listing has none."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, N)
    chances = np.full((N, 4), 0.02)
    chances[np.arange(N), labels ^ 1] = 0.16
    chances[np.arange(N), labels] = 0.8
    labels[::10] = -100
    return labels, chances


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_noise_changes_the_share_asked_for_and_no_missing_label(kind: str, rate: float) -> None:
    labels, chances = labels_and_chances()
    noisy = KINDS[kind](labels, chances, rate, np.random.default_rng(1))
    known = labels >= 0
    assert (noisy[~known] == labels[~known]).all()
    assert (noisy != labels)[known].mean() == pytest.approx(rate, abs=0.01)
    assert noisy[known].min() >= 0
    assert noisy.max() <= 3


def test_similar_labels_are_taken_for_each_other_and_uniform_ones_for_any() -> None:
    labels, chances = labels_and_chances()
    for kind, share in (("similar", 0.8), ("uniform", 1 / 3)):
        noisy = KINDS[kind](labels, chances, 0.2, np.random.default_rng(1))
        wrong = noisy != labels
        assert ((noisy ^ 1) == labels)[wrong].mean() == pytest.approx(share, abs=0.05)


def test_an_annotators_noise_is_in_blocks_and_a_habit() -> None:
    labels, chances = labels_and_chances()
    noisy = KINDS["annotator"](labels, chances, 0.1, np.random.default_rng(1))
    shares = [block.mean() for block in np.array_split(noisy != labels, BLOCKS)]
    assert sum(share > 0.3 for share in shares) == round(0.1 / 0.5 * BLOCKS)
    assert sum(share > 0 for share in shares) == round(0.1 / 0.5 * BLOCKS)


def test_hard_listings_are_mislabelled_first() -> None:
    labels, chances = labels_and_chances()
    hard = np.arange(N) < N // 4
    chances[~hard & (labels >= 0), labels[~hard & (labels >= 0)]] = 1.0
    noisy = KINDS["listing"](labels, chances, 0.04, np.random.default_rng(1))
    assert hard[noisy != labels].mean() > 0.95


# --- on a small catalogue ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop() -> Catalogue:
    listings = [
        each
        for part, n in ((Part.TRAIN, 360), (Part.VALIDATION, 60), (Part.CALIBRATION, 200), (Part.TEST, 80))
        for each in noisy_listings(part, n, title_right=1.0)
    ]
    found = catalogue(*listings)
    return dataclasses.replace(found, config=dataclasses.replace(found.config, attributes=("colour",)))


@pytest.fixture(scope="module")
def images(shop: Catalogue) -> Images:
    """Features that tell the colour of the image."""
    plain = np.array([[name == each.image for name in COLOURS] for each in shop.listings], np.float16)
    test = plain[[row for row, each in enumerate(shop.listings) if each.part is Part.TEST]]
    return Images(np.ones(len(plain), np.bool_), plain, np.stack([test] * len(IMAGE_CHANGES)))


@pytest.fixture
def study(shop: Catalogue, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(proxy, "BATCH", 32)
    monkeypatch.setattr(cells_module, "NEIGHBOURS", 3)
    return Study(shop, images, tmp_path)


@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_learns_the_colours(study: Study, name: str) -> None:
    remedy = REMEDIES[name]
    figures, answers = study.measure(study.train(Cell(kind="similar", rate=0.2, remedy=name, seed=0), remedy))
    assert figures["accuracy"]["colour"] > 0.8
    assert figures["flips"]["image_and_title/images"]["colour"] == 0
    assert len(answers["colour/predicted"]) == 80


def test_a_cell_is_trained_once_and_summed_up(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    of = [Cell(kind="", rate=0.0, remedy="base", seed=seed) for seed in (SERVED, 0, 1, 2)]
    done = {cell: study.run(cell, REMEDIES["base"]) for cell in of}
    monkeypatch.setattr(study, "train", None)
    assert study.run(of[0], REMEDIES["base"]) == done[of[0]]
    found = summary(study, done, study.catalogue)
    (row,) = found["rows"]
    assert row["seeds"] == 3
    assert row["accuracy"]["colour"]["half"] >= 0
    assert 0 <= row["churn"]["labels"]["colour"] < 0.3
    json.dumps(found)
    assert "| none" in tables(found)["influence"]


def test_noise_in_the_calibration_part_costs_coverage(shop: Catalogue) -> None:
    colour = Task(name="colour", labels=tuple(COLOURS))
    listings = (*shop.part(Part.CALIBRATION), *shop.part(Part.TEST))
    truth = np.array([colour.encode(each.labels["colour"]) for each in listings])
    chances = np.full((len(listings), 3), 0.005, np.float32)
    chances[np.arange(len(listings)), truth] = 0.99
    found = measured((colour,), listings, [chances])
    coverage = {(row["kind"], row["rate"]): row["coverage"] for row in found["calibration"]}
    assert coverage["uniform", 0.0] == 1
    assert coverage["uniform", 0.1] == 0
    assert found["audit"]["colour"]["auroc"] == 1
    assert found["audit"]["colour"]["points_off"] == pytest.approx(0, abs=0.5)
    shown = shipped_tables(found)
    assert "| colour | uniform | 100.0 / 100.0" in shown["calibration"]
    assert "| colour | 280 | 1.0000 |" in shown["planted"]


def test_an_audit_by_folds_finds_planted_noise(shop: Catalogue, images: Images, study: Study) -> None:
    colour = folds.audit_table(shop, images, study.folder)["colour"]
    assert colour["auroc"] > 0.9
    assert colour["planted"] == pytest.approx(0.1, abs=0.01)
    assert colour["share_with_planted"] - colour["share"] == pytest.approx(0.1, abs=0.05)


def test_titles_can_be_studied_alone(shop: Catalogue, study: Study, tmp_path: Path) -> None:
    alone = Study(shop, no_images(shop), tmp_path / "titles")
    for remedy in (Remedy(), Remedy(consistency=1.0, rewritten=0.5, elr=1.0), Remedy(coteaching=True)):
        figures, _ = alone.measure(alone.train(Cell(kind="", rate=0.0, remedy="base", seed=0), remedy))
        assert figures["accuracy"]["colour"] > 0.9
        assert "image/images" not in figures["flips"]


def test_a_served_network_comes_before_its_pupils() -> None:
    order = list(dict.fromkeys(cells()))
    taught = next(number for number, cell in enumerate(order) if "teacher" in cell.remedy)
    assert {cell.seed for cell in order[:2]} == {SERVED}
    assert taught > 1
    assert len(order) == len(set(order))


def test_intervals_need_three_seeds() -> None:
    assert over_seeds([0.5, 0.5]) == {"mean": 0.5}
    found = over_seeds([0.4, 0.5, 0.6])
    assert found is not None
    assert found["half"] == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert over_seeds([0.4, None]) is None
