"""Do the certified thresholds keep their promise? Repeated calibration on random splits of held-out scores.

    python -m research.certificates scores.npz [--splits 500] [--per-label] [--json FILE]

The scores are those of `cma-clip evaluate --scores FILE`: predictions on listings that the model was not trained on.
Those that the checkpoint's gate stops are left out, as they are when it is calibrated: nothing of them is accepted.
Each split puts each title on one of two sides at random (listings that share a title stay together, as in a
catalogue's own parts), certifies on one side and measures on the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.errors import ModelError
from model.evaluation.heldout import Answers, ScoresBySituation, load_scores
from model.evaluation.scores import operating_point, oracle_point
from model.progress import progress_bar
from model.trust.binomial import binomial_tail
from model.trust.calibration import AttributeCalibration
from model.trust.certificates import (
    GRID,
    TARGET_PRECISIONS,
    certify,
    certify_labels,
    effective_counts,
    significance_level,
)

Item = TypeVar("Item")

DELTA = 0.05
WAYS = ("certified", "naive", "unadjusted")
"""Ways of choosing a threshold (`Trial`)."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one way of choosing a threshold, as shares of the splits or of the listings."""

    certified: float
    """Splits with a threshold."""
    broken: float
    """Splits in which the precision on the test side was below the target: the promise is at most 0.05."""
    coverage: float
    """Mean coverage on the test side, 0 where there was no threshold."""
    lost: float
    """Mean coverage lost against the oracle threshold: the best one for all the listings together."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One attribute at one target in one situation: certified thresholds beside two others that promise less.

    naive: the smallest threshold whose empirical precision on the calibration side reaches the target.
    unadjusted: the smallest threshold whose own test passes, not corrected for multiple testing. Its cost is due to
    the size of the sample alone: no valid way of choosing among the thresholds can cost less.
    """

    situation: str
    attribute: str
    target: float
    listings: int
    certified: Outcome
    naive: Outcome
    unadjusted: Outcome


def trials(scores: ScoresBySituation, *, splits: int, seed: int = 0) -> Iterator[Trial]:
    """Yield a trial per situation, attribute and target precision, each over `splits` random splits."""
    for situation, attributes in scores.items():
        for attribute, answers in attributes.items():
            if not len(answers.labels):
                continue
            outcomes = _outcomes(answers, splits=splits, seed=seed)
            for target in TARGET_PRECISIONS:
                yield Trial(
                    situation=situation,
                    attribute=attribute,
                    target=target,
                    listings=len(answers.labels),
                    **{way: outcomes[way, target] for way in WAYS},
                )


def _outcomes(answers: Answers, *, splits: int, seed: int) -> dict[tuple[str, float], Outcome]:
    generator = np.random.default_rng(seed)
    thresholds: dict[tuple[str, float], list[float | None]] = {
        (way, target): [] for way in WAYS for target in TARGET_PRECISIONS
    }
    sides = [_calibration_side(answers.group, generator) for _ in range(splits)]
    for side in sides:
        confidence, correct, group = answers.confidence[side], answers.correct[side], answers.group[side]
        certificates = certify(confidence, correct, TARGET_PRECISIONS, DELTA, group=group)
        unadjusted = _unadjusted(confidence, correct, group)
        for target, certificate in certificates.items():
            point = oracle_point(confidence, correct, target)
            thresholds["certified", target].append(None if certificate is None else certificate.threshold)
            thresholds["naive", target].append(None if point is None else point.threshold)
            thresholds["unadjusted", target].append(unadjusted[target])
    return {(way, target): _outcome(answers, sides, chosen, target) for (way, target), chosen in thresholds.items()}


def _unadjusted(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], group: NDArray[np.integer[Any]]
) -> dict[float, float | None]:
    right, accepted = effective_counts(confidence, correct, group)
    chosen: dict[float, float | None] = {}
    for target in TARGET_PRECISIONS:
        passed = np.flatnonzero(binomial_tail(right, accepted, target) <= significance_level(DELTA))
        chosen[target] = GRID[passed[-1]] if len(passed) else None
    return chosen


