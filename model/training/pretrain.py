"""`cma-clip pretrain`: contrastive pre-training of both towers on a catalogue's own image-title pairs.

For use where no pretrained CLIP weights can be had. The loss is open_clip's `ClipLoss`; what is saved is a checkpoint
without attributes, whose towers `cma-clip train --init` takes over. Started from a checkpoint, it keeps that one's
image tower as it is and trains a new text tower to match it (locked-image tuning, arXiv:2111.07991).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from rich.console import Console
from torch import Tensor, nn

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.checkpoint.folder import provenance
from model.checkpoint.weights import save_checkpoint
from model.config import ModelConfig, to_json
from model.device import pick_device
from model.errors import CatalogueError
from model.inputs.dataset import ListingDataset, TrainingBatch, TrainingBatches, load_batches
from model.inputs.normalise import TensorTransform
from model.network.towers import Backbone, build_backbone
from model.training.config import PretrainConfig, describe_schedule, small_pretraining
from model.training.initialise import initial_model, take_image_tower
from model.training.trainer import Trainer, finished_checkpoint
from model.trust.binomial import binomial_tail

NAME = "pretrained"
"""What a checkpoint of towers is called where nothing else is said."""

CHANCE_LEVEL = 0.001
"""Small, since the best of several epochs is tested."""

MAX_LOGIT_SCALE = math.log(100)  # as CLIP: larger ones make training unstable


class ContrastiveModel(nn.Module):
    """Both towers with a projection each to a shared space, and CLIP's learned temperature."""

    def __init__(self, backbone: Backbone, embed_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project_image = nn.Linear(backbone.image.width, embed_dim, bias=False)
        self.project_text = nn.Linear(backbone.text.width, embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit image and text embeddings `[B, E]` of normalised `images` and `tokens`, and the scale."""
        image, text = self.backbone.encode_image(images), self.backbone.encode_text(tokens)
        rows = torch.arange(len(tokens), device=tokens.device)
        return (
            F.normalize(self.project_image(image.embeddings[rows, image.pooled]), dim=-1),
            F.normalize(self.project_text(text.embeddings[rows, text.pooled]), dim=-1),
            self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp(),
        )


class ContrastiveLoss:
    """open_clip's symmetric contrastive loss of a batch; `accuracy` is the share of images that find their title."""

    def __init__(self, transform: TensorTransform) -> None:
        self.transform = transform
        self.clip_loss = ClipLoss()

    def __call__(self, network: ContrastiveModel, batch: TrainingBatch, _progress: float) -> dict[str, Tensor]:
        pairs = batch.has_image & batch.has_title  # an image that cannot be decoded is absent
        image, text, scale = network(self.transform.normalise(batch.pixels[pairs]), batch.tokens[pairs])
        best = (image @ text.T).argmax(dim=1)
        found = (best == torch.arange(len(best), device=best.device)).float().mean()
        return {"total": self.clip_loss(image, text, scale), "accuracy": found}


def pretrain(
    catalogue: Catalogue,
    out: Path,
    *,
    name: str = NAME,
    model: ModelConfig | None = None,
    config: PretrainConfig | None = None,
    initial: Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Pre-train on the train part's listings that have both modalities; return the checkpoint folder.

    `initial` is a checkpoint of ours whose image tower is kept, locked; the text tower is new all the same.
    `model` is `initial_model(None, initial)` and `config` is `default_config(catalogue)` where they are None.

    Writes the run to `out`, and resumes it, as `model.training.train.train` does. The network is chosen by the share
    of validation images that find their own title within a batch; where that is no more than chance, a warning says so.
    Raises `CatalogueError`, `CheckpointError`, `ConfigError` or `TrainingError`.
    """
    console = console or Console(stderr=True)
    console.print(str(catalogue.report))
    pairs, held_out = _pairs(catalogue, Part.TRAIN), _pairs(catalogue, Part.VALIDATION)
    if not held_out:
        raise CatalogueError("the validation part holds no listing with both an image and a title")
    model = model or initial_model(None, str(initial) if initial else None)
    usual = default_config(catalogue)
    config = config or usual
    optimiser = config.optimiser
    console.print(describe_schedule(len(pairs), "training pairs", optimiser, usual.optimiser))
    training = {
        "catalogue": catalogue.config.table.name,
        "pairs": len(pairs),
        "initial": provenance(initial),
        "config": to_json(config),
    }

    def save(best: ContrastiveModel, scores: Mapping[str, float]) -> None:
        save_checkpoint(
            out / "checkpoint",
            nn.ModuleDict({"backbone": best.backbone}),
            name=name,
            config=model,
            tasks=(),
            training=training | {"validation": dict(scores)},
        )

    examples = ListingDataset(
        catalogue, pairs, (), model.preprocess, augment=[config.augment] * optimiser.epochs, seed=optimiser.seed
    )
    loss = ContrastiveLoss(examples.transform)
    validate = _Validation(ListingDataset(catalogue, held_out, (), model.preprocess), loss, optimiser.batch_size)
    best = Trainer(
        network=_initial_network(model, config, initial),
        loss=loss,
        batches=TrainingBatches(
            examples, batch_size=optimiser.batch_size, workers=optimiser.workers, seed=optimiser.seed
        ),
        optimiser=optimiser,
        folder=out,
        device=pick_device(device),
        validate=validate,
        save_best=save,
        fingerprint={"name": name, "model": to_json(model), "digest": catalogue.digest, **training},
        ema_decay=0.0,  # a few hundred steps are too few to average over
        console=console,
    ).run()
    if warning := chance_warning(best, pairs=validate.pairs, batch_size=validate.batch_size):
        console.print(f"warning: {warning}")
    return finished_checkpoint(out)


def default_config(catalogue: Catalogue) -> PretrainConfig:
    """Return the preset, with a schedule for the number of training pairs."""
    return small_pretraining(len(_pairs(catalogue, Part.TRAIN)))


def _initial_network(model: ModelConfig, config: PretrainConfig, initial: Path | None) -> ContrastiveModel:
    torch.manual_seed(config.optimiser.seed)
    backbone = build_backbone(model.backbone, model.preprocess)
    if initial:
        take_image_tower(backbone, initial)
        backbone.lock_image()
    return ContrastiveModel(backbone, config.embed_dim)


def _pairs(catalogue: Catalogue, part: Part) -> list[Listing]:
    return [listing for listing in catalogue.part(part) if listing.image and listing.title]


class _Validation:
    """Contrastive loss and accuracy over the validation pairs, within batches of the training size.

    The last batch is left out where it is incomplete: `pairs` counts those of the others.
    """

    def __init__(self, dataset: ListingDataset, loss: ContrastiveLoss, batch_size: int) -> None:
        self.batch_size = min(batch_size, len(dataset))
        self.loader = load_batches(dataset, batch_size=self.batch_size, workers=0, drop_last=True)
        self.pairs = len(self.loader) * self.batch_size
        self.loss = loss

    @torch.inference_mode()
    def __call__(self, network: ContrastiveModel) -> dict[str, float]:
        device = next(network.parameters()).device
        losses = [self.loss(network, batch.to(device), 1.0) for batch in self.loader]
        scores = {name: float(torch.stack([each[name] for each in losses]).mean()) for name in losses[0]}
        return {"loss": scores["total"], "accuracy": scores["accuracy"], "score": scores["accuracy"]}


def chance_warning(accuracy: float, *, pairs: int, batch_size: int) -> str | None:
    """Return a warning where `accuracy` over validation pairs is not clearly above chance, which is 1 / `batch_size`.

    A one-sided binomial test at `CHANCE_LEVEL`: images that are matched with titles at random find their own with that
    chance each.
    """
    found = round(accuracy * pairs)
    if binomial_tail(found, pairs, 1 / batch_size) < CHANCE_LEVEL:
        return None
    return (
        f"pre-training seems to have learned nothing: of {pairs} validation images, {found} found their own title "
        f"among {batch_size}, and chance alone would find {pairs / batch_size:.0f}. Don't start from this checkpoint: "
        "train from random weights or pretrained CLIP weights, or pre-train for more epochs or on more listings"
    )
