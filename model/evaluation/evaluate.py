"""Evaluation of a calibrated checkpoint on the test part, per situation and attribute.

The measures are those of `model.evaluation.scores`; here they are collected into metrics.json, tables and text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.catalogue.corrections import Outcome
from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.card import update_card
from model.checkpoint.folder import METRICS, write_part
from model.errors import ConfigError
from model.evaluation import scores
from model.evaluation.heldout import (
    Answers,
    HeldOut,
    PairAnswers,
    Temperatures,
    all_answers,
    check_attributes,
    collect,
    describe_unknown_labels,
    joined,
    judgements,
    not_applicable,
    save_scores,
)
from model.evaluation.stability import (
    COLUMNS,
    change_rows,
    measure_stability,
    stability_rows,
    stability_tables,
)
from model.evaluation.stability import LEGEND as STABILITY_LEGEND
from model.inference.calibrator import LIKELY
from model.inference.predictions import RawPredictor
from model.inference.predictor import Predictor
from model.situations import Situation
from model.tasks import OUT_OF_VOCABULARY, Task
from model.trust.applicability import Applicability
from model.trust.binomial import clopper_pearson, design_effects
from model.trust.calibration import AttributeCalibration, Calibration
from model.trust.gate import Gate, Judgement

HEADINGS: Mapping[Situation, str] = {
    Situation.IMAGE_AND_TITLE: "Image and title",
    Situation.IMAGE: "Image alone",
    Situation.TITLE: "Title alone",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, and the answers it was measured on, for plots and experiments."""

    metrics: Mapping[str, Any]
    """The content of metrics.json."""
    answers: Mapping[Situation, Mapping[str, Answers]]
    calibration: Calibration
    gate: Gate | None
    applicability: Applicability | None


def evaluate(
    checkpoint: str | Path,
    catalogue: Catalogue,
    *,
    scores_file: Path | None = None,
    stability: int = 0,
    device: str = "auto",
    engine: str = "torch",
    console: Console | None = None,
) -> Evaluation:
    """Measure a calibrated checkpoint folder on a catalogue's test part.

    Writes metrics.json and the results of the model card (README.md) into the folder; with `scores_file`, the answers
    on the calibration and test parts too, for experiments (`.npz`). `stability`: on how many test listings to measure
    how answers change under unnoticeable changes (`model/evaluation/stability.py`). With an `engine` that the
    checkpoint carries, the metrics.json in its folder is written, and the card is left as it is.

        evaluation = evaluate("runs/shop/checkpoint", Catalogue.open("shop.toml"))
        evaluation.metrics["situations"]["title"]["attributes"]["colour"]["accuracy"]

    Raises `ConfigError` for a checkpoint that is not calibrated, else as `measure` and `Predictor.load` do.
    """
    console = console or Console(stderr=True)
    predictor = Predictor.load(checkpoint, device=device, engine=engine)
    calibration = predictor.checkpoint.calibration
    if calibration is None:
        raise ConfigError(f"{checkpoint} is not calibrated yet; run `cma-clip calibrate` on it first")
    trained, gate = predictor.checkpoint, predictor.checkpoint.gate
    evaluation = measure(predictor, calibration, gate, catalogue, applicability=trained.applicability, console=console)
    if stability:
        found = measure_stability(
            predictor,
            calibration,
            gate,
            catalogue,
            applicability=trained.applicability,
            listings=stability,
            console=console,
        )
        evaluation = replace(evaluation, metrics={**evaluation.metrics, "stability": found})
    write_part(predictor.checkpoint, METRICS, evaluation.metrics)
    if predictor.checkpoint.compiled is None:
        update_card(predictor.checkpoint, model_card_tables(evaluation.metrics))
    if scores_file:
        save_scores(scores_file, held_out_scores(predictor, evaluation, catalogue, console=console))
    return evaluation


