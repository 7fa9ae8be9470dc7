"""A whole batch's predictions equal those of a plain row-by-row computation, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from model.inference.calibrator import Calibrator
from model.inference.predictions import AttributePrediction, Candidate, RawOutputs, SituationOutputs
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import AttributeCalibration, Calibration, Certificate
from tests.verdicts import verdict

TASKS = (
    Task(name="colour", labels=tuple(f"colour {number}" for number in range(11))),
    Task(name="season", labels=("summer", "winter")),
)
TARGETS = (0.9, 0.95)
UNCALIBRATED = 0.5


def certificate(threshold: float) -> Certificate:
    return Certificate(threshold=threshold, coverage=0.5, support=100, bound=0.9)


@st.composite
def certificates(draw: st.DrawFn, targets: tuple[float, ...]) -> dict[float, Certificate | None]:
    """Thresholds that grow with the target, None from some target on."""
    thresholds = sorted(draw(st.lists(st.floats(0, 1), max_size=len(targets))))
    found: dict[float, Certificate | None] = dict.fromkeys(targets)
    return found | {target: certificate(each) for target, each in zip(targets, thresholds, strict=False)}


@st.composite
def attribute_calibrations(draw: st.DrawFn, task: Task) -> AttributeCalibration:
    own = st.sampled_from([TARGETS, TARGETS[:1]]).flatmap(certificates)
    return AttributeCalibration(
        temperature=draw(st.floats(0.05, 20)),
        thresholds=draw(certificates(TARGETS)),
        labels=draw(st.dictionaries(st.sampled_from(task.labels), own, max_size=4)),
    )


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    return Calibration(
        version="0123456789ab",
        method="made up",
        confidence_level=0.95,
        target_precisions=TARGETS,
        situations={
            situation: {task.name: draw(attribute_calibrations(task)) for task in TASKS} for situation in Situation
        },
    )


# Few distinct values, so that labels tie; and some that stress the exponential.
LOGITS = st.one_of(st.integers(-3, 3).map(float), st.floats(-80, 80, width=32))


@st.composite
def batches(draw: st.DrawFn) -> tuple[RawOutputs, list[Situation]]:
    rows = draw(st.integers(1, 9))
    return RawOutputs(
        logits=tuple(draw(hnp.arrays(np.float32, (rows, len(task.labels)), elements=LOGITS)) for task in TASKS),
        attention=draw(hnp.arrays(np.float32, (rows, len(TASKS), 2), elements=st.floats(0, 1, width=32))),
        embeddings=np.zeros((rows, 2, 4), np.float32),
    ), draw(st.lists(st.sampled_from(Situation), min_size=rows, max_size=rows))


def selected(raw: RawOutputs, rows: list[int]) -> RawOutputs:
    return RawOutputs(tuple(logits[rows] for logits in raw.logits), raw.attention[rows], raw.embeddings[rows])


def outputs_of(raw: RawOutputs, situations: list[Situation]) -> dict[Situation, SituationOutputs]:
    """Each listing's outputs in its own situation; without a gate, those of its modalities alone don't count."""
    outputs = {}
    for situation in Situation:
        own = {situation} if situation is Situation.IMAGE_AND_TITLE else {situation, Situation.IMAGE_AND_TITLE}
        rows = [row for row, given in enumerate(situations) if given in own]
        outputs[situation] = SituationOutputs(np.array(rows, np.intp), selected(raw, rows), (None,) * len(rows))
    return outputs


def threshold_of(calibrated: AttributeCalibration, target: float, label: str) -> float | None:
    """The label's own threshold, else the attribute's; neither below the label's own at a lower target."""
    own = calibrated.labels.get(label, {})
    chosen = own.get(target) if target in own else calibrated.thresholds[target]
    lower = [each for at, each in own.items() if at < target]
    if chosen is None or None in lower:
        return None
    return max([chosen.threshold, *(each.threshold for each in lower if each is not None)])