@dataclass(frozen=True, kw_only=True)
class LabelTrial:
    """One attribute at one target in one situation, with a threshold for each label that can be certified.

    labels: those that were certified in at least one split. kept: those of them whose precision on the test side was
    below the target in at most 0.05 of the splits. worst_broken: the largest share of such splits of any label.
    broken: their share over all labels and splits with a threshold. attribute_broken: splits in which the precision of
    the whole attribute, including labels that use its threshold, was below the target. coverage: its mean coverage.
    """

    situation: str
    attribute: str
    target: float
    labels: int
    kept: int
    worst_broken: float
    broken: float
    attribute_broken: float
    coverage: float


def label_trials(scores: ScoresBySituation, *, splits: int, seed: int = 0) -> Iterator[LabelTrial]:
    """Yield a trial per situation, attribute and target precision, over the splits of `trials`."""
    for situation, attributes in scores.items():
        for attribute, answers in attributes.items():
            if not len(answers.labels):
                continue
            generator = np.random.default_rng(seed)
            sides = [_calibration_side(answers.group, generator) for _ in range(splits)]
            calibrated = [_certified_by_label(answers, side) for side in sides]
            for target in TARGET_PRECISIONS:
                yield _label_trial(answers, sides, calibrated, target=target, situation=situation, attribute=attribute)


@dataclass(frozen=True, kw_only=True)
class JointOutcome:
    """The outcome of certifying all attributes.

    broken: splits in which the precision of at least one of them was below the target. lost: the mean coverage lost
    against their oracle thresholds.
    """

    broken: float
    lost: float


@dataclass(frozen=True, kw_only=True)
class JointTrial:
    """All attributes at one target in one situation: certified one by one, or all together.

    The latter is what `cma-clip calibrate --together` does.
    """

    situation: str
    target: float
    attributes: int
    single: JointOutcome
    together: JointOutcome


def joint_trials(scores: ScoresBySituation, *, splits: int, seed: int = 0) -> Iterator[JointTrial]:
    """Yield a trial per situation and target precision; each split is the same for all attributes."""
    for situation, by_attribute in scores.items():
        attributes = [answers for answers in by_attribute.values() if len(answers.labels)]
        if not attributes:
            continue
        generator = np.random.default_rng(seed)
        groups = np.arange(1 + max(answers.group.max() for answers in attributes))
        halves = [_calibration_side(groups, generator) for _ in range(splits)]
        single, together = (_joint_outcomes(attributes, halves, delta) for delta in (DELTA, DELTA / len(attributes)))
        for target in TARGET_PRECISIONS:
            yield JointTrial(
                situation=situation,
                target=target,
                attributes=len(attributes),
                single=single[target],
                together=together[target],
            )


def _joint_outcomes(
    attributes: Sequence[Answers], halves: Sequence[NDArray[np.bool_]], delta: float
) -> dict[float, JointOutcome]:
    broken = {target: np.zeros(len(halves), dtype=bool) for target in TARGET_PRECISIONS}
    lost: dict[float, list[float]] = {target: [] for target in TARGET_PRECISIONS}
    for answers in attributes:
        oracles = {target: oracle_point(answers.confidence, answers.correct, target) for target in TARGET_PRECISIONS}
        for split, half in enumerate(halves):
            side = half[answers.group]
            confidence, correct = answers.confidence[~side], answers.correct[~side]
            certificates = certify(
                answers.confidence[side], answers.correct[side], TARGET_PRECISIONS, delta, group=answers.group[side]
            )
            for target, certificate in certificates.items():
                oracle = oracles[target]
                best, coverage = oracle.coverage if oracle else 0.0, 0.0
                if certificate:
                    point = operating_point(confidence, correct, certificate.threshold)
                    coverage = point.coverage
                    broken[target][split] |= point.precision is not None and point.precision < target
                lost[target].append(best - coverage)
    return {
        target: JointOutcome(broken=float(broken[target].mean()), lost=float(np.mean(lost[target])))
        for target in TARGET_PRECISIONS
    }


def joint_summary(results: Sequence[JointTrial]) -> str:
    """Return the verdict in a line per target."""
    lines = []
    for target in sorted({trial.target for trial in results}):
        chosen = [trial for trial in results if trial.target == target]
        ways = (
            f"{name} in {100 * max(way.broken for way in each):.1f} % of splits (worst situation), for "
            f"{100 * np.mean([way.lost for way in each]):.1f} points of coverage"
            for name, each in (
                ("certified one by one", [trial.single for trial in chosen]),
                ("certified together", [trial.together for trial in chosen]),
            )
        )
        lines.append(f"at {100 * target:g} %, at least one attribute breaks its promise: {'; '.join(ways)}")
    return "\n".join(lines)