def measure(
    predictor: RawPredictor,
    calibration: Calibration,
    gate: Gate | None,
    catalogue: Catalogue,
    *,
    console: Console,
    applicability: Applicability | None = None,
) -> Evaluation:
    """Measure every attribute in every situation, and the gate, on the test part.

    With labels that people have corrected, `corrections` holds the figures with the table's own besides. A figure
    without rows is None. Intervals are at 95 %, and allow for listings that share their title. Raises `ConfigError` for
    a catalogue that does not name every attribute of the predictor.
    """
    check_attributes(predictor.tasks, catalogue)
    console.print(describe_unknown_labels(predictor.tasks, catalogue), soft_wrap=True, markup=False)
    held_out = collect(predictor, catalogue, catalogue.part(Part.TEST), console=console, what=Part.TEST.value)
    situations, answers = _figures(held_out, calibration, gate, applicability)
    rows = Counter(listing.part for listing in catalogue.listings)
    metrics = {
        "version": predictor.info.version,
        "date": datetime.now(UTC).date().isoformat(),
        "data": {
            "name": catalogue.config.path.stem,
            "table": catalogue.config.table.name,
            "listings": {part.value: rows[part] for part in Part},
        },
        "target_precisions": list(calibration.target_precisions),
        "confidence_level": calibration.confidence_level,
        "situations": situations,
    }
    if catalogue.corrections:
        table = {situation: each.as_in_table(catalogue.corrections) for situation, each in held_out.items()}
        metrics["corrections"] = {
            **catalogue.corrections.to_json(),
            "as_in_table": _figures(table, calibration, gate, applicability)[0],
        }
    return Evaluation(metrics=metrics, answers=answers, calibration=calibration, gate=gate, applicability=applicability)


def _figures(
    held_out: Mapping[Situation, HeldOut],
    calibration: Calibration,
    gate: Gate | None,
    applicability: Applicability | None,
) -> tuple[dict[Situation, dict[str, Any]], Mapping[Situation, Mapping[str, Answers]]]:
    """Return the figures of every situation, in JSON types, and the answers that they are of."""
    temperatures = _temperatures(calibration)
    judged = judgements(gate, held_out, temperatures)
    excluded = not_applicable(applicability, calibration, held_out, judged, temperatures)
    answers = all_answers(held_out, judged, temperatures, excluded)
    situations = {
        situation: {
            "listings": len(test.listings),
            "unreadable_images": test.unreadable,
            "gate": _gate_figures(judged[situation], test.group),
            "attributes": {
                task.name: _measure(
                    task, test, answers[situation][task.name], calibration.situations[situation][task.name]
                )
                | ({} if applicability is None else _exclusion(task, test, excluded[situation]))
                for task in test.tasks
            },
        }
        for situation, test in held_out.items()
    }
    return situations, answers


def _temperatures(calibration: Calibration) -> Temperatures:
    return {
        situation: {name: attribute.temperature for name, attribute in attributes.items()}
        for situation, attributes in calibration.situations.items()
    }


def _gate_figures(judged: Judgement, group: scores.Ints) -> dict[str, Any]:
    """Return the shares of listings that the gate stops, which are all of the catalogue's own kind, with intervals."""
    stopped = {
        "unfamiliar": ~judged.in_scope,
        "title_ignored": judged.title_ignored,
        "modalities_disagree": judged.in_scope & judged.disagree.all(axis=1),
    }
    return {name: _share(rows, group) for name, rows in stopped.items()}


def _share(rows: NDArray[np.bool_], group: scores.Ints) -> dict[str, Any] | None:
    if len(rows) == 0:
        return None
    effect = design_effects(np.ones(len(rows)), ~rows, group, [1.0])[0]
    low, high = clopper_pearson(rows.sum() / effect, len(rows) / effect)
    return {"share": float(rows.mean()), "interval": [low, high]}


def held_out_scores(
    predictor: RawPredictor, evaluation: Evaluation, catalogue: Catalogue, *, console: Console
) -> dict[Situation, dict[str, Answers]]:
    """Return the answers on the calibration part and the test part together, calibrated.

    These are all the listings that neither training nor the temperatures have seen: for experiments that split them
    at random (`research/certificates.py`).
    """
    listings = catalogue.part(Part.CALIBRATION)
    held_out = collect(predictor, catalogue, listings, console=console, what=Part.CALIBRATION.value)
    temperatures = _temperatures(evaluation.calibration)
    judged = judgements(evaluation.gate, held_out, temperatures)
    excluded = not_applicable(evaluation.applicability, evaluation.calibration, held_out, judged, temperatures)
    answers = all_answers(held_out, judged, temperatures, excluded)
    return {
        situation: {name: joined([own, evaluation.answers[situation][name]]) for name, own in by_attribute.items()}
        for situation, by_attribute in answers.items()
    }


