"""What is trained, by name, as `protocol.toml` fixes it: tuning, the primary comparison, ablations, the rest.

All runs of a catalogue start from the same locked image tower and a new text tower, for the same number of steps, and
differ in what combines both. CMA-CLIP and the fine-tuned CLIP try the same settings on the validation part; each is
compared at its own best, and what is derived from one of them takes its settings.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.config import update
from model.situations import Situation
from model.training.config import TrainConfig, small_training
from research.study.cells import read_cells
from research.study.conditions import clean
from research.study.networks import BuildNetwork, with_random_text
from research.study.runs import FULL_SIZE, Plan, Run
from research.untold_titles.networks import Contender, Patches, builder, with_known_tokens
from research.untold_titles.words import Scope, Strength

PROTOCOL: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("protocol.toml").read_text(encoding="utf-8"))

STRENGTHS: Mapping[str, Strength] = {
    name: Strength(scope=Scope(each["scope"]), bound=each["bound"], shares=each["shares"])
    for name, each in PROTOCOL["strengths"].items()
}
MIDDLE: str = PROTOCOL["primary"]["strength"]
SEEDS: int = PROTOCOL["primary"]["seeds"]
ABLATION_SEEDS: int = PROTOCOL["ablations"]["seeds"]
MEASURE: str = PROTOCOL["tuning"]["measure"]


@dataclass(frozen=True, kw_only=True)
class StagedRun(Run):
    """One network to train, on patches of one of the image tower's stages.

    settings: of `TrainConfig`, nested as its fields are; the protocol's own hold where they say nothing. tokens: those
    that the training titles have; none: the whole vocabulary.
    """

    contender: Contender = Contender.CMA_CLIP
    patches: Patches = Patches.LAST
    settings: tuple[Mapping[str, Any], ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def build(self) -> BuildNetwork:
        """What makes the network."""
        build = with_random_text(builder(self.contender, self.patches))
        return with_known_tokens(build, self.tokens) if self.tokens else build

    @property
    def weighs(self) -> bool:
        """Whether the network has a learned modality attention."""
        return self.contender is Contender.CMA_CLIP and self.fusion.get("modality_attention") != "false"

    @property
    def recorded(self) -> dict[str, Any]:
        """What a result says of the run's settings."""
        return {
            "contender": str(self.contender),
            "patches": str(self.patches),
            "fusion": dict(self.fusion),
            "settings": list(self.settings),
        }

    def config(self, epochs: int) -> TrainConfig:
        """Return the training configuration."""
        config = small_training(FULL_SIZE)
        budget = {"optimiser": {"epochs": epochs, "seed": self.seed}}
        for settings in (PROTOCOL["training"]["settings"], *self.settings, budget):
            config = update(config, settings)
        return config


# --- contenders --------------------------------------------------------------------------------------------

TITLES = {
    Contender.CMA_CLIP: "CMA-CLIP",
    Contender.CONCATENATED: "fine-tuned CLIP",
    Contender.EMBRACED: "EmbraceNet-like",
    Contender.MULTIPLIED: "fine-tuned CLIP with the product of both vectors",
}
PATCHES = {Patches.LAST: "patches of the last stage", Patches.BEFORE: "patches of the last stage but one"}
COMPARED = (Contender.CMA_CLIP, Contender.CONCATENATED)
"""The two that are tuned, and of which each is compared at its best."""


def main_run(contender: Contender, patches: Patches) -> StagedRun:
    """Return a contender's run, without settings that tuning chooses."""
    return StagedRun(
        name=f"{contender}-{patches}",
        title=f"{TITLES[contender]}, {PATCHES[patches]}",
        network="cma-clip" if contender is Contender.CMA_CLIP else "pooled",
        text="random",
        contender=contender,
        patches=patches,
    )


MAIN = {contender: {patches: main_run(contender, patches) for patches in Patches} for contender in Contender}


def _ablation(name: str, title: str, **fusion: str) -> Iterator[StagedRun]:
    for patches, run in MAIN[Contender.CMA_CLIP].items():
        yield replace(run, name=f"{name}-{patches}", title=f"CMA-CLIP {title}, {PATCHES[patches]}", fusion=fusion)


ABLATIONS: tuple[StagedRun, ...] = (
    *_ablation("no-modality-attention", "without modality-wise attention", modality_attention="false"),
    *_ablation("no-sequence-attention", "without sequence-wise attention", depth="0"),
    *_ablation("no-attention", "without both attentions", depth="0", modality_attention="false"),
)

SINGLE: tuple[StagedRun, ...] = tuple(
    replace(
        MAIN[Contender.CONCATENATED][Patches.BEFORE],
        name=f"{situation}-alone",
        title=f"{'image' if situation is Situation.IMAGE else 'text'} tower alone",
        situations=(Situation.IMAGE_AND_TITLE, situation),
    )
    for situation in (Situation.IMAGE, Situation.TITLE)
)
"""The two single modalities, of which late fusion is made."""

EXPLORATORY: tuple[StagedRun, ...] = (
    *SINGLE,
    *(MAIN[contender][patches] for contender in (Contender.EMBRACED, Contender.MULTIPLIED) for patches in Patches),
    *(
        replace(MAIN[Contender.CMA_CLIP][Patches.BEFORE], name=name, title=f"CMA-CLIP, {title}", fusion=fusion)
        for name, title, fusion in (
            ("two-blocks", "two fusion blocks", {"depth": "2"}),
            ("eight-heads", "eight heads", {"heads": "8"}),
        )
    ),
)


