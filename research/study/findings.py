"""The findings: sentences that are computed from the figures, unfavourable ones included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model.situations import Situation
from research.certificates import DELTA
from research.study.conditions import UNCORRUPTED, clean
from research.study.corruptions import (
    CORRUPTIONS,
    IMAGES,
    LABEL_WORDS_REMOVED,
    MISMATCHED_TITLE,
    NO_TITLE,
    TITLES,
)
from research.study.results import Estimate, Results, both
from research.study.runs import (
    ABLATIONS,
    CLIP_FINETUNED,
    CLIP_SAME_RECIPE,
    CMA_CLIP,
    CMA_CLIP_PLAIN,
    IMAGE_ALONE,
    TITLE_ALONE,
)

BOTH = clean(Situation.IMAGE_AND_TITLE)
WITHOUT_LABEL_WORDS, WITH_MISMATCHED_TITLE = both(LABEL_WORDS_REMOVED, 1.0), both(MISMATCHED_TITLE, 1.0)
SMALLEST_MOVE = 0.01
COVERAGE_TARGET, COVERAGE_AIM = 0.95, 0.03
LABEL_WORDS_AIM, MISMATCHED_TITLE_AIM = 5.0, 0.4
MEASURE_NAMES = {
    "accuracy": "mean accuracy",
    "macro_f1": "mean macro F1",
    "recall_at_90": "mean recall at 90 % precision",
    "recall_at_95": "mean recall at 95 % precision",
}


def points(difference: Estimate, *, digits: int = 1) -> str:
    """Write a difference in percentage points, with its interval."""
    value, low, high = (f"{100 * each:+.{digits}f}" for each in (difference.value, difference.low, difference.high))
    return f"{value} points [{low}, {high}]"


def verdict(difference: Estimate) -> str:
    """Say which of two is ahead, or that neither is."""
    if not difference.significant:
        return "no significant difference"
    return "ahead" if difference.value > 0 else "**behind**"


def compared(results: Results, run: str, other: str, key: str, measure: str) -> str | None:
    """Return a sentence on `run` against `other`, or None where one of them is missing."""
    difference = results.difference(run, other, key, measure)
    if difference is None:
        return None
    what, pair = MEASURE_NAMES[measure], f"{results.title(run)} against {results.title(other)}"
    return f"{what}: {pair}{over_seeds(results, run, other)}, {points(difference)}: {verdict(difference)}"


def over_seeds(results: Results, run: str, other: str) -> str:
    """Say over how many seeds two runs are compared, if more than one."""
    seeds = results.seeds(run, other)
    return f" (means of {seeds} seeds)" if seeds > 1 else ""


def sentences(results: Results) -> dict[str, list[str]]:
    """Return the findings by subject, without subjects that have no figures."""
    subjects = {
        "Clean listings": list(_clean(results)),
        "Corrupted listings": list(_corrupted(results)),
        "What helps": list(_ablations(results)),
        "Modality weights": list(_weights(results)),
        "Aims": [*_aims(results), *_certificate_aims(results)],
    }
    return {subject: lines for subject, lines in subjects.items() if lines}


def _clean(results: Results) -> Iterator[str]:
    others = (CLIP_FINETUNED, CLIP_SAME_RECIPE, CMA_CLIP_PLAIN, IMAGE_ALONE, TITLE_ALONE)
    for other in (*(run.name for run in others), "late-fusion", "tf-idf"):
        for measure in ("accuracy", "recall_at_95"):
            if sentence := compared(results, CMA_CLIP.name, other, BOTH, measure):
                yield sentence
    if sentence := compared(results, CMA_CLIP_PLAIN.name, CLIP_FINETUNED.name, BOTH, "recall_at_95"):
        yield f"the effect of the two attentions alone, both trained plainly: {sentence}"


def _corrupted(results: Results) -> Iterator[str]:
    for other in (CLIP_FINETUNED.name, CLIP_SAME_RECIPE.name, "late-fusion"):
        ahead: dict[str, list[str]] = {"ahead": [], "behind": [], "even": []}
        for corruption in CORRUPTIONS:
            difference = results.difference(
                CMA_CLIP.name, other, both(corruption.name, corruption.strengths[-1]), "accuracy"
            )
            if difference is not None:
                side = "even" if not difference.significant else "ahead" if difference.value > 0 else "behind"
                ahead[side].append(f"{corruption.name} ({100 * difference.value:+.1f})")
        total = sum(map(len, ahead.values()))
        if total:
            parts = [
                f"{'**behind**' if side == 'behind' else side} under {', '.join(names)}"
                for side, names in ahead.items()
                if names
            ]
            yield (
                f"mean accuracy under the {total} corruptions at their strongest: {results.title(CMA_CLIP.name)} "
                f"against {results.title(other)}{over_seeds(results, CMA_CLIP.name, other)}, in points, "
                f"{'; '.join(parts)}"
            )


def _ablations(results: Results) -> Iterator[str]:
    for run in ABLATIONS:
        accuracy = results.difference(run.name, CMA_CLIP.name, BOTH, "accuracy")
        recall = results.difference(run.name, CMA_CLIP.name, BOTH, "recall_at_95")
        if accuracy is None or recall is None:
            continue
        conclusion = (
            "no significant difference"
            if not (accuracy.significant or recall.significant)
            else "; ".join(
                f"{name} {'**better**' if each.value > 0 else 'worse'}"
                for name, each in (("accuracy", accuracy), ("recall", recall))
                if each.significant
            )
        )
        yield f"{run.title}: accuracy {points(accuracy)}, recall at 95 % precision {points(recall)}: {conclusion}"


def _weights(results: Results) -> Iterator[str]:
    for side, direction in (("title", 1), ("image", -1)):
        moves = weight_moves(results, side)
        if moves:
            away = [name for name, move in moves.items() if direction * move >= SMALLEST_MOVE]
            values = ", ".join(f"{name} {100 * move:+.1f}" for name, move in moves.items())
            yield (
                f"the weights move away from the corrupted {side} by {100 * SMALLEST_MOVE:g} point or more in "
                f"{len(away)} of {len(moves)} corruptions at their strongest (image weight, mean over attributes, in "
                f"points: {values})"
            )
    cost = weights_against_costs(results)
    if cost is not None:
        yield (
            f"over {len(results.attributes)} attributes, the image weight and what removing the image costs "
            f"correlate at r = {cost['image']:.2f}, the title weight and what removing the title costs at "
            f"r = {cost['title']:.2f}: the weights {'explain' if min(cost.values()) > 0.5 else '**do not explain**'} "
            "how much a modality contributes to an attribute"
        )
    follows = [name for name, (image, title) in needed_weights(results).items() if image > title]
    if needed_weights(results):
        yield (
            "listing by listing, the image weight is higher where only the image is right than where only the "
            f"title is, in {len(follows)} of {len(needed_weights(results))} attributes"
        )


def weight_moves(results: Results, side: str) -> dict[str, float]:
    """Return by how much the mean image weight changes under each corruption of the title or image, at its strongest.

    An absent title is left out: its weight is 0 by construction.
    """
    corruptions = TITLES if side == "title" else IMAGES
    moves = {}
    for corruption in corruptions:
        weights = [
            mean_image_weight(results, key)
            for key in (both(UNCORRUPTED, 0.0), both(corruption.name, corruption.strengths[-1]))
        ]
        if weights[0] is not None and weights[1] is not None and corruption.name != NO_TITLE:
            moves[corruption.name] = weights[1] - weights[0]
    return moves


def mean_image_weight(results: Results, key: str) -> float | None:
    """Return CMA-CLIP's image weight under a condition, the mean over attributes."""
    weights = [(results.cell(CMA_CLIP.name, key, each) or {}).get("image_weight") for each in results.attributes]
    known = [weight for weight in weights if weight is not None]
    return float(np.mean(known)) if known else None