def _measure(task: Task, test: HeldOut, answers: Answers, calibrated: AttributeCalibration) -> dict[str, Any]:
    if isinstance(answers, PairAnswers):
        return _measure_sets(task, test, answers, calibrated)
    confidence, correct, group = answers.confidence, answers.correct, answers.group
    predicted, labels, n = answers.predicted, answers.labels, len(answers.labels)
    uncalibrated = test.answers(task, 1.0, np.ones(len(test.listings), np.bool_))
    everything = scores.operating_point(confidence, correct, 0.0)
    return {
        "support": n,
        "out_of_vocabulary": int((labels == OUT_OF_VOCABULARY).sum()),
        "accuracy": everything.precision,
        "accuracy_interval": _precision_interval(confidence, answers, everything),
        "macro_f1": _figure(scores.macro_f1(predicted, labels)),
        "macro_f1_interval": _interval(lambda rows: scores.macro_f1(predicted[rows], labels[rows]), group),
        "recall_at_precision": {str(target): _recall(answers, target) for target in calibrated.thresholds},
        "accepted": {
            str(target): _accepted(task, answers, calibrated, target) if n > 0 else None
            for target in calibrated.thresholds
        },
        "calibration_error": {
            "before": _figure(scores.expected_calibration_error(uncalibrated.confidence, correct)),
            "after": _figure(scores.expected_calibration_error(confidence, correct)),
        },
        "modality_attention": _attention(task, test),
        "answered": _answered(task, test),
    }


def _measure_sets(task: Task, test: HeldOut, answers: PairAnswers, calibrated: AttributeCalibration) -> dict[str, Any]:
    """Measure a multi-valued attribute over its (listing, label) pairs; an answer is a label that is likelier than not.

    A recall is the share of all true labels, those outside the vocabulary too, that are accepted.
    """
    likely, correct, predicted = answers.confidence >= LIKELY, answers.correct, answers.predicted
    unknown = int(answers.unknown.sum())
    uncalibrated = test.answers(task, 1.0, np.ones(len(test.listings), np.bool_))

    def f1(rows: scores.Ints) -> tuple[float, float]:
        return scores.set_f1(likely[rows], correct[rows], predicted[rows], int(answers.unknown[rows].sum()))

    micro, macro = scores.set_f1(likely, correct, predicted, unknown)
    return {
        "support": int((np.diff(answers.listing, prepend=-1) > 0).sum()),
        "labels": int(correct.sum()) + unknown,
        "out_of_vocabulary": unknown,
        "micro_f1": _figure(micro),
        "micro_f1_interval": _interval(lambda rows: f1(rows)[0], answers.group),
        "macro_f1": _figure(macro),
        "macro_f1_interval": _interval(lambda rows: f1(rows)[1], answers.group),
        "recall_at_precision": {str(target): _set_recall(answers, target) for target in calibrated.thresholds},
        "accepted": {
            str(target): _accepted(task, answers, calibrated, target) if len(correct) else None
            for target in calibrated.thresholds
        },
        "calibration_error": {
            # Of the answers: nearly all other pairs have a confidence near 0 and are rightly without their label.
            "before": _figure(scores.expected_calibration_error(uncalibrated.confidence[likely], correct[likely])),
            "after": _figure(scores.expected_calibration_error(answers.confidence[likely], correct[likely])),
        },
        "modality_attention": _attention(task, test),
        "answered": _answered(task, test),
    }


def _set_recall(answers: PairAnswers, target: float) -> dict[str, Any]:
    def recall(rows: scores.Ints) -> float:
        confidence, correct = answers.confidence[rows], answers.correct[rows]
        true = int(correct.sum() + answers.unknown[rows].sum())
        point = scores.oracle_point(confidence, correct, target) if len(rows) else None
        return math.nan if not true else 0.0 if point is None else point.right / true

    return {
        "recall": _figure(recall(np.arange(len(answers.correct)))),
        "interval": _interval(recall, answers.group),
    }


def _exclusion(task: Task, test: HeldOut, excluded: NDArray[np.bool_]) -> dict[str, Any]:
    """Return to how many test listings the attribute is judged not to apply, and how many of them are labelled."""
    rows = excluded[:, test.tasks.index(task)]
    labelled = sum(test.listings[row].has_label(task.name) for row in np.flatnonzero(rows).tolist())
    return {"not_applicable": {"listings": int(rows.sum()), "labelled": labelled}}


def _attention(task: Task, test: HeldOut) -> dict[str, float | None]:
    """Return the mean weight of each modality."""
    weights = test.attention[:, test.tasks.index(task)]
    return {
        modality: _figure(weights[:, column].mean()) if len(weights) else None
        for column, modality in enumerate(("image", "text"))
    }


def _answered(task: Task, test: HeldOut) -> dict[str, float]:
    """Return the share of each label among the answers: monitoring compares those of a running service with them."""
    logits = test.logits_of(task)
    if task.multi_valued:  # a confidence of a half is a logit of 0, at any temperature
        best = np.arange(len(task.labels)) == logits.argmax(axis=1)[:, None]
        counts = ((logits >= 0) | best).sum(axis=0)
    else:
        counts = np.bincount(logits.argmax(axis=1), minlength=len(task.labels))
    return {label: float(count / max(1, counts.sum())) for label, count in zip(task.labels, counts, strict=True)}


