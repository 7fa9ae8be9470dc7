"""What fine-tuning minimises: a batch encoded once, and its multi-task loss in each situation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.inputs.dataset import TrainingBatch
from model.inputs.normalise import TensorTransform
from model.network.cma_clip import CMAClip, Output
from model.network.losses import multi_task_loss
from model.network.towers import TokenSequence
from model.training.config import TrainConfig


@dataclass(frozen=True)
class TrainingLoss:
    """The multi-task loss of a batch, in each situation that has a weight."""

    config: TrainConfig
    transform: TensorTransform
    multi_valued: frozenset[int] = frozenset()
    """The places of the multi-valued attributes."""

    def __call__(self, network: CMAClip, batch: TrainingBatch, progress: float) -> dict[str, Tensor]:
        """Return the loss of each situation that has a weight, and their weighted sum `total`: scalars, in nats summed
        over attributes.

        `image_and_title`, `image`, `title`: each listing as it is, or one modality of it. `mismatched`: each image with
        another listing's title, labelled as the image's listing (`mismatched_titles`) or as the title's
        (`mismatched_images`); every listing takes part at a small weight, instead of a few sampled ones at full weight,
        for the same expected loss. `progress` is the share of the training that is done.
        """
        config, weights = self.config.at(progress), self.config.weights
        image = text = None
        if weights.image_and_title or weights.image:
            image = network.backbone.encode_image(self.transform.normalise(batch.pixels)).keep(batch.has_image)
        if weights.image_and_title or weights.title:
            text = network.backbone.encode_text(batch.tokens).keep(batch.has_title)
        losses: dict[str, Tensor] = {}
        total = batch.pixels.new_zeros((), dtype=torch.float32)
        if image and text and weights.image_and_title:
            kept = drop_modalities(batch.has_image, batch.has_title, config.modality_dropout)
            losses["image_and_title"] = self._loss(network(image.keep(kept[0]), text.keep(kept[1])), batch.labels)
            mismatched_share = config.mismatched_titles + config.mismatched_images
            total = total + weights.image_and_title * (1 - mismatched_share) * losses["image_and_title"]
            if mismatched_share:
                losses["mismatched"] = self._mismatched(network, image, text, batch, config)
                total = total + weights.image_and_title * losses["mismatched"]
        # A modality alone counts on the rows that have it.
        if image and weights.image and batch.has_image.any():
            rows = batch.has_image
            losses["image"] = self._loss(network(image.select(rows), None), batch.labels[rows])
            total = total + weights.image * losses["image"]
        if text and weights.title and batch.has_title.any():
            rows = batch.has_title
            losses["title"] = self._loss(network(None, text.select(rows)), batch.labels[rows])
            total = total + weights.title * losses["title"]
        return losses | {"total": total}

    def _mismatched(
        self,
        network: CMAClip,
        image: TokenSequence,
        text: TokenSequence,
        batch: TrainingBatch,
        config: TrainConfig,
    ) -> Tensor:
        images, titles = mismatched(batch.has_image, batch.has_title)
        if not len(images):
            return batch.pixels.new_zeros((), dtype=torch.float32)
        output = network(image.select(images), text.select(titles))
        by_image, by_title = (self._loss(output, batch.labels[rows]) for rows in (images, titles))
        return config.mismatched_titles * by_image + config.mismatched_images * by_title

    def _loss(self, output: Output, labels: Tensor) -> Tensor:
        return multi_task_loss(
            output.logits, labels, multi_valued=self.multi_valued, label_smoothing=self.config.label_smoothing
        )


def drop_modalities(has_image: Tensor, has_title: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """Drop one modality, either as likely, from a share `chance` of the rows that have both; `[B]` bool masks."""
    drawn = torch.rand(has_image.shape, device=has_image.device)
    both = has_image & has_title
    return has_image & ~(both & (drawn < chance / 2)), has_title & ~(both & (drawn > 1 - chance / 2))


def mismatched(has_image: Tensor, has_title: Tensor) -> tuple[Tensor, Tensor]:
    """Pair each listing's image with the title of the listing before it, where there are both.

    Takes `[B]` bool masks; returns the rows of the images and those of their titles, `[P]` int64 both.
    """
    images = (has_image & has_title.roll(1)).nonzero().flatten()
    titles = (images - 1) % len(has_image)
    apart = images != titles  # in a batch of one, a listing is its own neighbour
    return images[apart], titles[apart]
