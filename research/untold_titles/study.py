"""The study of `research.study` on staged images, and the lane: everything there is to run, each thing once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import load_checkpoint
from model.checkpoint.weights import load_weights, save_checkpoint
from model.device import pick_device
from model.errors import ConfigError
from model.inputs.tokenizer import TitleTokenizer
from model.network.cma_clip import CMAClip
from model.situations import Situation
from model.training.initialise import initial_model, initial_network
from model.training.trainer import finished_checkpoint
from research.study.answers import Answers, Inference
from research.study.cells import Cells, Detail, condition_cells
from research.study.conditions import clean
from research.study.corruptions import CORRUPTIONS
from research.study.runs import Plan, Run
from research.study.study import STRONGEST, Study
from research.untold_titles.catalogues import CATALOGUE, write_matching, write_untold
from research.untold_titles.diagnosis import WatchedFineTuning, aggregates, weights_worth
from research.untold_titles.encoded import StagedImages
from research.untold_titles.networks import staged
from research.untold_titles.plan import (
    COMPARED,
    MIDDLE,
    PROTOCOL,
    STRENGTHS,
    Chosen,
    StagedRun,
    by_seed,
    matching_runs,
    trials,
    validated,
)

NOISE = tuple(each for each in CORRUPTIONS if each.name in ("words dropped", "words added", "noise"))
"""The paper's corruptions: noise over the image, and words of the title lost or replaced."""

READINGS, DIAGNOSIS = "readings.json", "diagnosis"
"""A file and a folder beside the figures of runs: what each modality alone reads, and why a fusion helps or not."""

MATCHES_NAME, TRIALS = "matching", "trials"
"""The catalogue of the made-up attribute, and the folder of what was tried on the validation part."""

DETAILS = (20, 10)
"""Rows of pixels that images keep, of 80, in the catalogues with less detail."""


@dataclass(kw_only=True)
class StagedStudy(Study):
    """A study whose runs read patches of two stages of one locked image tower.

    encoded: the folder of images that the tower has encoded, shared by catalogues with the same images.
    """

    encoded: Path
    variants: int

    @cached_property
    def images(self) -> StagedImages:
        """The images of training and validation, encoded by the tower that all runs share."""
        model, towers = initial_model(None, str(self.initial)), load_checkpoint(self.initial).version
        backbone = initial_network(model, self.tasks, str(self.initial)).backbone
        both = staged(backbone, model.preprocess.image_size)
        return StagedImages(self.encoded / towers, both, self.device, self.console, variants=self.variants)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that the training titles have."""
        tokenize = TitleTokenizer(initial_model(None, str(self.initial)).preprocess)
        titles = {listing.title for listing in self.catalogue.part(Part.TRAIN) if listing.title}
        return tuple(sorted({int(token) for title in titles for token in tokenize(title).tokens}))

    def complete(self, run: Run) -> None:
        """Train a run, measure it and write its figures; steps that are done are not repeated."""
        super().complete(self.ready(run))

    def ready(self, run: Run) -> StagedRun:
        """Return a run with the tokens of this catalogue."""
        assert isinstance(run, StagedRun)
        return replace(run, tokens=self.tokens)

    def conditions(self, answers: Mapping[str, Answers], *, weighs: bool) -> Cells:
        """Return the figures of each condition: those of image and title can be compared between runs."""
        everything = np.arange(len(self.part.listings))
        cells: Cells = {}
        for key, each in answers.items():
            is_clean = key.split("/")[1] == "clean"
            detail: Detail = "comparable" if key in STRONGEST else "values"
            if key == clean(Situation.IMAGE_AND_TITLE):
                detail = "full"
            rows = everything if is_clean else self.subset
            cells[key] = condition_cells(self.part, rows, each, weighs=weighs, detail=detail)
        return cells

    def tuning(self, run: Run, *, interval: int) -> WatchedFineTuning:
        """Return the fine-tuning of a run, whose gradients are watched in intervals of so many steps."""
        run = self.ready(run)
        return WatchedFineTuning(
            run.build,
            self.images,
            interval=interval,
            catalogue=self.catalogue,
            name=run.name,
            model=run.model(initial_model(None, str(self.initial))),
            config=run.config(self.epochs),
            initial=str(self.initial),
            console=self.console,
        )

    def weights_worth(self, run: Run) -> dict[str, dict[str, float]]:
        """Return what the modality weights of a finished run of CMA-CLIP are worth on the measured part."""
        run = self.ready(run)
        model = run.model(initial_model(None, str(self.initial)))
        network = run.build(model, self.tasks, None)
        load_weights(network, load_checkpoint(finished_checkpoint(self.runs / run.name)))
        assert isinstance(network, CMAClip)
        inference = Inference(network, model.preprocess, self.device, cache=self.cache)
        image = inference.cached_images("clean", self.part, self.part.listings)
        text = inference.encode_titles([listing.title for listing in self.part.listings])
        return weights_worth(network, self.tasks, *aggregates(network, image, text), self.part.labels)


def write_towers(source: Path, folder: Path) -> Path:
    """Write the towers of the checkpoint `source` alone, without fusion and heads, unless that has been done."""
    if not folder.is_dir():
        config = initial_model(None, str(source))
        tasks = load_checkpoint(source).tasks
        backbone = initial_network(config, tasks, str(source)).backbone
        save_checkpoint(
            folder, nn.ModuleDict({"backbone": backbone}), name="towers", config=config, tasks=(), training={}
        )
    return folder


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that the lane does: `do` does it, unless the file `result` is there.

    run, plan: what is trained, unless the step is a reference that needs no training.
    """

    name: str
    result: Path
    do: Callable[[], None]
    run: Run | None = None
    plan: Plan | None = None

    @property
    def done(self) -> bool:
        """Whether it has been done."""
        return self.result.is_file()