def _recall(answers: Answers, target: float) -> dict[str, Any]:
    confidence, correct = answers.confidence, answers.correct
    return {
        "recall": _figure(scores.recall_at_precision(confidence, correct, target)),
        "interval": _interval(
            lambda rows: scores.recall_at_precision(confidence[rows], correct[rows], target), answers.group
        ),
    }


def _accepted(task: Task, answers: Answers, calibrated: AttributeCalibration, target: float) -> dict[str, Any] | None:
    """Measure what is accepted at a target; None where nothing ever would be."""
    minimum = calibrated.minimum_confidence(target, task.labels)
    if np.isinf(minimum).all():
        return None
    # Each label may have a threshold of its own: whether an answer is accepted depends on its label too.
    accepted = (answers.passed & (answers.confidence >= minimum[answers.predicted])).astype(np.float64)
    point = scores.operating_point(accepted, answers.correct, 1.0)
    certificate = calibrated.thresholds[target]
    measured: dict[str, Any] = {
        "threshold": None if certificate is None else certificate.threshold,
        "coverage": point.coverage,
        "precision": point.precision,
        "precision_interval": _precision_interval(accepted, answers, point),
        "accepted": point.accepted,
    }
    if isinstance(answers, PairAnswers):
        true = int(answers.correct.sum() + answers.unknown.sum())
        covered = len(np.unique(answers.listing[accepted > 0]))
        measured["coverage"] = covered / len(np.unique(answers.listing))
        measured["recall"] = point.right / true if true else None
    return measured


def _precision_interval(
    confidence: scores.Floats, answers: Answers, point: scores.OperatingPoint
) -> list[float] | None:
    """Return the Clopper-Pearson interval of a point's precision, by the effective number of listings."""
    if point.accepted == 0:
        return None
    effect = design_effects(confidence, answers.correct, answers.group, [point.threshold])[0]
    return list(clopper_pearson(point.right / effect, point.accepted / effect))


def _interval(measure: Callable[[scores.Ints], float], group: scores.Ints) -> list[float] | None:
    if len(group) == 0:
        return None
    low, high = scores.bootstrap_interval(measure, group)
    return None if math.isnan(low + high) else [low, high]


def _figure(value: float) -> float | None:
    """JSON has no NaN: a figure without rows is null."""
    return None if math.isnan(value) else float(value)


# --- tables ------------------------------------------------------------------------------------------------

LEGEND = (
    "All figures but the row counts are in %. R@p: recall at precision p, with the best threshold for these "
    "very rows. Accepted at p: coverage / precision of the labels accepted by the threshold certified "
    "for p on other listings, or - where none was and the service abstains. ECE: expected calibration error "
    "before > after the temperature. Rows whose label the model does not know (unknown) count as errors."
)

SETS_LEGEND = (
    "Attributes with a micro F1 are multi-valued: their figures are over pairs of a listing and a label, recall is the "
    "share of all labels that is found, and coverage is the share of listings of which a label is accepted."
)


def evaluation_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return one table per situation, for the terminal; with corrected labels, another with the table's own."""
    tables = _situation_tables(metrics, metrics["situations"], "")
    if "corrections" in metrics:
        tables += _situation_tables(metrics, metrics["corrections"]["as_in_table"], f" {AS_IN_TABLE}")
    return tables + (stability_tables(metrics["stability"], HEADINGS) if "stability" in metrics else [])


AS_IN_TABLE = "with the table's own labels, for comparison"


def _situation_tables(metrics: Mapping[str, Any], situations: Mapping[Situation, Any], note: str) -> list[Table]:
    tables = []
    for situation, measured in situations.items():
        table = Table(title=f"{HEADINGS[situation]}: {measured['listings']:,} test listings{note}")
        for heading in _headings(metrics):
            table.add_column(heading, justify="left" if heading == "attribute" else "right")
        for attribute, figures in measured["attributes"].items():
            table.add_row(*_row(attribute, figures, sets=_any_sets(metrics)))
        table.caption = _gate_line(measured["gate"])
        tables.append(table)
    return tables


