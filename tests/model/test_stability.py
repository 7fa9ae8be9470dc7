"""Stability: what flips under unnoticeable changes, and what differs between two models."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from model.catalogue.listings import Listing
from model.catalogue.splits import Part
from model.evaluation.calibrate import fit_calibration
from model.evaluation.evaluate import HEADINGS, measure, model_card_tables
from model.evaluation.plots import save_plots
from model.evaluation.stability import CHANGES, measure_stability, stability_tables
from model.inputs.unnoticeable import IMAGE_CHANGES, TITLE_CHANGES
from model.situations import Situation
from model.trust.stability import Answered, churn, flips, spread
from tests.model.held_out_catalogue import BROKEN, ColourReader, catalogue, noisy_listings

CONSOLE = Console(file=io.StringIO())


def answered(labels: list[int], accepted: list[int], confidence: list[float] | None = None) -> Answered:
    return Answered(
        labels=np.array(labels),
        accepted=np.array(accepted, dtype=np.bool_),
        confidence=np.array(confidence or [0.0] * len(labels)),
    )


# --- the measures ------------------------------------------------------------------------------------------


def test_flips_are_counted_by_hand() -> None:
    found = flips(
        answered([0, 1, 2, 0], [1, 1, 0, 0], [0.9, 0.8, 0.4, 0.5]),
        answered([0, 2, 2, 1], [1, 0, 1, 0], [0.7, 0.2, 0.4, 0.4]),
    )
    assert found is not None
    assert found.listings == 4
    assert found.labels == 0.5
    assert found.verdicts == 0.5
    assert found.accepted == 0.5  # of the two accepted labels, the second became another one
    assert found.confidence == pytest.approx((0.2 + 0.6 + 0 + 0.1) / 4)


def test_nothing_accepted_has_no_share_and_no_listing_no_figures() -> None:
    found = flips(answered([0], [0]), answered([1], [1]))
    assert found is not None
    assert found.accepted is None
    assert flips(answered([], []), answered([], [])) is None
    assert spread(np.ones((3, 2)), np.array([[1, 1], [0, 0], [0, 0]], dtype=np.bool_)) is None


def test_the_spread_is_over_the_changes_that_apply() -> None:
    confidence = np.array([[0.5, 0.9], [0.7, 0.0], [0.3, 0.0]])
    given = np.array([[1, 1], [1, 0], [1, 0]], dtype=np.bool_)
    assert spread(confidence, given) == pytest.approx(np.std([0.5, 0.7, 0.3]))


def test_churn_beyond_what_accuracy_explains() -> None:
    before, after = answered([0, 0, 1, 2], [1, 1, 1, 0]), answered([0, 1, 0, 1], [1, 1, 0, 1])
    found = churn(before, after, truth=np.array([0, 1, 1, -1]))
    assert found is not None
    assert found.labels == 0.75
    assert found.verdicts == 0.5
    assert found.accepted == 0.5  # two are accepted by both, one of them with another label
    assert found.improved == pytest.approx(1 / 3)
    assert found.worsened == pytest.approx(1 / 3)
    assert found.unexplained == 0.75  # the accuracy is the same
    assert churn(answered([], []), answered([], []), np.array([], dtype=np.int64)) is None


# --- on a catalogue ----------------------------------------------------------------------------------------


def test_a_reader_of_words_in_lower_case_is_measured(tmp_path: Path) -> None:
    """It knows "red", not "RED", and pure colours alone: those changes flip what it says, and the others don't."""
    test = [
        *(
            Listing(id=f"t{n}", title="red shirt", image="red", labels={"colour": "red"}, group=f"t{n}", part=Part.TEST)
            for n in range(20)
        ),
        Listing(id="broken", title="red shirt", image=BROKEN, labels={}, group="b", part=Part.TEST),
        Listing(id="title", title="red shirt", image=None, labels={}, group="t", part=Part.TEST),
    ]
    shop = catalogue(*noisy_listings(Part.VALIDATION, 200), *noisy_listings(Part.CALIBRATION, 200, seed=1), *test)
    calibration, _ = fit_calibration(ColourReader(), shop, console=CONSOLE, target_precisions=(0.9,))
    found = measure_stability(ColourReader(), calibration, None, shop, listings=30, console=CONSOLE)
    assert found["listings"] == 22
    assert found["target_precision"] == 0.9
    json.dumps(found, allow_nan=False)
    title = found["situations"][Situation.TITLE]
    assert title["changes"]["white space"]["colour"]["labels"] == 0
    assert title["changes"]["letter case"]["colour"]["labels"] == 1
    assert title["changes"]["letter case"]["colour"]["listings"] == 21
    assert title["changes"]["& or and"]["colour"] is None
    assert title["changes"].keys() == TITLE_CHANGES.keys()
    image = found["situations"][Situation.IMAGE]
    assert image["changes"].keys() == IMAGE_CHANGES.keys()
    assert image["changes"]["moved by a pixel"]["colour"]["labels"] == 0
    assert image["changes"]["2 % darker"]["colour"]["labels"] == 1
    assert image["attributes"]["colour"]["listings"] == 20 * len(IMAGE_CHANGES)
    assert found["situations"][Situation.IMAGE_AND_TITLE]["changes"].keys() == set(CHANGES)
    evaluation = measure(ColourReader(), calibration, None, shop, console=CONSOLE)
    evaluation = replace(evaluation, metrics={**evaluation.metrics, "stability": found})
    assert "| letter case | 100.00 | 0.00 |" in model_card_tables(evaluation.metrics)
    assert [path.name for path in save_plots(evaluation, tmp_path)][2:] == ["stability.png"]
    tables = stability_tables(found, HEADINGS)
    console = Console(file=io.StringIO(), width=160)
    console.print(*tables)
    assert "Title alone: stability of 22 test listings" in console.file.getvalue()  # type: ignore[attr-defined]