def reference(
    logits: NDArray[np.float32],
    attention: NDArray[np.float32],
    task: Task,
    calibrated: AttributeCalibration | None,
    *,
    target_precision: float,
    top_k: int,
) -> AttributePrediction:
    """Predict one attribute of one listing, from its own logits `[C]` alone, step by step."""
    scaled = logits.astype(np.float64) / (calibrated.temperature if calibrated else 1.0)
    exponentials = np.exp(scaled - scaled.max())
    confidences = (exponentials / exponentials.sum()).tolist()
    best_first = sorted(range(len(confidences)), key=lambda index: -confidences[index])
    label, confidence = task.labels[best_first[0]], confidences[best_first[0]]
    known = calibrated is not None and target_precision in calibrated.thresholds
    threshold = threshold_of(calibrated, target_precision, label) if calibrated and known else None
    return AttributePrediction(
        label=label,
        confidence=confidence,
        abstention=verdict(confidence, threshold),
        threshold=threshold,
        target_precision=target_precision,
        candidates=tuple(Candidate(task.labels[index], confidences[index]) for index in best_first[:top_k]),
        modality_attention={"image": float(attention[0]), "text": float(attention[1])},
        explanation=None,
    )


@given(batches(), st.one_of(st.none(), calibrations()), st.sampled_from([*TARGETS, UNCALIBRATED]), st.integers(1, 12))
def test_a_batch_equals_its_rows_computed_one_by_one(
    batch: tuple[RawOutputs, list[Situation]], calibration: Calibration | None, target_precision: float, top_k: int
) -> None:
    raw, situations = batch
    found = Calibrator(TASKS, calibration, None).predictions(
        situations, outputs_of(raw, situations), [()] * len(situations)
    )
    assert [each.scope.situation for each in found] == situations
    for row, (prediction, situation) in enumerate(zip(found, situations, strict=True)):
        for t, task in enumerate(TASKS):
            options: dict[str, Any] = {"target_precision": target_precision, "top_k": top_k}
            calibrated = calibration.situations[situation][task.name] if calibration else None
            expected = reference(raw.logits[t][row], raw.attention[row, t], task, calibrated, **options)
            one = prediction.attribute(task.name, **options)
            assert one == expected
            assert [type(value) for value in (one.confidence, one.accepted)] == [float, bool]
            assert one.threshold is None or type(one.threshold) is float


@given(batches(), calibrations(), st.randoms(use_true_random=False))
def test_a_row_is_the_same_alone_and_next_to_any_other(
    batch: tuple[RawOutputs, list[Situation]], calibration: Calibration, random: Any
) -> None:
    raw, situations = batch
    calibrator = Calibrator(TASKS, calibration, None)

    def predicted(rows: list[int]) -> list[AttributePrediction]:
        own = [situations[row] for row in rows]
        found = calibrator.predictions(own, outputs_of(selected(raw, rows), own), [()] * len(rows))
        return [each.attribute(task.name, target_precision=0.9, top_k=11) for each in found for task in TASKS]

    rows = list(range(len(situations)))
    expected = predicted(rows)
    assert [each for row in rows for each in predicted([row])] == expected
    shuffled = random.sample(rows, len(rows))
    assert predicted(shuffled) == [expected[len(TASKS) * row + t] for row in shuffled for t in range(len(TASKS))]


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 31, 32, 64])
def test_the_layout_of_the_logits_in_memory_does_not_matter(size: int) -> None:
    generator = np.random.default_rng(size)
    task = Task(name="type", labels=tuple(map(str, range(143))))
    logits = generator.normal(0, 5, (size, 143)).astype(np.float32)
    attention = np.full((size, 1, 2), 0.5, np.float32)

    def confidences(logits: NDArray[np.float32]) -> list[AttributePrediction]:
        raw = RawOutputs((logits,), attention[: len(logits)], np.zeros((len(logits), 2, 4), np.float32))
        situations = [Situation.IMAGE] * len(logits)
        found = Calibrator((task,), None, None).predictions(situations, outputs_of(raw, situations), [()] * len(logits))
        return [each.attribute("type", target_precision=0.9, top_k=143) for each in found]

    expected = [each for row in range(size) for each in confidences(logits[row : row + 1])]
    assert confidences(logits) == expected
    assert confidences(np.asfortranarray(logits)) == expected
