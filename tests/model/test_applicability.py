"""Which product types never bear an attribute: how it is learned, and when it decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from model.catalogue.applicability import describe_applicability, learn_applicability, never_bears
from model.catalogue.listings import Listing
from model.catalogue.splits import Part
from model.errors import ConfigError
from model.tasks import Task
from model.trust.applicability import Applicability, Borne
from model.trust.calibration import AttributeCalibration, Certificate

TASKS = (
    Task(name="kind", labels=("Hat", "Shirt", "Watch")),
    Task(name="sleeve", labels=("Long", "Short")),
    Task(name="material", labels=("Cotton", "Steel"), separator="|"),
)
LEARNED = Applicability(product_type="kind", never={"sleeve": {"Watch": Borne(812, 0), "Hat": Borne(300, 2)}})


def listings(kind: str | None, count: int, **labels: Any) -> Iterator[Listing]:
    for number in range(count):
        single = {name: label for name, label in labels.items() if isinstance(label, str)}
        yield Listing(
            id=f"{kind}-{number}",
            title="T",
            image=None,
            labels=single | ({"kind": kind} if kind else {}),
            label_sets={name: label for name, label in labels.items() if not isinstance(label, str)},
            group=f"{kind}-{number}",
            part=Part.TRAIN,
        )


@pytest.mark.parametrize(
    ("seen", "labelled", "overall", "never"),
    [
        (59, 0, 0.5, True),
        (58, 0, 0.5, False),  # too few to tell
        (100, 1, 0.5, True),  # a slip
        (100, 2, 0.5, False),
        (10_000, 100, 1.0, True),
        (10_000, 101, 1.0, False),  # it bears it, if seldom
        (59, 0, 0.1, False),  # few listings are labelled at all: none may be so by chance
        (299, 0, 0.1, True),
        (0, 0, 0.5, False),
    ],
)
def test_how_much_evidence_it_takes(seen: int, labelled: int, overall: float, never: bool) -> None:
    assert never_bears(Borne(seen, labelled), overall) is never


def test_it_is_learned_from_listings_with_and_without_labels() -> None:
    rows = [
        *listings("Shirt", 200, sleeve="Long", material=("Cotton",)),
        *listings("Watch", 150, material=("Steel",)),
        *listings("Watch", 1, sleeve="Short"),  # a slip
        *listings("Hat", 20),  # too few
        *listings("Sandal", 90),  # no product type that the model knows
        *listings(None, 500),  # of no known product type: no evidence
    ]
    found = learn_applicability(rows, "kind", ["kind", "sleeve", "material"], known=("Hat", "Shirt", "Watch"))
    assert found == Applicability(product_type="kind", never={"sleeve": {"Watch": Borne(151, 1)}})
    assert describe_applicability(found) == "sleeve: not applicable to Watch (1 of 151 listings)"
    everything = learn_applicability(rows, "kind", ["kind", "sleeve", "material"])
    assert everything.never["material"] == {"Sandal": Borne(90, 0)}
    nothing = learn_applicability(listings("Shirt", 300, sleeve="Long"), "kind", ["kind", "sleeve"])
    assert describe_applicability(nothing) == "every attribute may apply to every kind, as far as the listings tell"


def test_it_decides_only_where_the_product_type_is_accepted() -> None:
    confidences = np.array([[0.1, 0.1, 0.8], [0.1, 0.3, 0.6], [0.1, 0.1, 0.8], [0.0, 0.9, 0.1], [0.9, 0.05, 0.05]])
    passed = np.array([True, True, False, True, True])
    found = LEARNED.excludes(TASKS, confidences, np.full(3, 0.7), passed)
    # Sure of a watch; unsure; stopped by the gate; a shirt; a hat.
    assert found.tolist() == [
        [False, True, False], [False] * 3, [False] * 3, [False] * 3, [False, True, False]
    ]  # fmt: skip


def test_the_product_type_is_accepted_at_the_lowest_target_from_95_on() -> None:
    def minimum(*targets: float) -> list[float]:
        thresholds = {target: Certificate(target, 0.5, 100, 0.9) for target in targets}
        calibrated = AttributeCalibration(temperature=1, thresholds=thresholds)
        return list(LEARNED.minimum_confidence(TASKS, calibrated))

    assert minimum(0.9, 0.95, 0.99) == [0.95] * 3
    assert minimum(0.9, 0.98) == [0.98] * 3
    assert minimum(0.9) == [np.inf] * 3
    nothing = AttributeCalibration(temperature=1, thresholds={0.95: None})
    assert LEARNED.minimum_confidence(TASKS, nothing).tolist() == [np.inf] * 3


def test_it_survives_json() -> None:
    assert Applicability.from_json(json.loads(json.dumps(LEARNED.to_json())), TASKS) == LEARNED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product_type": "material"}, "an attribute that is not there"),
        ({"product_type": "size"}, "an attribute that is not there"),
        ({"never": {"size": {}}}, "an attribute that is not there"),
        ({"never": {"kind": {}}}, "an attribute that is not there"),
        ({"never": {"sleeve": {"Sofa": {"listings": 9, "labelled": 0}}}}, "'Sofa', which is no label of kind"),
        ({"never": {"sleeve": {"Watch": {"listings": 9}}}}, "damaged"),
        ({"never": ["sleeve"]}, "damaged"),
    ],
)
def test_what_does_not_fit_the_attributes_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Applicability.from_json(LEARNED.to_json() | change, TASKS)
