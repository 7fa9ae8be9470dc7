"""What is trained, by name: each run is this project's recipe except for the settings that it names.

All start from the same towers, on the same split, for the same number of steps, with the same seed; the two main ones
are repeated with other seeds. The image tower was trained beforehand, on the labels, and is locked: the comparison is
of how networks combine its output with a title.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from model.config import ModelConfig, override
from model.situations import Situation
from model.training.config import TrainConfig, small_training
from model.training.initialise import initial_network
from research.study.networks import BuildNetwork, pooled_clip, with_random_text

Settings = Mapping[str, str]
"""Dotted path in `TrainConfig` or `FusionConfig` -> value as JSON, as `cma-clip train --set` takes them."""

EPOCHS = 3
SEEDS = 5

FULL_SIZE = 30_139
"""Training listings of the catalogue that the study was designed on; its batches are the default for that many."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One network to train and measure.

    text: what the text tower starts from: the study's towers, or random weights. The image tower is always the
    study's, and locked. situations: those in which it can predict; it ignores a modality that has none of its own.
    corrupted: whether it is measured on corrupted listings too. seed: of batches, augmentation, new weights and
    dropout.
    """

    name: str
    title: str
    network: Literal["cma-clip", "pooled"] = "cma-clip"
    fusion: Settings = field(default_factory=dict)
    training: Settings = field(default_factory=dict)
    text: Literal["pre-trained", "random"] = "pre-trained"
    situations: tuple[Situation, ...] = tuple(Situation)
    corrupted: bool = False
    seed: int = 0

    @property
    def build(self) -> BuildNetwork:
        """What makes the network."""
        build = initial_network if self.network == "cma-clip" else pooled_clip
        return build if self.text == "pre-trained" else with_random_text(build)

    @property
    def weighs(self) -> bool:
        """Whether the network has a learned modality attention."""
        return self.network == "cma-clip" and self.fusion.get("modality_attention") != "false"

    @property
    def recorded(self) -> dict[str, Any]:
        """What a result says of the run's settings."""
        return {"network": self.network, **self.fusion, **self.training, "text": self.text}

    def model(self, initial: ModelConfig) -> ModelConfig:
        """Return the model to train, on the backbone and fusion of `initial`."""
        return replace(initial, fusion=override(initial.fusion, self.fusion))

    def config(self, epochs: int) -> TrainConfig:
        """Return the training configuration."""
        budget = {"optimiser.epochs": str(epochs), "optimiser.seed": str(self.seed)}
        return override(small_training(FULL_SIZE), {**LOCKED, **self.training, **budget})

    def repeated(self, seed: int) -> Run:
        """Return the same run with another seed."""
        return replace(self, name=f"{self.name}-seed-{seed}", seed=seed)


# The images are encoded beforehand (`encoded.py`), so that workers have nothing to decode. With a tower that does not
# learn, the losses of a single modality matter less.
LOCKED: Settings = {
    "lock_image": "true",
    "optimiser.workers": "0",
    "optimiser.patience": "1",
    "weights.image": "0.15",
    "weights.title": "0.25",
}
# Crops and mirrored images stay in every run: they are standard for CLIP too.
NO_CORRUPTIONS: Settings = {
    "augment.corrupted_images": "0",
    "augment.blank_images": "0",
    "augment.title_dropout": "0",
    "augment.label_word_dropout": "0",
    "mismatched_titles": "0",
    "mismatched_images": "0",
}
ONE_LOSS: Settings = {"weights.image": "0", "weights.title": "0", "modality_dropout": "0"}
PLAIN: Settings = {**NO_CORRUPTIONS, **ONE_LOSS}
IMAGE_LOSS: Settings = {"weights.image_and_title": "0", "weights.image": "1", "weights.title": "0"}
TITLE_LOSS: Settings = {"weights.image_and_title": "0", "weights.image": "0", "weights.title": "1"}

CMA_CLIP = Run(name="cma-clip", title="CMA-CLIP", corrupted=True)
CLIP_FINETUNED = Run(
    name="clip-finetuned",
    title="fine-tuned CLIP",
    network="pooled",
    training=PLAIN,
    corrupted=True,
)
CLIP_SAME_RECIPE = Run(
    name="clip-finetuned-same-recipe",
    title="fine-tuned CLIP, our recipe",
    network="pooled",
    corrupted=True,
)
IMAGE_ALONE = Run(
    name="image-alone",
    title="image tower alone",
    network="pooled",
    training=IMAGE_LOSS,
    situations=(Situation.IMAGE_AND_TITLE, Situation.IMAGE),
    corrupted=True,
)
TITLE_ALONE = Run(
    name="title-alone",
    title="text tower alone",
    network="pooled",
    training=TITLE_LOSS,
    situations=(Situation.IMAGE_AND_TITLE, Situation.TITLE),
    corrupted=True,
)
CMA_CLIP_PLAIN = Run(name="cma-clip-plain", title="CMA-CLIP, trained plainly", training=PLAIN, corrupted=True)

ABLATIONS = (
    Run(
        name="no-modality-attention",
        title="without modality-wise attention (plain average)",
        fusion={"modality_attention": "false"},
    ),
    Run(name="no-sequence-attention", title="without sequence-wise attention", fusion={"depth": "0"}),
    Run(name="no-attention", title="without both attentions", fusion={"modality_attention": "false", "depth": "0"}),
    Run(name="depth-2", title="two fusion blocks", fusion={"depth": "2"}),
    Run(name="depth-4", title="four fusion blocks", fusion={"depth": "4"}),
    Run(name="one-loss", title="without modality dropout and unimodal losses", training=ONE_LOSS),
    Run(name="no-corruptions", title="without corruptions in training", training=NO_CORRUPTIONS, corrupted=True),
    Run(name="no-pretraining", title="without contrastive pre-training", text="random"),
)

RUNS: tuple[Run, ...] = (
    CMA_CLIP,
    CLIP_FINETUNED,
    CLIP_SAME_RECIPE,
    CMA_CLIP_PLAIN,
    IMAGE_ALONE,
    TITLE_ALONE,
    *ABLATIONS,
)
"""In the order in which they are trained: those of the main comparison first."""

REPEATS: Mapping[str, tuple[Run, ...]] = {
    run.name: tuple(run.repeated(seed) for seed in range(1, SEEDS)) for run in (CMA_CLIP, CLIP_FINETUNED)
}
"""The further seeds of the two main runs, so that differences can be separated from variation between seeds."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one folder of results holds: runs in their order, their repeats with other seeds, rows that need no run.

    repeats: by the name of the run that they repeat, in the order of their seeds. references: their names and titles.
    """

    runs: tuple[Run, ...]
    repeats: Mapping[str, tuple[Run, ...]]
    references: Mapping[str, str]

    @property
    def trained(self) -> tuple[Run, ...]:
        """All that is trained, in order."""
        return (*self.runs, *itertools.chain.from_iterable(self.repeats.values()))

    @property
    def names(self) -> list[str]:
        """The names of runs and references, in their order."""
        return [*(run.name for run in self.runs), *self.references]

    @property
    def repeat_names(self) -> list[str]:
        """The names of the runs that repeat one of the others with another seed."""
        return [run.name for run in itertools.chain.from_iterable(self.repeats.values())]


TITLES_OF = {
    "majority": "most frequent label",
    "tf-idf": "bag of words, title",
    "late-fusion": "late fusion",
}
"""The names of the reference rows, and their titles in the report."""

PLAN = Plan(runs=RUNS, repeats=REPEATS, references=TITLES_OF)
"""This study's own."""