@dataclass(kw_only=True)
class Lane:
    """Everything there is to run, in its order; interrupted at any time, it goes on where it was.

    table: the TOML file of the catalogue that titles are taken from. checkpoint: the one whose image tower all share.
    runs: the folder where catalogues, towers and runs are kept. results: the folder of figures.
    """

    table: Path
    checkpoint: Path
    runs: Path
    results: Path
    device: torch.device = field(default_factory=lambda: pick_device("auto"))
    console: Console = field(default_factory=lambda: Console(stderr=True))
    _studies: dict[str, StagedStudy] = field(default_factory=dict, init=False)

    @property
    def trials(self) -> Path:
        """The folder of the trials' figures."""
        return self.results / MIDDLE / TRIALS

    def run(self) -> None:
        """Do what is not done yet, until nothing is left."""
        while step := next((step for step in self.steps() if not step.done), None):
            self.console.print(f"{datetime.now(UTC):%H:%M} {step.name}", highlight=False)
            step.do()
            if not step.done:
                raise ConfigError(f"{step.name} needs what earlier runs left in {self.runs}, and that is gone")

    def status(self) -> Iterator[str]:
        """Yield lines that say how far the lane has come."""
        steps = list(self.steps())
        folders = dict.fromkeys(step.name.rpartition("/")[0] for step in steps)
        for folder in folders:
            within = [step for step in steps if step.name.rpartition("/")[0] == folder]
            yield f"{folder}: {sum(step.done for step in within)} of {len(within)} done"
        if Chosen.on_validation(self.trials) is None:
            yield f"further steps follow once the trials of {MIDDLE} have ended"
        following = next((step.name for step in steps if not step.done), None)
        yield f"next: {following}" if following else "all done"

    def steps(self) -> Iterator[Step]:
        """Yield the steps; those that a choice on the validation part decides on come once it has been made."""
        yield from self._matching(COMPARED)
        for trial in trials():
            yield self._step(f"{MIDDLE}/{TRIALS}", trial)
        chosen = Chosen.on_validation(self.trials)
        if chosen is None:
            return
        plan = chosen.plan()
        primary = [run.name for run in chosen.primary]
        ablations = [name for name in plan.repeats if name not in primary]
        rest = [run.name for run in plan.runs if run.name not in plan.repeats]
        for run in (*by_seed(plan, primary), *by_seed(plan, ablations), *by_seed(plan, rest)):
            yield self._step(MIDDLE, run, plan)
        yield from self._references(MIDDLE, plan)
        once = chosen.once()
        for name in (*(name for name in STRENGTHS if name != MIDDLE), *(f"{MIDDLE}-{rows}-rows" for rows in DETAILS)):
            for run in once.runs:
                yield self._step(name, run, once)
            yield from self._references(name, once)
        yield from self._matching([name for name in matching_runs() if name not in COMPARED])

    def _matching(self, names: Sequence[str]) -> Iterator[Step]:
        """Yield the trials of the made-up attribute, and for each contender named the best of them on the test part."""
        for tried in (matching_runs()[name] for name in names):
            attempts = [self._step(f"{MATCHES_NAME}/{TRIALS}", run) for run in tried]
            yield from attempts
            if all(step.done for step in attempts):
                best = np.argmax([validated(step.result, "accuracy") for step in attempts])
                yield self._step(MATCHES_NAME, tried[best])

    def _references(self, name: str, plan: Plan) -> Iterator[Step]:
        for reference in plan.references:
            yield Step(
                name=f"{name}/{reference}",
                result=self.results / name / f"{reference}.json",
                do=functools.partial(self._refer, name, plan, reference),
            )

    def _refer(self, name: str, plan: Plan, reference: str) -> None:
        self.study(name, plan).run([reference])

    def _step(self, folder: str, run: Run, plan: Plan | None = None) -> Step:
        planned = plan or Plan(runs=(run,), repeats={}, references={})
        return Step(
            name=f"{folder}/{run.name}",
            result=self.results / folder / f"{run.name}.json",
            do=lambda: self.study(folder, planned).complete(run),
            run=run,
            plan=planned,
        )

    def study(self, name: str, plan: Plan) -> StagedStudy:
        """Return the study of one catalogue, made ready; NAME/trials is measured on its validation part."""
        if name not in self._studies:
            catalogue, _, trying = name.partition("/")
            training = PROTOCOL["matching" if catalogue == MATCHES_NAME else "training"]
            self._studies[name] = StagedStudy(
                catalogue=Catalogue.open(self.catalogue(catalogue)),
                initial=write_towers(self.checkpoint, self.runs / "towers"),
                # What was trained for a trial is the same network when it is measured on the test part.
                runs=self.runs / "runs" / catalogue,
                results=self.results / name,
                epochs=training["epochs"],
                measured=Part.VALIDATION if trying else Part.TEST,
                plan=plan,
                corruptions=NOISE,
                device=self.device,
                console=self.console,
                encoded=self.runs / "encoded",
                variants=training["variants"],
            )
        return self._studies[name]

    def named(self, name: str) -> tuple[StagedStudy, Run]:
        """Return the study and the run that CATALOGUE/RUN names. Raises `ConfigError` where the lane has none such."""
        known = {step.name: step for step in self.steps()}
        step = known.get(name)
        if step is None or step.run is None or step.plan is None:
            raise ConfigError(f"there is no run {name!r}; known are {', '.join(known)}")
        return self.study(name.rpartition("/")[0], step.plan), step.run

    def catalogue(self, name: str) -> Path:
        """Return the TOML file of a catalogue, which is written unless it is there.

        name: STRENGTH, STRENGTH-N-rows for images of N rows of pixels, or `MATCHES_NAME`.
        """
        folder = self.runs / "catalogues" / name
        if not (folder / CATALOGUE).is_file():
            whole = Catalogue.open(self.table)
            if name == MATCHES_NAME:
                write_matching(whole, folder, STRENGTHS[MIDDLE], train=PROTOCOL["matching"]["train"])
            else:
                strength, _, detail = name.partition("-")
                rows = int(detail.removesuffix("-rows")) if detail else None
                write_untold(whole, folder, STRENGTHS[strength], detail=rows)
        return folder / CATALOGUE