def _certified_by_label(answers: Answers, side: NDArray[np.bool_]) -> AttributeCalibration:
    confidence, correct, group = answers.confidence[side], answers.correct[side], answers.group[side]
    labels = certify_labels(confidence, correct, answers.predicted[side], TARGET_PRECISIONS, DELTA, group=group)
    return AttributeCalibration(
        temperature=1.0,
        thresholds=certify(confidence, correct, TARGET_PRECISIONS, DELTA, group=group),
        labels={str(label): certificates for label, certificates in labels.items()},
    )


def _label_trial(
    answers: Answers,
    sides: Sequence[NDArray[np.bool_]],
    calibrated: Sequence[AttributeCalibration],
    *,
    target: float,
    situation: str,
    attribute: str,
) -> LabelTrial:
    size = int(answers.predicted.max()) + 1
    certified, broken = np.zeros(size), np.zeros(size)
    attribute_broken, coverages = 0, []
    for side, each in zip(sides, calibrated, strict=True):
        minimum = each.minimum_confidence(target, [str(label) for label in range(size)])
        predicted, correct = answers.predicted[~side], answers.correct[~side]
        accepted = answers.confidence[~side] >= minimum[predicted]
        own = [label for label in range(size) if each.labels.get(str(label), {}).get(target) is not None]
        right_of, accepted_of = (
            np.bincount(predicted[rows], minlength=size) for rows in (accepted & correct, accepted)
        )
        certified[own] += 1
        broken[own] += right_of[own] / np.maximum(accepted_of[own], 1) < np.where(accepted_of[own], target, 0.0)
        attribute_broken += bool(accepted.any()) and correct[accepted].mean() < target
        coverages.append(accepted.mean())
    shares = broken / len(sides)
    ever = certified > 0
    return LabelTrial(
        situation=situation,
        attribute=attribute,
        target=target,
        labels=int(ever.sum()),
        kept=int((shares[ever] <= DELTA).sum()),
        worst_broken=float(shares.max(initial=0.0)),
        broken=float(broken.sum() / certified.sum()) if ever.any() else 0.0,
        attribute_broken=float(attribute_broken / len(sides)),
        coverage=float(np.mean(coverages)),
    )