def costs(results: Results, attribute: str) -> tuple[float, float, float] | None:
    """Return CMA-CLIP's image weight for an attribute, and the accuracy lost without image and without title."""
    cell = results.cell(CMA_CLIP.name, BOTH, attribute)
    accuracies = [results.value(CMA_CLIP.name, clean(situation), "accuracy", attribute) for situation in Situation]
    if cell is None or "image_weight" not in cell or None in accuracies:
        return None
    given, image, title = (float(each) for each in accuracies if each is not None)
    return float(cell["image_weight"]), given - title, given - image


def weights_against_costs(results: Results) -> dict[str, float] | None:
    """Return Pearson's r, over attributes, between a modality's weight and the cost of removing it."""
    rows = [row for attribute in results.attributes if (row := costs(results, attribute)) is not None]
    if len(rows) < 3:
        return None
    weight, without_image, without_title = np.array(rows).T
    if 0 in (weight.std(), without_image.std(), without_title.std()):
        return None
    return {
        "image": float(np.corrcoef(weight, without_image)[0, 1]),
        "title": float(np.corrcoef(1 - weight, without_title)[0, 1]),
    }


def needed_weights(results: Results) -> dict[str, tuple[float, float]]:
    """Return, by attribute, the image weight where the image alone is right, and where the title alone is."""
    needed = {}
    for attribute, cells in results.runs.get(CMA_CLIP.name, {}).get("weights", {}).items():
        image, title = (cells[f"{alone}_alone_right"]["image_weight"] for alone in (Situation.IMAGE, Situation.TITLE))
        if image is not None and title is not None:
            needed[attribute] = (image, title)
    return needed