def model_card_tables(metrics: Mapping[str, Any]) -> str:
    """Return the same tables as Markdown, from the content of metrics.json, for the model card."""
    data = metrics["data"]
    counts = ", ".join(f"{part} {n:,}" for part, n in data["listings"].items())
    legend = f"{LEGEND} {SETS_LEGEND}" if _any_sets(metrics) else LEGEND
    lines = [f"Measured on {metrics['date']} on the test part of `{data['name']}` ({counts}).", "", legend]
    lines += _situation_lines(metrics, metrics["situations"], "")
    if "corrections" in metrics:
        lines += ["", corrections_line(metrics["corrections"])]
        lines += _situation_lines(metrics, metrics["corrections"]["as_in_table"], f" {AS_IN_TABLE}")
    if "stability" in metrics:
        lines += ["", *_stability_lines(metrics["stability"])]
    return "\n".join(lines) + "\n"


def corrections_line(corrections: Mapping[str, Any]) -> str:
    """Say how many labels of the test part people have judged and changed."""
    judged: Counter[str] = Counter()
    for outcomes in corrections["decisions"].get(Part.TEST, {}).values():
        judged.update(outcomes)
    followed = judged.total() - judged[Outcome.PASSED_OVER]
    return (
        f"The tables above are with labels that people have judged on a random sample ({corrections['file']}): "
        f"{followed:,} of the test part, of which {judged[Outcome.CHANGED]:,} were changed."
    )


def _situation_lines(metrics: Mapping[str, Any], situations: Mapping[Situation, Any], note: str) -> list[str]:
    lines, headings = [], _headings(metrics)
    for situation, measured in situations.items():
        lines += ["", f"### {HEADINGS[situation]}: {measured['listings']:,} listings{note}", ""]
        lines += [_markdown(headings), _markdown(["---", *["---:"] * (len(headings) - 1)])]
        rows = [
            _row(attribute, figures, sets=_any_sets(metrics)) for attribute, figures in measured["attributes"].items()
        ]
        lines += map(_markdown, rows)
        lines += ["", _gate_line(measured["gate"])]
    return lines


def _any_sets(metrics: Mapping[str, Any]) -> bool:
    """Whether an attribute is multi-valued."""
    first = next(iter(metrics["situations"].values()))
    return any("micro_f1" in figures for figures in first["attributes"].values())


def _stability_lines(stability: Mapping[str, Any]) -> list[str]:
    lines = ["### Stability", "", f"{stability['listings']:,} test listings. {STABILITY_LEGEND}"]
    for situation, found in stability["situations"].items():
        for headings, rows in (
            (["attribute", *COLUMNS], stability_rows(found)),
            (["labels that flip", *found["attributes"]], change_rows(found)),
        ):
            lines += ["", f"{HEADINGS[situation]}:", "", _markdown(headings)]
            lines += [_markdown(["---", *["---:"] * (len(headings) - 1)]), *(_markdown(row) for row in rows)]
    return lines


def _headings(metrics: Mapping[str, Any]) -> list[str]:
    targets = [f"{100 * target:g}" for target in metrics["target_precisions"]]
    return [
        *("attribute", "rows", "unknown", "accuracy", *(["micro F1"] if _any_sets(metrics) else []), "macro F1"),
        *(f"R@{target}" for target in targets),
        *(f"accepted at {target}" for target in targets),
        *("ECE", "image weight"),
    ]


def _row(attribute: str, figures: Mapping[str, Any], *, sets: bool) -> list[str]:
    error = figures["calibration_error"]
    return [
        attribute,
        f"{figures['support']:,}",
        f"{figures['out_of_vocabulary']:,}",
        _percent(figures.get("accuracy")),
        *([_percent(figures.get("micro_f1"))] if sets else []),
        _percent(figures["macro_f1"]),
        *(_percent(measured["recall"]) for measured in figures["recall_at_precision"].values()),
        *(
            "-" if point is None else f"{_percent(point['coverage'])} / {_percent(point['precision'])}"
            for point in figures["accepted"].values()
        ),
        f"{_percent(error['before'])} > {_percent(error['after'])}",
        _percent(figures["modality_attention"]["image"]),
    ]


GATE_WORDS = {
    "unfamiliar": "taken for unfamiliar",
    "title_ignored": "answered without their title",
    "modalities_disagree": "whose image and title were taken to contradict each other",
}


def _gate_line(figures: Mapping[str, Any]) -> str:
    """Say which shares of the test listings the gate stops, with their intervals."""
    said = [
        f"{words} {_percent(found['share'])} % [{_percent(found['interval'][0])}, {_percent(found['interval'][1])}]"
        for name, words in GATE_WORDS.items()
        if (found := figures[name]) is not None and (found["share"] or name == "unfamiliar")
    ]
    return f"Of these listings: {'; '.join(said) or 'none'}."


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _markdown(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
