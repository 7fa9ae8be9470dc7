"""What fine-tuning minimises: a batch encoded once, and its multi-task loss in each situation.

Shapes: B listings, P of them in a part, columns of labels as `model.tasks.encode_row` has them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.inputs.dataset import TrainingBatch
from model.inputs.normalise import TensorTransform
from model.network.cma_clip import CMAClip, Output
from model.network.losses import labelled_rows, multi_task_loss
from model.network.towers import TokenSequence
from model.training import distributed
from model.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class PartOfBatch(TrainingBatch):
    """P of a batch's listings, which go through the network together.

    counts: `[5, columns]`, what each mean of `TrainingLoss` is over in the whole batch, in the order of its `counts`.
    """

    counts: Tensor


@dataclass(frozen=True)
class TrainingLoss:
    """The multi-task loss of a batch, in each situation that has a weight."""

    config: TrainConfig
    transform: TensorTransform
    multi_valued: frozenset[int] = frozenset()
    """The places of the multi-valued attributes."""

    def split(self, batch: TrainingBatch) -> list[PartOfBatch]:
        """Split this process's share of a batch into micro-batches.

        The mean over processes of the sum of their losses is the loss of the whole batch, and so are the gradients,
        whichever labels are missing where. Random draws differ: dropout and dropped modalities, and the titles of
        mismatched pairs, which come from the same part.
        """
        size = self.config.optimiser.micro_batch or len(batch.labels)
        number = math.ceil(len(batch.labels) / size)
        names = [each.name for each in dataclasses.fields(batch)]
        columns = [getattr(batch, name).tensor_split(number) for name in names]
        parts = [TrainingBatch(*rows) for rows in zip(*columns, strict=True)]
        counts = distributed.total(torch.stack([self.counts(part) for part in parts]).sum(dim=0))
        counts = counts.clamp(min=1) / distributed.process_count()
        return [PartOfBatch(**{name: getattr(part, name) for name in names}, counts=counts) for part in parts]

    def counts(self, batch: TrainingBatch) -> Tensor:
        """Return how many rows of `batch` each mean is over, by column, `[5, columns]` int64: of the loss with both
        modalities, with the image, with the title, and of mismatched pairs by the image's labels and by the title's.
        """
        images, titles = mismatched(batch.has_image, batch.has_title)
        rows = (batch.labels, batch.labels[batch.has_image], batch.labels[batch.has_title])
        return torch.stack([labelled_rows(each) for each in (*rows, batch.labels[images], batch.labels[titles])])

    def __call__(self, network: CMAClip, batch: TrainingBatch, progress: float) -> dict[str, Tensor]:
        """Return the loss of each situation that has a weight, and their weighted sum `total`: scalars, in nats summed
        over attributes. Of a `PartOfBatch`, they are its share of the whole batch's.

        `image_and_title`, `image`, `title`: each listing as it is, or one modality of it. `mismatched`: each image with
        another listing's title, labelled as the image's listing (`mismatched_titles`) or as the title's
        (`mismatched_images`); every listing takes part at a small weight, instead of a few sampled ones at full weight,
        for the same expected loss. `progress` is the share of the training that is done.
        """
        config, weights = self.config.at(progress), self.config.weights
        counts = batch.counts if isinstance(batch, PartOfBatch) else self.counts(batch).clamp(min=1)
        image = text = None
        if weights.image_and_title or weights.image:
            image = network.backbone.encode_image(self.transform.normalise(batch.pixels)).keep(batch.has_image)
        if weights.image_and_title or weights.title:
            text = network.backbone.encode_text(batch.tokens).keep(batch.has_title)
        losses: dict[str, Tensor] = {}
        total = nothing = batch.pixels.new_zeros((), dtype=torch.float32)
        if image and text and weights.image_and_title:
            kept = drop_modalities(batch.has_image, batch.has_title, config.modality_dropout)
            output = network(image.keep(kept[0]), text.keep(kept[1]))
            losses["image_and_title"] = self._loss(output, batch.labels, counts[0])
            mismatched_share = config.mismatched_titles + config.mismatched_images
            total = total + weights.image_and_title * (1 - mismatched_share) * losses["image_and_title"]
            if mismatched_share:
                losses["mismatched"] = self._mismatched(
                    network, image, text, batch.labels, config=config, counts=counts[3:]
                )
                total = total + weights.image_and_title * losses["mismatched"]
        # A modality alone counts on the rows that have it.
        if image and weights.image:
            rows, losses["image"] = batch.has_image, nothing
            if rows.any():
                losses["image"] = self._loss(network(image.select(rows), None), batch.labels[rows], counts[1])
                total = total + weights.image * losses["image"]
        if text and weights.title:
            rows, losses["title"] = batch.has_title, nothing
            if rows.any():
                losses["title"] = self._loss(network(None, text.select(rows)), batch.labels[rows], counts[2])
                total = total + weights.title * losses["title"]
        return losses | {"total": total}

    def _mismatched(
        self,
        network: CMAClip,
        image: TokenSequence,
        text: TokenSequence,
        labels: Tensor,
        *,
        config: TrainConfig,
        counts: Tensor,
    ) -> Tensor:
        images, titles = mismatched(image.present, text.present)
        if not len(images):
            return labels.new_zeros((), dtype=torch.float32)
        output = network(image.select(images), text.select(titles))
        by_image = self._loss(output, labels[images], counts[0])
        by_title = self._loss(output, labels[titles], counts[1])
        return config.mismatched_titles * by_image + config.mismatched_images * by_title

    def _loss(self, output: Output, labels: Tensor, counts: Tensor) -> Tensor:
        return multi_task_loss(
            output.logits,
            labels,
            multi_valued=self.multi_valued,
            label_smoothing=self.config.label_smoothing,
            counts=counts,
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
