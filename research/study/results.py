"""The figures of finished runs, from their JSON files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.situations import Situation
from research.study.cells import Cells, read_cells
from research.study.conditions import UNCORRUPTED, Condition
from research.study.runs import PLAN, Plan

DETERMINISTIC = ("majority", "tf-idf")
"""Trained without randomness, so that another seed changes nothing."""
SHIPPED, CERTIFICATES, TRIALS = "shipped.json", "certificates.json", "trials"


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of two, with its interval at 95 %."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether a difference is significant: its interval excludes 0."""
        return self.low > 0 or self.high < 0


class Results:
    """All results of a folder that `plan` names; what is missing there has not been run.

    Raises `ConfigError` where results have different budgets: they cannot be compared.
    """

    def __init__(self, folder: Path, plan: Plan = PLAN) -> None:
        self.folder, self.plan = folder, plan
        self.runs = self._read(plan.names)
        self.repeats = self._read(plan.repeat_names)
        self.trials: dict[str, Cells] = {
            path.stem: read_cells(path) for path in sorted((folder / TRIALS).glob("*.json"))
        }
        self.shipped = self._other(SHIPPED)
        self.certificates = self._other(CERTIFICATES)
        for name, cells in self.trained.items():
            if cells["budget"] != self.budget:
                first = next(iter(self.runs))
                raise ConfigError(f"{folder}: {name} and {first} have different budgets and cannot be compared")

    def _read(self, names: Sequence[str]) -> dict[str, Cells]:
        paths = {name: self.folder / f"{name}.json" for name in names}
        return {name: read_cells(path) for name, path in paths.items() if path.is_file()}

    def _other(self, name: str) -> Cells | None:
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def trained(self) -> dict[str, Cells]:
        """The runs, and their repeats with other seeds."""
        return self.runs | self.repeats

    @property
    def budget(self) -> Cells:
        """The budget that all share; empty where there are no results."""
        budget: Cells = next(iter(self.runs.values()))["budget"] if self.runs else {}
        return budget

    @property
    def missing(self) -> list[str]:
        """The names of what has not been run."""
        others = [name for name, cells in ((SHIPPED, self.shipped), (CERTIFICATES, self.certificates)) if cells is None]
        planned = (*self.plan.names, *self.plan.repeat_names)
        return [*(name for name in planned if name not in self.trained), *others]

    @cached_property
    def attributes(self) -> list[str]:
        """The attributes, in the catalogue's order."""
        for cells in self.runs.values():
            return [name for name in next(iter(cells["conditions"].values()))["attributes"] if name != "mean"]
        return []

    def title(self, run: str) -> str:
        """Return a run's title in the report."""
        if run in self.runs:
            return str(self.runs[run]["title"])
        return next((each.title for each in self.plan.runs if each.name == run), run)

    def cell(self, run: str, key: str, attribute: str = "mean") -> Cells | None:
        """Return a run's figures of one attribute, or of their mean, under a condition; None if it has none."""
        conditions = self.runs.get(run, {}).get("conditions", {})
        found: Cells | None = conditions.get(key, {}).get("attributes", {}).get(attribute)
        return found

    def estimate(self, run: str, key: str, measure: str, attribute: str = "mean") -> Estimate | None:
        """Return a figure that has an interval, or None."""
        values = (self.cell(run, key, attribute) or {}).get(measure)
        return Estimate(*values) if values and len(values) == 3 and None not in values else None

    def value(self, run: str, key: str, measure: str, attribute: str = "mean") -> float | None:
        """Return a figure without its interval."""
        values = (self.cell(run, key, attribute) or {}).get(measure)
        return values[0] if values else None

    def tried(self, recipe: str, key: str, measure: str) -> float | None:
        """Return a mean over the attributes of a recipe that was tried, under a condition."""
        condition = self.trials[recipe]["conditions"].get(key)
        value: float | None = condition["attributes"]["mean"][measure][0] if condition else None
        return value

    def on_curve(self, run: str, corruption: str, strength: float, measure: str) -> float | None:
        """Return a mean along a curve; a run without the corrupted modality keeps its uncorrupted value."""
        key = both(corruption, strength)
        return self.value(run, key if self.cell(run, key) else both(UNCORRUPTED, 0.0), measure)

    def difference(
        self, run: str, other: str, key: str, measure: str, attribute: str = "mean", *, level: float = 0.95
    ) -> Estimate | None:
        """Return `run` minus `other`: both were resampled alike, so listings that are hard for both cancel out.

        The difference of the means over the seeds that both were trained with; its interval, at `level`, covers other
        listings and other seeds. A network that was trained once is assumed to vary from seed to seed as much as those
        that were trained several times.
        """
        seeds, generator = self.seeds(run, other), np.random.default_rng(0)
        values = [self.mean(each, key, measure, attribute, seeds=seeds) for each in (run, other)]
        samples = [
            _resamples(self._conditions(each, key)[:seeds], measure, attribute, generator) for each in (run, other)
        ]
        if samples[0] is None or samples[1] is None or values[0] is None or values[1] is None:
            return None
        drawn = samples[0] - samples[1]
        if seeds == 1:
            trained = sum(each not in DETERMINISTIC for each in (run, other))
            deviation = math.sqrt(trained) * self.seed_deviation(key, measure, attribute)
            drawn = drawn + generator.normal(0.0, deviation, drawn.shape)
        low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
        return Estimate(values[0] - values[1], float(low), float(high))

    def seed_deviation(self, key: str, measure: str, attribute: str = "mean") -> float:
        """Return the standard deviation of a figure between seeds, in the runs with several; 0 if there are none."""
        figures = [self.by_seed(run, key, measure, attribute) for run in self.plan.repeats]
        variances = [np.var(each, ddof=1) for each in figures if len(each) > 1]
        return float(np.sqrt(np.mean(variances))) if variances else 0.0

    def seeds(self, run: str, other: str) -> int:
        """Return with how many seeds both were trained, seed 0 included."""
        repeats = self.plan.repeats
        return 1 + min(sum(each.name in self.repeats for each in repeats.get(name, ())) for name in (run, other))

    def mean(self, run: str, key: str, measure: str, attribute: str = "mean", *, seeds: int) -> float | None:
        """Return the mean of a figure over the first `seeds` seeds."""
        values = self.by_seed(run, key, measure, attribute)[:seeds]
        return float(np.mean(values)) if len(values) == seeds else None

    def by_seed(self, run: str, key: str, measure: str, attribute: str = "mean") -> list[float]:
        """Return a figure for each seed that the run was trained with, seed 0 first."""
        figures = [
            condition.get("attributes", {}).get(attribute, {}).get(measure) for condition in self._conditions(run, key)
        ]
        return [each[0] for each in figures if each and each[0] is not None]

    def _conditions(self, run: str, key: str) -> list[Cells]:
        """Return a condition's figures for each seed of a run."""
        names = (run, *(repeat.name for repeat in self.plan.repeats.get(run, ())))
        return [self.trained[name]["conditions"].get(key, {}) for name in names if name in self.trained]


def _resamples(
    conditions: Sequence[Cells], measure: str, attribute: str, generator: np.random.Generator
) -> NDArray[np.float64] | None:
    """Return `[R]` means over seeds, which are drawn with replacement for each resample of the listings.

    The variance of the mean of k seeds drawn in this way is (k - 1) / k of that of k new ones, which is corrected here.
    """
    kept = [condition.get("resamples", {}).get(measure, {}).get(attribute) for condition in conditions]
    if not kept or None in kept:
        return None
    values = np.array(kept) / 10_000  # [seeds, R]
    if (k := len(kept)) > 1:
        middle = values.mean(axis=0)
        values = middle + (values - middle) * math.sqrt(k / (k - 1))
    drawn = generator.integers(k, size=values.shape)
    means: NDArray[np.float64] = np.take_along_axis(values, drawn, axis=0).mean(axis=0)
    return means


def both(corruption: str, strength: float) -> str:
    """Return the key of a condition with image and title."""
    return Condition(situation=Situation.IMAGE_AND_TITLE, corruption=corruption, strength=strength).key
