"""Calibration of a checkpoint: temperatures fitted on validation, thresholds certified on calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import CALIBRATION, METRICS, write_part
from model.errors import ConfigError
from model.evaluation.heldout import HeldOut, check_attributes, collect, describe_unknown_labels
from model.inference.predictions import LogitPredictor
from model.inference.predictor import Predictor
from model.situations import Situation
from model.tasks import Task
from model.trust.calibration import AttributeCalibration, Calibration, fit_temperature
from model.trust.certificates import METHOD, certify, certify_labels

TARGET_PRECISIONS = (0.9, 0.95, 0.99)

TOGETHER = "all attributes at once (Bonferroni)"


def calibrate(
    checkpoint: str | Path,
    catalogue: Catalogue,
    *,
    target_precisions: Sequence[float] = TARGET_PRECISIONS,
    per_label: bool = False,
    together: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> Calibration:
    """Calibrate a checkpoint folder on a catalogue: write its calibration.json, and return what that holds.

    The options are those of `fit_calibration`. A metrics.json that was measured with other thresholds is removed, and
    `console` says so.

        calibrate("runs/shop/checkpoint", Catalogue.open("shop.toml"), target_precisions=[0.9, 0.98])

    Raises `ConfigError`, `CatalogueError` or `CheckpointError`.
    """
    console = console or Console(stderr=True)
    predictor = Predictor.load(checkpoint, device=device)
    calibration = fit_calibration(
        predictor,
        catalogue,
        console=console,
        target_precisions=target_precisions,
        per_label=per_label,
        together=together,
    )
    write_part(predictor.checkpoint, CALIBRATION, calibration.to_json())
    metrics = predictor.checkpoint.folder / METRICS
    if metrics.is_file():
        metrics.unlink()
        console.print(
            f"{metrics} was measured with the old thresholds, and is removed: run `cma-clip evaluate`", soft_wrap=True
        )
    return calibration


def fit_calibration(
    predictor: LogitPredictor,
    catalogue: Catalogue,
    *,
    console: Console,
    target_precisions: Sequence[float] = TARGET_PRECISIONS,
    delta: float = 0.05,
    per_label: bool = False,
    together: bool = False,
) -> Calibration:
    """Calibrate every attribute in every situation on its own; with `per_label`, also each label.

    Each promise is kept with probability 1 - `delta`. With `together`, at each target all attributes of a situation
    keep theirs at once, with that probability: they share `delta` evenly (Bonferroni).

    The two parts are kept apart: were the temperature fitted on the calibration listings, their confidences
    would depend on one another, and the certificate (`model.trust.certificates.certify`) would not hold.
    Raises `ConfigError` for a target precision that is not between 0 and 1, a `delta` above a half, a catalogue that
    does not name every attribute, and for `per_label` and `together` at once: how many labels there are to share
    `delta` is not known beforehand.
    """
    if not all(0 < target < 1 for target in target_precisions) or not 0 < delta <= 0.5:
        raise ConfigError("target precisions must lie between 0 and 1, and delta between 0 and a half")
    if per_label and together:
        raise ConfigError("labels are certified one by one or promises are kept together, not both")
    check_attributes(predictor.tasks, catalogue)
    console.print(describe_unknown_labels(predictor.tasks, catalogue), soft_wrap=True, markup=False)
    targets = tuple(sorted(set(target_precisions)))
    level = delta / len(predictor.tasks) if together else delta
    situations = {}
    for situation in Situation:
        validation = collect(predictor, catalogue, Part.VALIDATION, situation, console=console)
        calibration = collect(predictor, catalogue, Part.CALIBRATION, situation, console=console)
        situations[situation] = {
            task.name: _calibrate_attribute(task, validation, calibration, targets, level, per_label=per_label)
            for task in predictor.tasks
        }
    return Calibration(
        version=predictor.info.version,
        method=f"{METHOD}; {TOGETHER}" if together else METHOD,
        confidence_level=1 - delta,
        target_precisions=targets,
        situations=situations,
    )


def _calibrate_attribute(
    task: Task, validation: HeldOut, calibration: HeldOut, targets: Sequence[float], delta: float, *, per_label: bool
) -> AttributeCalibration:
    temperature = fit_temperature(validation.logits_of(task), validation.labels(task))
    answers = calibration.answers(task, temperature)
    confidence, correct, group = answers.confidence, answers.correct, answers.group
    own = certify_labels(confidence, correct, answers.predicted, targets, delta, group=group) if per_label else {}
    return AttributeCalibration(
        temperature=temperature,
        thresholds=certify(confidence, correct, targets, delta, group=group),
        labels={task.labels[label]: certificates for label, certificates in own.items()},
    )


def calibration_table(calibration: Calibration) -> Table:
    """Return what was certified, for the terminal: per target the threshold and the coverage."""
    table = Table(title=f"Thresholds at {calibration.confidence_level:.0%} confidence, and coverage in %")
    table.add_column("situation")
    table.add_column("attribute")
    per_label = any(c.labels for attributes in calibration.situations.values() for c in attributes.values())
    for heading in ("temperature", *(f"{100 * target:g} %" for target in calibration.target_precisions)):
        table.add_column(heading, justify="right")
    for situation, attributes in calibration.situations.items():
        for attribute, calibrated in attributes.items():
            cells = [
                "abstains" if c is None else f"{c.threshold:.4f}  {100 * c.coverage:5.1f}"
                for c in calibrated.thresholds.values()
            ]
            if per_label:
                cells = [
                    f"{cell}  {_label_counts(calibrated, target)}"
                    for cell, target in zip(cells, calibrated.thresholds, strict=True)
                ]
            table.add_row(situation, attribute, f"{calibrated.temperature:.2f}", *cells)
        table.add_section()
    if per_label:
        table.caption = "in brackets: labels with a threshold of their own + labels that abstain; the rest fall back"
    return table


def _label_counts(calibrated: AttributeCalibration, target: float) -> str:
    own = [certificates[target] for certificates in calibrated.labels.values() if target in certificates]
    abstaining = own.count(None)
    return f"[{len(own) - abstaining} + {abstaining}]"
