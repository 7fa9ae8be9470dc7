"""One study: trains the runs, measures each on the test part, and writes their figures; finished runs are kept."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import load_checkpoint
from model.checkpoint.weights import load_weights
from model.device import pick_device, training_dtype
from model.errors import ConfigError
from model.situations import Situation
from model.tasks import Task, build_tasks
from model.training.initialise import initial_model, initial_network
from model.training.trainer import STATE, digest
from research.study.answers import Answers, ImageCache, Inference, TestPart, load_answers, save_answers
from research.study.cells import Cells, all_cells, read_cells, weight_cells, write_cells
from research.study.conditions import Condition, predict_clean, predict_corrupted
from research.study.corruptions import CORRUPTIONS, SEED, Corruption
from research.study.encoded import EncodedFineTuning, EncodedImages
from research.study.networks import parameters
from research.study.references import late_fusion, majority_answers, title_answers
from research.study.runs import IMAGE_ALONE, PLAN, TITLE_ALONE, TITLES_OF, Plan, Run

SUBSET = 1_200
"""Number of listings that are corrupted: enough for curves, few enough to measure in minutes."""

STRONGEST = tuple(
    Condition(situation=Situation.IMAGE_AND_TITLE, corruption=each.name, strength=each.strengths[-1]).key
    for each in CORRUPTIONS
)


@dataclass(kw_only=True)
class Study:
    """Trains and measures runs.

    initial: the checkpoint folder whose towers all runs start from. runs: the folder where they are trained and kept.
    results: the folder of each run's figures; a run that has some is finished. measured: the part that runs are
    measured on. plan: what there is to run. corruptions: those that runs are measured under, if they are.
    """

    catalogue: Catalogue
    initial: Path
    runs: Path
    results: Path
    epochs: int
    measured: Part = Part.TEST
    plan: Plan = PLAN
    corruptions: Sequence[Corruption[Any]] = CORRUPTIONS
    device: torch.device = field(default_factory=lambda: pick_device("auto"))
    console: Console = field(default_factory=lambda: Console(stderr=True))
    cache: ImageCache = field(default_factory=dict)
    """The measured images, corrupted or not, encoded by the shared tower."""

    def run(self, names: Iterable[str]) -> None:
        """Complete the named runs and references, in the order of the study; finished ones are left unchanged.

        Raises `ConfigError` for an unknown name, and where a result has another budget.
        """
        wanted, known = set(names), (*self.plan.names, *self.plan.repeat_names)
        if unknown := sorted(wanted - set(known)):
            raise ConfigError(f"there is no run {unknown[0]!r}; known are {', '.join(known)}")
        for run in self.plan.trained:
            if run.name in wanted:
                self.complete(run)
        if "majority" in wanted:
            self._reference("majority", lambda: majority_answers(self.part, self.catalogue.part(Part.TRAIN)))
        if "tf-idf" in wanted:
            train_part = self.catalogue.part(Part.TRAIN)
            self._reference("tf-idf", lambda: title_answers(self.part, train_part, self.subset))
        if "late-fusion" in wanted:
            self._late_fusion()

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The attributes, with their labels of the train part."""
        config = self.catalogue.config
        labels = (listing.labels for listing in self.catalogue.part(Part.TRAIN))
        return build_tasks(labels, config.attributes, min_label_count=config.min_label_count)[0]

    @cached_property
    def part(self) -> TestPart:
        """The listings that everything is measured on."""
        return TestPart(self.catalogue, self.tasks, self.measured)

    @cached_property
    def images(self) -> EncodedImages:
        """The images of training and validation, encoded by the tower that all runs share."""
        model, towers = initial_model(None, str(self.initial)), load_checkpoint(self.initial).version
        backbone = initial_network(model, self.tasks, str(self.initial)).backbone
        return EncodedImages(self.runs / "encoded" / towers, backbone, self.device, self.console)

    @cached_property
    def subset(self) -> NDArray[np.int64]:
        """The positions of the listings that are corrupted."""
        return self.part.subset(SUBSET)

    @cached_property
    def budget(self) -> dict[str, Any]:
        """What results must share to be comparable."""
        optimiser = self.plan.runs[0].config(self.epochs).optimiser
        listings = len(self.catalogue.part(Part.TRAIN))
        return {
            "epochs": self.epochs,
            "steps": self.epochs * (listings // optimiser.batch_size),
            "batch_size": optimiser.batch_size,
            "train_listings": listings,
            "towers": load_checkpoint(self.initial).version,
            "test_listings": len(self.part.listings),
            "test": self.part.digest,
            "corrupted_listings": len(self.subset),
            "corruption_seed": SEED,
        }

    def answers_of(self, name: str) -> Path:
        """Where the answers of a run are kept; the name depends on the budget, and so on the listings."""
        return self.runs / name / f"answers-{digest(self.budget)[:12]}.npz"

    def _finished(self, name: str) -> bool:
        path = self.results / f"{name}.json"
        if not path.is_file():
            return False
        if (there := read_cells(path)["budget"]) != self.budget:
            differing = ", ".join(key for key, value in self.budget.items() if there.get(key) != value)
            raise ConfigError(f"{path} has another budget ({differing}); remove it, or choose other --results")
        self.console.print(f"{name}: already finished", highlight=False)
        return True

    def complete(self, run: Run) -> None:
        """Train a run, measure it and write its figures; steps that are done are not repeated."""
        if self._finished(run.name):
            return
        self.console.rule(run.name)
        folder = self.runs / run.name
        model = run.model(initial_model(None, str(self.initial)))
        tuning = EncodedFineTuning(
            run.build,
            self.images,
            catalogue=self.catalogue,
            name=run.name,
            model=model,
            config=run.config(self.epochs),
            initial=str(self.initial),
            console=self.console,
        )
        checkpoint = load_checkpoint(tuning.run(folder, device=str(self.device)))
        network = run.build(model, self.tasks, None)
        load_weights(network, checkpoint)
        began = time.monotonic()
        if not self.answers_of(run.name).is_file():
            inference = Inference(network, model.preprocess, self.device, cache=self.cache)
            answers = dict(predict_clean(inference, self.part, run.situations))
            if run.corrupted:
                # The curves do not need full precision.
                fast = Inference(network, model.preprocess, self.device, fast=True, cache=self.cache)
                answers |= dict(
                    predict_corrupted(
                        fast, self.part, self.subset, supported=run.situations, corruptions=self.corruptions
                    )
                )
            save_answers(self.answers_of(run.name), answers)
        self._write(
            run.name,
            load_answers(self.answers_of(run.name)),
            weighs=run.weighs,
            head={
                "title": run.title,
                "parameters": parameters(network),
                "seed": run.seed,
                "settings": run.recorded,
                "validation": checkpoint.training["validation"],
                "training_seconds": round(_training_seconds(folder)),
                "measuring_seconds": round(time.monotonic() - began),
                "number_format": str(training_dtype(self.device)).removeprefix("torch."),
            },
        )

    def _reference(self, name: str, answer: Callable[[], Mapping[str, Answers]]) -> None:
        if self._finished(name):
            return
        self.console.rule(name)
        began = time.monotonic()
        answers = answer()
        seconds = round(time.monotonic() - began)
        self._write(name, answers, weighs=False, head={"title": TITLES_OF[name], "training_seconds": seconds})

    def _late_fusion(self) -> None:
        files = [self.answers_of(run.name) for run in (IMAGE_ALONE, TITLE_ALONE)]
        if missing := [file for file in files if not file.is_file()]:
            if not (self.results / "late-fusion.json").is_file():
                self.console.print(f"late-fusion: {missing[0]} is missing; run image-alone and title-alone first")
            return
        self._reference("late-fusion", lambda: late_fusion(self.part, self.subset, *map(load_answers, files)))

    def _write(self, name: str, answers: Mapping[str, Answers], *, weighs: bool, head: Cells) -> None:
        cells = {
            "run": name,
            **head,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, PyTorch {torch.__version__}, {self.device}",
            "data": self.catalogue.config.path.stem,
            "budget": self.budget,
        }
        if weighs:
            cells["weights"] = weight_cells(self.part, answers)
        cells["conditions"] = self.conditions(answers, weighs=weighs)
        write_cells(self.results / f"{name}.json", cells)
        self.console.print(f"{name}: written to {self.results / f'{name}.json'}", highlight=False)

    def conditions(self, answers: Mapping[str, Answers], *, weighs: bool) -> Cells:
        """Return the figures of each condition, as they are written."""
        return all_cells(self.part, self.subset, answers, STRONGEST, weighs=weighs)


def all_names() -> list[str]:
    """Return the names of all runs and references, in their order."""
    return PLAN.names


def repeat_names() -> list[str]:
    """Return the names of the runs that repeat one of the others with another seed."""
    return PLAN.repeat_names


def _training_seconds(folder: Path) -> float:
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return float(state["seconds"])