def _aims(results: Results) -> Iterator[str]:
    recall = results.difference(CMA_CLIP.name, CLIP_FINETUNED.name, WITHOUT_LABEL_WORDS, "recall_at_95")
    if recall is not None:
        yield (
            f"{_met(100 * recall.value >= LABEL_WORDS_AIM)}: with label words removed, mean recall at 95 % precision "
            f"at least {LABEL_WORDS_AIM:g} points above the fine-tuned CLIP: {points(recall)}"
        )
    differences = {
        attribute: difference
        for attribute in results.attributes
        if (difference := results.difference(CMA_CLIP.name, CLIP_FINETUNED.name, BOTH, "accuracy", attribute))
    }
    if differences:
        below = [f"{name} {points(each, digits=2)}" for name, each in differences.items() if each.value < 0]
        yield (
            f"{_met(not below)}: at least as accurate as the fine-tuned CLIP on clean listings for every attribute"
            + (f"; below for {', '.join(below)}" if below else "")
        )
    seeds = results.seeds(CMA_CLIP.name, CLIP_FINETUNED.name)
    lost = [_lost(results, run.name, seeds) for run in (CMA_CLIP, CLIP_FINETUNED)]
    if lost[0] is not None and lost[1] is not None and lost[1] > 0:
        share = lost[0] / lost[1]
        yield (
            f"{_met(share <= MISMATCHED_TITLE_AIM)}: with a mismatched title, at most "
            f"{100 * MISMATCHED_TITLE_AIM:.0f} % of the fine-tuned CLIP's loss of accuracy: "
            f"{100 * lost[0]:.1f} of {100 * lost[1]:.1f} points, {100 * share:.0f} %"
        )


def _certificate_aims(results: Results) -> Iterator[str]:
    trials = results.certificates["trials"] if results.certificates else []
    if not trials:
        return
    kept = sum(trial["certified"]["broken"] <= DELTA for trial in trials)
    naive = sum(trial["naive"]["broken"] <= DELTA for trial in trials)
    yield (
        f"{_met(kept == len(trials))}: certified thresholds keep their promise in {kept} of {len(trials)} cases "
        f"(attribute, target, situation); naive ones in {naive}"
    )
    lost, least = (
        float(np.mean([trial[way]["lost"] for trial in trials if trial["target"] == COVERAGE_TARGET]))
        for way in ("certified", "unadjusted")
    )
    yield (
        f"{_met(lost <= COVERAGE_AIM)}: at {100 * COVERAGE_TARGET:g} %, a certificate costs at most "
        f"{100 * COVERAGE_AIM:g} points of coverage against the oracle threshold: {100 * lost:.1f} points, mean over "
        "attributes and situations"
        + (
            f"; {100 * least:.1f} even for a threshold that is tested alone, without a choice among several: with this "
            "number of calibration listings, no certificate of these confidences can meet the aim"
            if least > COVERAGE_AIM
            else ""
        )
    )


def _lost(results: Results, run: str, seeds: int) -> float | None:
    values = [
        results.mean(run, key, "accuracy", seeds=seeds) for key in (both(UNCORRUPTED, 0.0), WITH_MISMATCHED_TITLE)
    ]
    return None if values[0] is None or values[1] is None else values[0] - values[1]


def _met(met: bool) -> str:
    return "met" if met else "**missed**"
