"""Live precision: what reviewers of the random share found, with bounds that hold at every moment and together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.situations import Situation
from model.trust.confidence_sequences import Judgements, bound_error
from service.reviews.pairs import Count, Promise, Verdict

Outcome = tuple[int, int, bool]
"""Of a listing: how many labels were accepted, how many of them were found right, and whether it was skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePrecision:
    """A promise, and what people found of it since the sequence started; labels are counted, not listings."""

    promise: Promise
    right: int
    wrong: int
    skipped: int
    precision: float | None
    """The share of right labels among those that were judged; None where none was."""
    lower_bound: float
    """A skipped judgement counts as wrong here."""
    upper_bound: float
    """A skipped judgement counts as right here."""

    @property
    def broken(self) -> bool:
        """Whether the precision is under the target: wrong about any promise of the store, ever, in 5 % of stores."""
        return self.upper_bound < self.promise.target


def promises(attributes: Sequence[str], targets: Sequence[float]) -> list[Promise]:
    """Return all that is promised: each attribute in each situation at each target precision."""
    return [Promise(name, situation, at) for name in attributes for situation in Situation for at in targets]


def live_precision(
    made: Sequence[Promise], counts: Iterable[Count], start: int, most: Mapping[str, int]
) -> list[LivePrecision]:
    """Return what was found of each promise.

    start: which start of the sequences it is, counted from 1
    most: how many labels of each attribute a listing can have accepted
    A label that was accepted at a target is accepted at every lower one, so it counts for these promises as well.
    """
    if not made:
        return []
    judged = _judgements(made, list(counts), most)
    error = bound_error(len(made), start)
    found = (judged.labels_right, judged.labels_wrong, judged.labels_skipped)
    bounds = (judged.precision, judged.lower(error), judged.upper(error))
    columns = [each.tolist() for each in (*found, *bounds)]
    return [
        LivePrecision(
            promise=promise,
            right=right,
            wrong=wrong,
            skipped=skipped,
            precision=precision if right + wrong else None,
            lower_bound=lower,
            upper_bound=upper,
        )
        for promise, right, wrong, skipped, precision, lower, upper in zip(made, *columns, strict=True)
    ]


def _judgements(made: Sequence[Promise], counts: Sequence[Count], most: Mapping[str, int]) -> Judgements:
    """Return the listings that each promise was judged by, by what they came to."""
    found: Counter[tuple[Promise, Outcome]] = Counter()
    targets = sorted({promise.target for promise in made})
    for each in counts:
        for target in targets:
            if verdicts := [verdict for accepted_at, verdict in each.found if target <= accepted_at]:
                outcome = len(verdicts), verdicts.count(Verdict.RIGHT), Verdict.SKIPPED in verdicts
                found[Promise(each.attribute, each.situation, target), outcome] += each.count
    outcomes = sorted({outcome for _, outcome in found})
    labels, right, skipped = zip(*outcomes, strict=True) if outcomes else ((), (), ())
    return Judgements(
        listings=np.array([[found[promise, outcome] for outcome in outcomes] for promise in made], np.int64),
        labels=np.array(labels, np.int64),
        right=np.array(right, np.int64),
        skipped=np.array(skipped, np.bool_),
        most=np.array([most[promise.attribute] for promise in made], np.int64),
    )


def broken_promises(found: Iterable[LivePrecision], targets: Sequence[float]) -> frozenset[Promise]:
    """Return the promises that are broken, and those of the same attribute and situation at higher targets.

    What is accepted at a target is accepted at every lower one, so where a lower one is given up, no higher one stays.
    """
    broken = [each.promise for each in found if each.broken]
    return frozenset(
        Promise(promise.attribute, promise.situation, target)
        for promise in broken
        for target in targets
        if target >= promise.target
    )
