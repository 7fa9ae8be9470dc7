"""Calibration of a checkpoint: temperatures fitted on validation, thresholds certified on calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import METRICS, write_calibration
from model.errors import ConfigError
from model.evaluation.fit_gate import fit_gate
from model.evaluation.heldout import (
    Answers,
    HeldOut,
    PairAnswers,
    Temperatures,
    all_answers,
    check_attributes,
    collect,
    describe_unknown_labels,
    judgements,
    not_applicable,
)
from model.inference.predictions import RawPredictor
from model.inference.predictor import Predictor
from model.situations import Situation
from model.tasks import Task
from model.trust.applicability import Applicability
from model.trust.calibration import AttributeCalibration, Calibration, Certificate, GateRecord, fit_temperature
from model.trust.certificates import GRID, METHOD, TARGET_PRECISIONS, certify, certify_labels
from model.trust.gate import Gate
from model.trust.scope import SCOPE_LEVEL

TOGETHER = "all attributes at once (Bonferroni)"


def calibrate(
    checkpoint: str | Path,
    catalogue: Catalogue,
    *,
    target_precisions: Sequence[float] = TARGET_PRECISIONS,
    per_label: bool = False,
    together: bool = False,
    scope_level: float = SCOPE_LEVEL,
    keep_temperatures: bool = False,
    device: str = "auto",
    engine: str = "torch",
    console: Console | None = None,
) -> Calibration:
    """Calibrate a checkpoint folder on a catalogue: write its scope.safetensors and calibration.json.

    Returns what calibration.json holds. With an `engine` that the checkpoint carries, the files are in its folder.

    With `keep_temperatures` a checkpoint that is calibrated already keeps its temperatures, where a catalogue has too
    few listings to fit them on. The other options are those of `fit_calibration`. Where people have corrected labels
    (`model.catalogue.corrections`), the thresholds are certified on the corrected ones, and `console` shows what the
    table's own would have given. A metrics.json that was measured with other thresholds is removed, and `console` says
    so.

        calibrate("runs/shop/checkpoint", Catalogue.open("shop.toml"), target_precisions=[0.9, 0.98])

    Raises `ConfigError`, `CatalogueError` or `CheckpointError`.
    """
    console = console or Console(stderr=True)
    predictor = Predictor.load(checkpoint, device=device, engine=engine)
    known = predictor.checkpoint.calibration if keep_temperatures else None
    calibration, gate = fit_calibration(
        predictor,
        catalogue,
        console=console,
        temperatures=None if known is None else temperatures_of(known),
        target_precisions=target_precisions,
        per_label=per_label,
        together=together,
        scope_level=scope_level,
        applicability=predictor.checkpoint.applicability,
    )
    calibration = write_calibration(predictor.checkpoint, calibration, gate)
    metrics = predictor.checkpoint.home / METRICS
    if metrics.is_file():
        metrics.unlink()
        console.print(
            f"{metrics} was measured with the old thresholds, and is removed: run `cma-clip evaluate`", soft_wrap=True
        )
    return calibration


def fit_calibration(
    predictor: RawPredictor,
    catalogue: Catalogue,
    *,
    console: Console,
    target_precisions: Sequence[float] = TARGET_PRECISIONS,
    delta: float = 0.05,
    per_label: bool = False,
    together: bool = False,
    scope_level: float = SCOPE_LEVEL,
    temperatures: Temperatures | None = None,
    applicability: Applicability | None = None,
) -> tuple[Calibration, Gate]:
    """Fit the gate, and calibrate every attribute in every situation on its own; with `per_label`, also each label.

    `scope_level`: the share of listings like the catalogue's that may be taken for unfamiliar ones. Each promise holds
    with probability 1 - `delta`. With `together`, at each target all attributes of a situation keep theirs at once,
    with that probability: they share `delta` evenly (Bonferroni). `temperatures`: None to fit them. `applicability`:
    that of the checkpoint.

    The parts are kept apart: were temperatures or the gate fitted on the calibration listings, what is certified there
    would depend on itself, and the certificate (`model.trust.certificates.certify`) would not hold.
    Raises `ConfigError` for a target precision or a scope level that is not between 0 and 1, a `delta` above a half, a
    catalogue that does not name every attribute, and for `per_label` and `together` at once: how many labels there are
    to share `delta` is not known beforehand.
    """
    if not all(0 < target < 1 for target in target_precisions) or not 0 < delta <= 0.5:
        raise ConfigError("target precisions must lie between 0 and 1, and delta between 0 and a half")
    if not 0 < scope_level < 1:
        raise ConfigError(f"the scope level must lie between 0 and 1, it is {scope_level:g}")
    if per_label and together:
        raise ConfigError("labels are certified one by one or promises are kept together, not both")
    targets = tuple(sorted(set(target_precisions)))
    check_attributes(predictor.tasks, catalogue)
    console.print(describe_unknown_labels(predictor.tasks, catalogue), soft_wrap=True, markup=False)
    validation = _collect(predictor, catalogue, Part.VALIDATION, console)
    temperatures = temperatures or {
        situation: {
            task.name: fit_temperature(held_out.logits_of(task), held_out.labels(task)) for task in predictor.tasks
        }
        for situation, held_out in validation.items()
    }
    gate = fit_gate(predictor, catalogue, validation, temperatures, level=scope_level, console=console)
    held_out = _collect(predictor, catalogue, Part.CALIBRATION, console)

    def certified(listings: Mapping[Situation, HeldOut]) -> Calibration:
        return Calibration(
            version=predictor.info.version,
            method=f"{METHOD}; {TOGETHER}" if together else METHOD,
            confidence_level=1 - delta,
            target_precisions=targets,
            situations=_certify(
                listings,
                gate,
                temperatures,
                targets,
                delta / len(predictor.tasks) if together else delta,
                per_label=per_label,
                applicability=applicability,
            ),
        )

    if catalogue.corrections:
        table = {situation: each.as_in_table(catalogue.corrections) for situation, each in held_out.items()}
        console.print(calibration_table(certified(table), title="With the table's own labels, for comparison: "))
    return certified(held_out), gate


def temperatures_of(calibration: Calibration) -> Temperatures:
    """Return the temperatures of a calibration."""
    return {
        situation: {attribute: each.temperature for attribute, each in attributes.items()}
        for situation, attributes in calibration.situations.items()
    }


def _collect(
    predictor: RawPredictor, catalogue: Catalogue, part: Part, console: Console
) -> Mapping[Situation, HeldOut]:
    return collect(predictor, catalogue, catalogue.part(part), console=console, what=part.value)


def _certify(
    held_out: Mapping[Situation, HeldOut],
    gate: Gate,
    temperatures: Temperatures,
    targets: Sequence[float],
    delta: float,
    *,
    per_label: bool,
    applicability: Applicability | None,
) -> dict[Situation, dict[str, AttributeCalibration]]:
    """Certify every attribute in every situation on what the gate lets pass of the calibration listings.

    Where an attribute is not applicable, serving accepts nothing. The confidence from which the product type decides
    that is itself learned from the calibration listings, so no certificate may depend on it: of the listings that some
    such confidence would take out, right answers are taken out and wrong ones are kept. Whatever it is, what passes has
    as many right answers at least, and as many wrong ones at most.
    """
    judged = judgements(gate, held_out, temperatures)
    nothing, possible = (not_applicable(each, None, held_out, judged, temperatures) for each in (None, applicability))
    answers = all_answers(held_out, judged, temperatures, nothing)
    if applicability is not None:
        fewest = all_answers(held_out, judged, temperatures, possible)
        answers = {
            situation: {name: _worst(own, fewest[situation][name]) for name, own in by_attribute.items()}
            for situation, by_attribute in answers.items()
        }
    return {
        situation: {
            task.name: _certify_attribute(
                answers[situation][task.name],
                task,
                temperatures[situation][task.name],
                targets,
                delta,
                per_label=per_label,
            )
            for task in listings.tasks
        }
        for situation, listings in held_out.items()
    }


def _certify_attribute(
    answers: Answers, task: Task, temperature: float, targets: Sequence[float], delta: float, *, per_label: bool
) -> AttributeCalibration:
    """Certify one attribute on the calibration listings that the gate lets pass."""
    passed = answers.passed
    if task.multi_valued:  # no label is accepted that is likelier wrong than right
        passed = passed & (answers.confidence >= GRID[-1])
    confidence, correct, group = answers.confidence[passed], answers.correct[passed], answers.group[passed]
    options: dict[str, Any] = {"group": group, "in_step": task.multi_valued}
    predicted = answers.predicted[passed]
    own = certify_labels(confidence, correct, predicted, targets, delta, **options) if per_label else {}
    return AttributeCalibration(
        temperature=temperature,
        thresholds={
            target: found and dataclasses.replace(found, coverage=_coverage(answers, passed, found))
            for target, found in certify(confidence, correct, targets, delta, **options).items()
        },
        labels={task.labels[label]: certificates for label, certificates in own.items()},
    )


def _coverage(answers: Answers, passed: NDArray[np.bool_], certificate: Certificate) -> float:
    """Return the share of the labelled listings of which a label is accepted."""
    if not isinstance(answers, PairAnswers):
        return certificate.support / len(passed)
    accepted = answers.listing[passed & (answers.confidence >= certificate.threshold)]
    return len(np.unique(accepted)) / len(np.unique(answers.listing))


def _worst(most: Answers, fewest: Answers) -> Answers:
    """Return the answers of which the fewest right ones pass and the most wrong ones."""
    return dataclasses.replace(most, passed=np.where(most.correct, fewest.passed, most.passed))


def calibration_table(calibration: Calibration, *, title: str = "") -> Table:
    """Return what was certified, for the terminal: per target the threshold and the coverage."""
    table = Table(title=f"{title}Thresholds at {calibration.confidence_level:.0%} confidence, and coverage in %")
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
    captions = [_gate_caption(calibration.gate)] if calibration.gate else []
    if per_label:
        captions.append("in brackets: labels with a threshold of their own + labels that abstain; the rest fall back")
    table.caption = "\n".join(captions) or None
    return table


def _gate_caption(gate: GateRecord) -> str:
    """Say from which p-values on a listing is unfamiliar, or its image and title contradict each other."""
    levels = ", ".join(f"{situation} {level:.3g}" for situation, level in gate.scope_level.items()) or "never"
    conflict = "never" if gate.conflict_level is None else f"{gate.conflict_level:.3g}"
    return f"unfamiliar below a familiarity of: {levels}; contradictory below an agreement of: {conflict}"


def _label_counts(calibrated: AttributeCalibration, target: float) -> str:
    own = [certificates[target] for certificates in calibrated.labels.values() if target in certificates]
    abstaining = own.count(None)
    return f"[{len(own) - abstaining} + {abstaining}]"
