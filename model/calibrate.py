"""Behind `cma-clip calibrate`: temperatures fitted on validation, thresholds certified on calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table

from model.calibration import AttributeCalibration, Calibration, fit_temperature
from model.catalogue import Catalogue, Part
from model.certificates import METHOD, certify
from model.errors import ConfigError
from model.heldout import HeldOut, LogitPredictor, collect
from model.readings import ModelInfo, Situation
from model.tasks import Task

TARGET_PRECISIONS = (0.9, 0.95, 0.99)


class CalibratedPredictor(LogitPredictor, Protocol):
    """A predictor that says which weights it runs."""

    @property
    def info(self) -> ModelInfo: ...


def calibrate(
    predictor: CalibratedPredictor,
    catalogue: Catalogue,
    *,
    console: Console,
    target_precisions: Sequence[float] = TARGET_PRECISIONS,
    delta: float = 0.05,
) -> Calibration:
    """Calibrate every attribute in every situation on its own.

    The two parts are kept apart: were the temperature fitted on the calibration listings, their confidences
    would depend on one another, and the certificate (`model.certificates.certify`) would not hold.
    Raises `ConfigError` for a target precision or a `delta` that is not between 0 and 1.
    """
    if not all(0 < share < 1 for share in (delta, *target_precisions)):
        raise ConfigError("target precisions and delta must lie between 0 and 1")
    targets = tuple(sorted(set(target_precisions)))
    situations = {}
    for situation in Situation:
        validation = collect(predictor, catalogue, Part.VALIDATION, situation, console=console)
        calibration = collect(predictor, catalogue, Part.CALIBRATION, situation, console=console)
        situations[situation] = {
            task.name: _calibrate_attribute(task, validation, calibration, targets, delta) for task in predictor.tasks
        }
    return Calibration(
        version=predictor.info.version,
        method=METHOD,
        confidence_level=1 - delta,
        target_precisions=targets,
        situations=situations,
    )


def _calibrate_attribute(
    task: Task, validation: HeldOut, calibration: HeldOut, targets: Sequence[float], delta: float
) -> AttributeCalibration:
    temperature = fit_temperature(validation.logits_of(task), validation.labels(task))
    answers = calibration.answers(task, temperature)
    return AttributeCalibration(
        temperature=temperature,
        thresholds=certify(answers.confidence, answers.correct, targets, delta, group=answers.group),
    )


def calibration_table(calibration: Calibration) -> Table:
    """Return what was certified, for the terminal: per target the threshold and the coverage."""
    table = Table(title=f"Thresholds at {calibration.confidence_level:.0%} confidence, and coverage in %")
    table.add_column("situation")
    table.add_column("attribute")
    for heading in ("temperature", *(f"{100 * target:g} %" for target in calibration.target_precisions)):
        table.add_column(heading, justify="right")
    for situation, attributes in calibration.situations.items():
        for attribute, calibrated in attributes.items():
            cells = [
                "abstains" if c is None else f"{c.threshold:.4f}  {100 * c.coverage:5.1f}"
                for c in calibrated.thresholds.values()
            ]
            table.add_row(situation, attribute, f"{calibrated.temperature:.2f}", *cells)
        table.add_section()
    return table
