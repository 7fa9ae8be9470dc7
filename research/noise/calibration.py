"""Noise in the calibration part alone: what becomes of thresholds, of coverage and of the promise."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.catalogue.splits import Part
from model.situations import Situation
from model.tasks import UNLABELLED
from model.trust.calibration import fit_temperature, softmax
from research.noise.cells import TARGET, Cell, Study
from research.noise.kinds import KINDS
from research.noise.proxy import Remedy

RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)

DRAWS = 10
"""Of the noise; the network is one."""


def calibration_noise(study: Study) -> list[dict[str, Any]]:
    """Certify on noisy calibration labels, and measure coverage and precision on the test part as it is.

    By attribute and kind: the mean over draws of coverage and precision, and the share of draws in which the precision
    on the test part is below the target though labels are accepted.
    """
    network = study.train(Cell(kind="", rate=0.0, remedy="base", seed=0), Remedy())
    parts = (Part.VALIDATION, Part.CALIBRATION, Part.TEST)
    logits = {part: network.answer(study.read(study.parts[part]), Situation.IMAGE_AND_TITLE) for part in parts}
    labels = {part: study.labels(study.parts[part]) for part in parts}
    rows = []
    for kind in KINDS:
        for rate in RATES:
            drawn = [
                study.noisy("calibration", labels[Part.CALIBRATION], kind if rate else "", rate, draw)
                for draw in range(DRAWS if rate else 1)
            ]
            for t, task in enumerate(study.tasks):
                scores = {part: own[t].numpy() for part, own in logits.items()}
                temperature = fit_temperature(scores[Part.VALIDATION], labels[Part.VALIDATION][:, t])
                chances, truth = softmax(scores[Part.TEST], temperature), labels[Part.TEST][:, t]
                counted, right = truth != UNLABELLED, chances.argmax(axis=1) == truth
                figures = []
                for noisy in drawn:
                    threshold = study.threshold(scores[Part.CALIBRATION], noisy[:, t], temperature)
                    taken = (chances.max(axis=1) >= threshold) & counted
                    precision = float(right[taken].mean()) if taken.any() else None
                    figures.append((float(taken.sum() / counted.sum()), precision))
                precisions = [precision for _, precision in figures if precision is not None]
                rows.append(
                    {
                        "kind": kind,
                        "rate": rate,
                        "attribute": task.name,
                        "coverage": float(np.mean([coverage for coverage, _ in figures])),
                        "precision": float(np.mean(precisions)) if precisions else None,
                        "broken": sum(precision < TARGET for precision in precisions) / len(figures),
                    }
                )
    return rows