# --- tuning ------------------------------------------------------------------------------------------------


def recipes() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the settings that are tried, by name."""
    tuning = PROTOCOL["tuning"]
    for (name, settings), rate in itertools.product(tuning["recipes"].items(), tuning["learning_rates"]):
        optimiser = {"optimiser": {"learning_rate": rate}}
        yield f"{name}-{rate:g}", {**settings, **optimiser}


RECIPES: Mapping[str, Mapping[str, Any]] = dict(recipes())


def trials() -> tuple[StagedRun, ...]:
    """Return what is tried on the validation part: each of `COMPARED` with each recipe, on the last stage's patches."""
    return tuple(
        replace(run, name=f"{contender}-{recipe}", settings=(settings,))
        for contender in COMPARED
        for run in (MAIN[contender][Patches.LAST],)
        for recipe, settings in RECIPES.items()
    )


def chosen_recipe(folder: Path, contender: Contender) -> str | None:
    """Return the name of the recipe that is best for a contender on validation; None until all have been tried.

    folder: that of the trials' figures.
    """
    paths = {recipe: folder / f"{contender}-{recipe}.json" for recipe in RECIPES}
    if not all(path.is_file() for path in paths.values()):
        return None
    return max(paths, key=lambda recipe: validated(paths[recipe]))


def validated(path: Path, measure: str = MEASURE) -> float:
    """Return what a trial reached: the mean of a measure over the attributes, by which recipes are chosen."""
    cell = read_cells(path)["conditions"][clean(Situation.IMAGE_AND_TITLE)]["attributes"]["mean"]
    return float(cell[measure][0])


# --- the made-up attribute -------------------------------------------------------------------------------------

MATCHING: Mapping[str, Any] = PROTOCOL["matching"]


def matching_runs() -> Mapping[str, tuple[StagedRun, ...]]:
    """Return what tries to learn the made-up attribute, by contender: each at every learning rate."""
    tried = (
        *(MAIN[contender][Patches.LAST] for contender in Contender),
        *(run for run in ABLATIONS if run.patches is Patches.LAST),
    )
    return {
        run.name.removesuffix(f"-{Patches.LAST}"): tuple(_at_rate(run, rate) for rate in MATCHING["learning_rates"])
        for run in tried
    }


def _at_rate(run: StagedRun, rate: float) -> StagedRun:
    optimiser = {"optimiser": {"learning_rate": rate}}
    return replace(run, name=f"{run.name}-{rate:g}", settings=(MATCHING["settings"], optimiser))


# --- plans -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The recipe that tuning chose for each of `COMPARED`, by name."""

    recipes: Mapping[Contender, str]

    @classmethod
    def on_validation(cls, folder: Path) -> Chosen | None:
        """Read what was chosen from the trials' figures in `folder`; None until all have been tried."""
        recipes = {contender: chosen_recipe(folder, contender) for contender in COMPARED}
        found = {contender: recipe for contender, recipe in recipes.items() if recipe is not None}
        return cls(recipes=found) if len(found) == len(COMPARED) else None

    def tuned(self, run: StagedRun) -> StagedRun:
        """Return a run with the recipe of its contender; what is neither of `COMPARED` takes the fine-tuned CLIP's."""
        like = run.contender if run.contender in COMPARED else Contender.CONCATENATED
        return replace(run, settings=(RECIPES[self.recipes[like]], *_alone(run)))

    @property
    def primary(self) -> tuple[StagedRun, ...]:
        """The runs of the primary comparison, at seed 0; they are measured under noise too."""
        runs = (self.tuned(MAIN[contender][patches]) for patches in Patches for contender in COMPARED)
        return tuple(replace(run, corrupted=True) for run in runs)

    def plan(self) -> Plan:
        """Return all runs of the middle strength."""
        ablations = tuple(map(self.tuned, ABLATIONS))
        repeats = {run.name: _repeated(run, SEEDS) for run in self.primary}
        repeats |= {run.name: _repeated(run, ABLATION_SEEDS) for run in ablations}
        return Plan(
            runs=(*self.primary, *ablations, *map(self.tuned, EXPLORATORY)), repeats=repeats, references=REFERENCES
        )

    def once(self) -> Plan:
        """Return the runs of another strength or another detail: one seed, exploratory."""
        return Plan(runs=(*self.primary, *map(self.tuned, SINGLE)), repeats={}, references=REFERENCES)


REFERENCES = {"tf-idf": "bag of words, title", "late-fusion": "late fusion"}


def by_seed(plan: Plan, names: Sequence[str]) -> list[Run]:
    """Return the named runs and their repeats, all of one seed before those of the next: differences come early."""
    runs = {run.name: (run, *plan.repeats.get(run.name, ())) for run in plan.runs}
    rows = itertools.zip_longest(*(runs[name] for name in names))
    return [run for row in rows for run in row if run is not None]


def _repeated(run: StagedRun, seeds: int) -> tuple[Run, ...]:
    return tuple(replace(run.repeated(seed), corrupted=False) for seed in range(1, seeds))


def _alone(run: StagedRun) -> tuple[Mapping[str, Any], ...]:
    """Return the settings of a single modality's loss, where a run has one modality."""
    if Situation.TITLE not in run.situations:
        return ({"modality_dropout": 0.0, "weights": {"image_and_title": 0.0, "image": 1.0, "title": 0.0}},)
    if Situation.IMAGE not in run.situations:
        return ({"modality_dropout": 0.0, "weights": {"image_and_title": 0.0, "image": 0.0, "title": 1.0}},)
    return ()
