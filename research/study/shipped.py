"""A calibrated checkpoint on corrupted listings: are its confidences and certified precisions still right?

Every listing is answered as the service answers it: framed, put through the gate, from the image alone where its title
is ignored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.catalogue.listings import Catalogue, Listing
from model.errors import ConfigError
from model.evaluation import scores
from model.inference.calibrator import BatchRow, Calibrator
from model.inference.predictor import Predictor
from model.situations import Situation
from model.trust.calibration import softmax
from research.study.answers import TestPart
from research.study.cells import Cells, figure
from research.study.conditions import UNCORRUPTED, Condition, clean, corrupt_title
from research.study.corruptions import IMAGES, NO_TITLE, SEED, TITLES, another
from research.study.study import SUBSET

TARGET = 0.95
BATCH = 64

Input = tuple[str | None, Image.Image]
"""A title, None where no word is left, and an image."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One listing's answer in one situation."""

    listing: int
    """Its position in the part."""
    prediction: BatchRow
    logits: tuple[NDArray[np.float32], ...]
    """Per attribute `[C_t]`, of what it was answered from."""


def measure_shipped(folder: Path, catalogue: Catalogue, device: str = "auto") -> Cells:
    """Return the figures of a checkpoint in every situation and condition.

    A title without words counts as absent; where there is no image either, the listing is not counted. Raises
    `ConfigError` for a checkpoint that is not calibrated at 0.95.
    """
    predictor = Predictor.load(folder, device=device, engine="torch")  # as the study's other networks
    checkpoint = predictor.checkpoint
    calibration = checkpoint.calibration
    if calibration is None or TARGET not in calibration.target_precisions:
        raise ConfigError(f"{folder} is not calibrated at {TARGET}")
    calibrator = Calibrator(predictor.tasks, calibration, checkpoint.gate, checkpoint.applicability)
    part = TestPart(catalogue, predictor.tasks)
    subset = part.subset(SUBSET)
    everything = _answers(predictor, calibrator, range(len(part.listings)), _uncorrupted(part, part.listings))
    conditions = {clean(situation): _condition(part, answers) for situation, answers in everything.items()}
    for name, strength, left, inputs in _conditions(part, [part.listings[row] for row in subset]):
        for situation, answers in _answers(predictor, calibrator, subset.tolist(), inputs).items():
            if situation is not left:
                key = Condition(situation=situation, corruption=name, strength=strength).key
                conditions[key] = _condition(part, answers)
    return {
        "checkpoint": checkpoint.name,
        "version": checkpoint.version,
        "date": datetime.now(UTC).date().isoformat(),
        "data": catalogue.config.path.stem,
        "test_listings": len(part.listings),
        "corrupted_listings": len(subset),
        "corruption_seed": SEED,
        "target_precision": TARGET,
        "conditions": conditions,
    }


# --- inputs ------------------------------------------------------------------------------------------------


def _uncorrupted(part: TestPart, listings: Sequence[Listing]) -> Iterator[Input]:
    return ((listing.title, part.image(listing)) for listing in listings)


def _conditions(
    part: TestPart, listings: Sequence[Listing]
) -> Iterator[tuple[str, float, Situation | None, Iterator[Input]]]:
    """Yield each condition: the corruption, its strength, the situation that it leaves unchanged, and the inputs."""
    others = [another(listing, part.listings) for listing in listings]
    yield UNCORRUPTED, 0.0, None, _uncorrupted(part, listings)
    for titles in TITLES:
        for strength in titles.strengths if titles.name != NO_TITLE else ():  # it is the same as the image alone
            changed = [
                corrupt_title(titles, each, other, strength) for each, other in zip(listings, others, strict=True)
            ]
            pairs = ((title or None, part.image(each)) for title, each in zip(changed, listings, strict=True))
            yield titles.name, strength, Situation.IMAGE, pairs
    for images in IMAGES:
        for strength in images.strengths:
            pairs = (
                (each.title, images(part.image(each), each, part.image(other), strength))
                for each, other in zip(listings, others, strict=True)
            )
            yield images.name, strength, Situation.TITLE, pairs


# --- answers -----------------------------------------------------------------------------------------------


def _answers(
    predictor: Predictor, calibrator: Calibrator, listings: Sequence[int], inputs: Iterator[Input]
) -> dict[Situation, list[Answer]]:
    """Answer listings from both modalities and from each alone; listings: their positions in the part."""
    found: dict[Situation, list[Answer]] = defaultdict(list)
    for first in range(0, len(listings), BATCH):
        positions = listings[first : first + BATCH]
        items = [predictor.prepare(*next(inputs)) for _ in positions]
        outputs = predictor.outputs(predictor.collate(items))
        for situation in Situation:
            # A listing without a title has nothing to be answered from by its title alone.
            given = [situation if situation in item.situation.within else item.situation for item in items]
            answered = calibrator.predictions(given, outputs, [()] * len(items))
            for row, prediction in enumerate(answered):
                if situation is not Situation.TITLE or given[row] is Situation.TITLE:
                    used = outputs[prediction.scope.situation]
                    place = int(np.searchsorted(used.rows, row))
                    logits = tuple(each[place] for each in used.raw.logits)
                    found[situation].append(Answer(listing=positions[row], prediction=prediction, logits=logits))
    return found


# --- figures -----------------------------------------------------------------------------------------------


def _condition(part: TestPart, answers: Sequence[Answer]) -> Cells:
    attributes = {}
    for t, task in enumerate(part.tasks):
        labels = part.labels[[each.listing for each in answers], t]
        counted = scores.labelled(labels)
        if counted.any():
            asked = [answer for answer, here in zip(answers, counted, strict=True) if here]
            attributes[task.name] = _attribute(task.name, t, labels[counted], asked)
    return {"listings": len(answers), "attributes": attributes}


def _attribute(name: str, t: int, labels: NDArray[np.int64], answers: Sequence[Answer]) -> Cells:
    """Measure attribute `t`: accuracy, calibration error before and after the temperature, and accepted labels.

    reliability: [mean confidence, accuracy] of each bin, after the temperature.
    """
    predictions = [each.prediction.attribute(name, target_precision=TARGET, top_k=1) for each in answers]
    correct = np.array([each.prediction.best(name) for each in answers]) == labels
    accepted = np.array([each.accepted for each in predictions])
    before = softmax(np.stack([each.logits[t] for each in answers]), 1.0).max(axis=1)
    after = np.array([each.confidence for each in predictions])
    return {
        "accuracy": figure(correct.mean()),
        "error_before": figure(scores.expected_calibration_error(before, correct)),
        "error_after": figure(scores.expected_calibration_error(after, correct)),
        "coverage": figure(accepted.mean()),
        "precision": figure(correct[accepted].mean()) if accepted.any() else None,
        "reliability": [[figure(x) for x in each[:2]] for each in scores.reliability(after, correct)],
        "image_weight": figure(float(np.mean([each.modality_attention["image"] for each in predictions]))),
    }
