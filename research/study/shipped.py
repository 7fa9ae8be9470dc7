"""A calibrated checkpoint on corrupted listings: are its confidences and certified precisions still right?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.catalogue.listings import Catalogue
from model.checkpoint.folder import load_checkpoint
from model.checkpoint.weights import load_weights
from model.errors import ConfigError
from model.evaluation import scores
from model.network.cma_clip import build_cma_clip
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import AttributeCalibration, Calibration, softmax
from research.study.answers import Answers, Inference, TestPart
from research.study.cells import Cells, figure
from research.study.conditions import predict_clean, predict_corrupted
from research.study.corruptions import NO_TITLE, SEED
from research.study.study import SUBSET

TARGET = 0.95


def measure_shipped(folder: Path, catalogue: Catalogue, device: torch.device) -> Cells:
    """Return the figures of a checkpoint in every situation and condition.

    Raises `ConfigError` for one that is not calibrated at 0.95.
    """
    checkpoint = load_checkpoint(folder)
    calibration = checkpoint.calibration
    if calibration is None or TARGET not in calibration.target_precisions:
        raise ConfigError(f"{folder} is not calibrated at {TARGET}")
    network = build_cma_clip(checkpoint.config, checkpoint.tasks)
    load_weights(network, checkpoint)
    part = TestPart(catalogue, checkpoint.tasks)
    subset = part.subset(SUBSET)
    inference = Inference(network, checkpoint.config.preprocess, device)
    situations = tuple(Situation)
    conditions = {}
    for key, answers in predict_clean(inference, part, situations):
        conditions[key] = _condition(part, np.arange(len(part.listings)), answers, key, calibration)
    for key, answers in predict_corrupted(inference, part, subset, supported=situations, situations=situations):
        if key.split("/")[1] != NO_TITLE:  # the same as the image alone, or without any input
            conditions[key] = _condition(part, subset, answers, key, calibration)
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


def _condition(part: TestPart, rows: NDArray[np.int64], answers: Answers, key: str, calibration: Calibration) -> Cells:
    by_situation = calibration.situations
    situation = Situation(key.split("/", maxsplit=1)[0])
    attributes = {}
    for t, task in enumerate(part.tasks):
        counted = scores.labelled(part.labels[rows, t])
        if not counted.any():
            continue
        # A corrupted title may have no words left: the service applies the thresholds of the image alone to it.
        absent = answers.attention[counted, t, 1] == 0
        judged = [(absent, by_situation[Situation.IMAGE][task.name]), (~absent, by_situation[situation][task.name])]
        attributes[task.name] = _attribute(task, part.labels[rows, t][counted], answers.logits[t][counted], judged) | {
            "image_weight": figure(answers.attention[:, t, 0].mean())
        }
    return {"listings": len(rows), "attributes": attributes}


def _attribute(
    task: Task,
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    judged: Sequence[tuple[NDArray[np.bool_], AttributeCalibration]],
) -> Cells:
    """Measure one attribute: accuracy, calibration error before and after the temperature, and accepted labels.

    judged: row masks, each with the calibration that applies to them. reliability: [mean confidence, accuracy] of each
    bin, after the temperature.
    """
    predicted = logits.argmax(axis=1)
    correct = predicted == labels
    before = softmax(logits, 1.0).max(axis=1)
    after, accepted = np.empty(len(labels)), np.empty(len(labels), dtype=np.bool_)
    for rows, calibrated in judged:
        minimum = calibrated.minimum_confidence(TARGET, task.labels)
        after[rows] = softmax(logits[rows], calibrated.temperature).max(axis=1)
        accepted[rows] = after[rows] >= minimum[predicted[rows]]
    return {
        "accuracy": figure(correct.mean()),
        "error_before": figure(scores.expected_calibration_error(before, correct)),
        "error_after": figure(scores.expected_calibration_error(after, correct)),
        "coverage": figure(accepted.mean()),
        "precision": figure(correct[accepted].mean()) if accepted.any() else None,
        "reliability": [[figure(x) for x in each[:2]] for each in scores.reliability(after, correct)],
    }
