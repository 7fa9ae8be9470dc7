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
from torch.utils.checkpoint import checkpoint

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.checkpoint.folder import provenance
from model.checkpoint.weights import save_checkpoint
from model.config import ModelConfig, to_json
from model.errors import CatalogueError, ConfigError
from model.inputs.dataset import ListingDataset, TrainingBatch, TrainingBatches, load_batches
from model.inputs.normalise import TensorTransform
from model.network.towers import Backbone, build_backbone
from model.training import distributed
from model.training.config import PretrainConfig, describe_schedule, small_pretraining
from model.training.initialise import initial_model, take_image_tower
from model.training.layers import has_batch_norm, save_memory
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
    """open_clip's symmetric contrastive loss of a batch; `accuracy` is the share of images that find their title.

    Each listing is contrasted with all others of the batch: those of the other processes, where several share it
    (`gathered`), and those of all micro-batches. As the loss does not add up over micro-batches, each is encoded twice,
    the second time to compute its gradients (gradient caching, arXiv:2101.06983): exact, at a third more computation.
    """

    def __init__(self, transform: TensorTransform, *, micro_batch: int = 0, gathered: bool = False) -> None:
        self.transform, self.micro_batch, self.gathered = transform, micro_batch, gathered
        self.clip_loss = ClipLoss()

    def __call__(self, network: ContrastiveModel, batch: TrainingBatch, _progress: float) -> dict[str, Tensor]:
        pairs = batch.has_image & batch.has_title  # an image that cannot be decoded is absent
        image, text, scale = self._embed(network, self.transform.normalise(batch.pixels[pairs]), batch.tokens[pairs])
        if self.gathered:
            image, text = distributed.gather_rows(image), distributed.gather_rows(text)
        best = (image @ text.T).argmax(dim=1)
        found = (best == torch.arange(len(best), device=best.device)).float().mean()
        return {"total": self.clip_loss(image, text, scale), "accuracy": found}

    def _embed(self, network: ContrastiveModel, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not 0 < self.micro_batch < len(images):
            return network(images, tokens)  # type: ignore[no-any-return]
        parts = [
            checkpoint(network, *part, use_reentrant=False)
            for part in zip(*(torch.split(each, self.micro_batch) for each in (images, tokens)), strict=True)
        ]
        image, text, scales = zip(*parts, strict=True)
        return torch.cat(image), torch.cat(text), scales[0]


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
    console = console or distributed.first_console()
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
    network = _initial_network(model, config, initial)
    target = distributed.join(device)
    validate = _Validation(ListingDataset(catalogue, held_out, (), model.preprocess), optimiser.batch_size)
    best = Trainer(
        network=network,
        loss=ContrastiveLoss(examples.transform, micro_batch=optimiser.micro_batch, gathered=True),
        batches=TrainingBatches(
            examples,
            batch_size=optimiser.batch_size,
            workers=optimiser.workers,
            seed=optimiser.seed,
            share=distributed.share_of(optimiser.batch_size),
        ),
        optimiser=optimiser,
        folder=out,
        device=target,
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
    if config.optimiser.micro_batch and has_batch_norm(backbone.text if initial else backbone):
        raise ConfigError(
            "micro_batch in pre-training is for Transformers: batch normalisation would see each micro-batch twice"
        )
    save_memory(backbone, config.optimiser)
    return ContrastiveModel(backbone, config.embed_dim)


def _pairs(catalogue: Catalogue, part: Part) -> list[Listing]:
    return [listing for listing in catalogue.part(part) if listing.image and listing.title]


class _Validation:
    """Contrastive loss and accuracy over the validation pairs, within batches of the training size.

    The last batch is left out where it is incomplete: `pairs` counts those of the others. Processes that train together
    each judge some of the batches, and all return the scores of all.
    """

    def __init__(self, dataset: ListingDataset, batch_size: int) -> None:
        self.batch_size = min(batch_size, len(dataset))
        self.pairs = len(dataset) // self.batch_size * self.batch_size
        rows = [
            row
            for batch in distributed.part_of(len(dataset) // self.batch_size)
            for row in range(batch * self.batch_size, (batch + 1) * self.batch_size)
        ]
        self.loader = load_batches(dataset, batch_size=self.batch_size, workers=0, sampler=rows)
        self.loss = ContrastiveLoss(dataset.transform)

    @torch.inference_mode()
    def __call__(self, network: ContrastiveModel) -> dict[str, float]:
        device = next(network.parameters()).device
        losses = [self.loss(network, batch.to(device), 1.0) for batch in self.loader]
        found = [each for part in distributed.gathered([_numbers(loss) for loss in losses]) for each in part]
        scores = {name: float(torch.tensor([each[name] for each in found]).mean()) for name in found[0]}
        return {"loss": scores["total"], "accuracy": scores["accuracy"], "score": scores["accuracy"]}


def _numbers(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in scalars.items()}


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
