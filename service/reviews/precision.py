"""Live precision: what reviewers of the random share found, with bounds that hold at every moment and together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.situations import Situation
from model.trust.confidence_sequences import Judgements, bound_error
from service.reviews.pairs import Count, Promise, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePrecision:
    """A promise, and what people found of it since the sequence started."""

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


def live_precision(made: Sequence[Promise], counts: Iterable[Count], start: int) -> list[LivePrecision]:
    """Return what was found of each promise; start: which start of the sequences it is, counted from 1.

    A label that was accepted at a target is accepted at every lower one, so it counts for these promises as well.
    """
    if not made:
        return []
    found: Counter[tuple[Promise, Verdict]] = Counter()
    for each in counts:
        for promise in made:
            of_it = (promise.attribute, promise.situation) == (each.attribute, each.situation)
            if of_it and promise.target <= each.accepted_at:
                found[promise, each.verdict] += each.count
    by_verdict = [[found[promise, verdict] for promise in made] for verdict in Verdict]
    judged = Judgements.of(*by_verdict)
    error = bound_error(len(made), start)
    bounds = zip(judged.precision.tolist(), judged.lower(error).tolist(), judged.upper(error).tolist(), strict=True)
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
        for promise, right, wrong, skipped, (precision, lower, upper) in zip(made, *by_verdict, bounds, strict=True)
    ]


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