def _calibration_side(group: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of the rows that calibrate: each group's with probability one half."""
    return np.asarray((generator.random(group.max() + 1) < 0.5)[group])


def _outcome(
    answers: Answers, sides: Sequence[NDArray[np.bool_]], thresholds: Sequence[float | None], target: float
) -> Outcome:
    oracle = oracle_point(answers.confidence, answers.correct, target)
    best = 0.0 if oracle is None else oracle.coverage
    broken, coverages = 0, []
    for side, threshold in zip(sides, thresholds, strict=True):
        if threshold is None:
            coverages.append(0.0)
            continue
        point = operating_point(answers.confidence[~side], answers.correct[~side], threshold)
        broken += point.precision is not None and point.precision < target
        coverages.append(point.coverage)
    return Outcome(
        certified=sum(threshold is not None for threshold in thresholds) / len(thresholds),
        broken=broken / len(thresholds),
        coverage=float(np.mean(coverages)),
        lost=best - float(np.mean(coverages)),
    )


def table(results: Sequence[Trial], splits: int) -> Table:
    """Return the trials as a table for the terminal, in %."""
    shown = Table(title=f"{splits} random halves: splits that break the promise (at most {100 * DELTA:g} %)")
    for heading in ("situation", "attribute", "target"):
        shown.add_column(heading)
    for heading in ("certified", "broken", "coverage", "lost", "naive: broken", "naive: lost"):
        shown.add_column(heading, justify="right")
    for trial in results:
        certified, naive = trial.certified, trial.naive
        figures = (
            certified.certified,
            certified.broken,
            certified.coverage,
            certified.lost,
            naive.broken,
            naive.lost,
        )
        cells = [f"{100 * figure:.1f}" for figure in figures]
        if certified.broken > DELTA:
            cells[1] = f"[red]{cells[1]}[/red]"
        shown.add_row(trial.situation, trial.attribute, f"{100 * trial.target:g}", *cells)
    return shown


def summary(results: Sequence[Trial]) -> str:
    """Return the verdict in a few lines: the promise, its price, and what other thresholds do."""
    lines = []
    for target in sorted({trial.target for trial in results}):
        chosen = [trial for trial in results if trial.target == target]
        kept = sum(trial.certified.broken <= DELTA for trial in chosen)
        naive = sum(trial.naive.broken <= DELTA for trial in chosen)
        unadjusted = sum(trial.unadjusted.broken <= DELTA for trial in chosen)
        lost = 100 * np.mean([trial.certified.lost for trial in chosen])
        least = 100 * np.mean([trial.unadjusted.lost for trial in chosen])
        worst = 100 * max(trial.certified.broken for trial in chosen)
        lines.append(
            f"at {100 * target:g} %: promise kept in {kept} of {len(chosen)} cases (worst: {worst:.1f} % of "
            f"splits break it), by naive thresholds in {naive}; mean coverage lost {lost:.1f} points, of "
            f"which {least:.1f} are due to the size of the sample alone: the cost of the smallest threshold whose own "
            f"test passes, not corrected for multiple testing (promise kept in {unadjusted})"
        )
    return "\n".join(lines)


def label_table(results: Sequence[LabelTrial], splits: int) -> Table:
    """Return the trials of labels as a table for the terminal, shares in %."""
    shown = Table(title=f"{splits} random halves: each label with its own threshold")
    for heading in ("situation", "attribute", "target"):
        shown.add_column(heading)
    for heading in ("labels", "promise kept", "broken, mean", "broken, worst", "attribute broken", "coverage"):
        shown.add_column(heading, justify="right")
    for trial in results:
        shares = (trial.broken, trial.worst_broken, trial.attribute_broken, trial.coverage)
        cells = [f"{trial.labels}", f"{trial.kept}", *(f"{100 * share:.1f}" for share in shares)]
        shown.add_row(trial.situation, trial.attribute, f"{100 * trial.target:g}", *cells)
    return shown


def label_summary(results: Sequence[LabelTrial]) -> str:
    """Return the verdict on labels in a line per target."""
    lines = []
    for target in sorted({trial.target for trial in results}):
        chosen = [trial for trial in results if trial.target == target]
        kept, labels = sum(trial.kept for trial in chosen), sum(trial.labels for trial in chosen)
        broken = sum(trial.attribute_broken <= DELTA for trial in chosen)
        lines.append(
            f"at {100 * target:g} %, label by label: promise kept for {kept} of {labels} labels; "
            f"for the attribute as a whole in {broken} of {len(chosen)} cases"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print it; exit status 2 on a file that holds no scores."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("scores", type=Path, help=".npz file of held-out scores")
    parser.add_argument("--splits", type=int, default=500, help="random splits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-label", action="store_true", help="also each label with its own threshold")
    parser.add_argument("--json", type=Path, help="also write the trials here")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        scores = {
            situation: {attribute: answers.where_passed for attribute, answers in attributes.items()}
            for situation, attributes in load_scores(options.scores).items()
        }
    except ModelError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    chance = {"splits": options.splits, "seed": options.seed}
    total = len(TARGET_PRECISIONS) * sum(map(len, scores.values()))
    results = _shown(trials(scores, **chance), "splitting", total)
    console.print(table(results, options.splits))
    console.print(summary(results), highlight=False)
    jointly = _shown(joint_trials(scores, **chance), "splitting, together", len(TARGET_PRECISIONS) * len(scores))
    console.print(joint_summary(jointly), highlight=False)
    by_label: list[LabelTrial] = []
    if options.per_label:
        by_label = _shown(label_trials(scores, **chance), "splitting, by label", total)
        console.print(label_table(by_label, options.splits))
        console.print(label_summary(by_label), highlight=False)
    if options.json:
        document = {
            **chance,
            "trials": [asdict(trial) for trial in results],
            "joint_trials": [asdict(trial) for trial in jointly],
            "label_trials": [asdict(trial) for trial in by_label],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _shown(items: Iterable[Item], description: str, total: int) -> list[Item]:
    """Collect `items` behind a progress bar on standard error."""
    with progress_bar(Console(stderr=True)) as progress:
        return list(progress.track(items, total=total, description=description))


if __name__ == "__main__":
    sys.exit(main())
