"""The proxy network, and its training with a remedy against wrong labels.

It is CMA-CLIP with frozen image features and a bag of words: the service's own fusion (without sequence attention),
modality attention and heads.

Shapes: B listings, n of them in training, T attributes, C_t labels of attribute t, F image features, L tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from model.config import FusionConfig
from model.network.cma_clip import CMAClip, Output
from model.network.towers import Backbone, TokenSequence
from model.situations import Situation
from model.tasks import Task
from model.training.optimiser import moving_average, rate_factor
from research.noise.titles import Vocabulary

WIDTH, TEXT_WIDTH = 128, 128

WEIGHTS = {Situation.IMAGE_AND_TITLE: 1.0, Situation.IMAGE: 0.3, Situation.TITLE: 1.0}

BATCH, EPOCHS, RATE, EMA = 128, 8, 3e-3, 0.99


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What is done about wrong labels; the defaults are what the shipped recipe does, without augmentation.

    smoothing: of labels, towards all labels evenly; neighbours: towards those of similar listings. rewritten: share of
    titles that are rewritten as people do. consistency: weight of the divergence between answers to a listing as it is
    and rewritten. gce: q of generalised cross-entropy; elr: weight of early-learning regularisation. averaged: whether
    the weights' moving average answers. teacher: share of the target that is the served network's answer. coteaching:
    two networks, each learning what the other finds easy. audit: "drop" or "relabel" the suspects of an audit by folds.
    """

    smoothing: float = 0.05
    neighbours: float = 0.0
    rewritten: float = 0.0
    consistency: float = 0.0
    gce: float = 0.0
    elr: float = 0.0
    averaged: bool = True
    teacher: float = 0.0
    coteaching: bool = False
    audit: str = ""


class Listings:
    """What the proxy reads of n listings."""

    def __init__(self, images: NDArray[Any], has_image: NDArray[np.bool_], titles: Sequence[str | None]) -> None:
        self.images = torch.from_numpy(images.astype(np.float32))
        self.has_image = torch.from_numpy(has_image)
        self.titles = titles
        self.has_title = torch.tensor([bool(title) for title in titles])

    def __len__(self) -> int:
        return len(self.titles)

    def rows(self, rows: NDArray[np.int64]) -> Listings:
        """Return the listings at `rows`."""
        return Listings(self.images[rows].numpy(), self.has_image[rows].numpy(), [self.titles[row] for row in rows])


class _Side(nn.Module):
    width: int


class FrozenImages(_Side):
    """Image features as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class WordSums(_Side):
    """The sum of a title's token embeddings, divided by the root of their number."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.table = nn.Embedding(tokens, width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `[B, L]` tokens, 0 where there is none, to `[B, d]`."""
        known = (tokens > 0).sum(dim=1, keepdim=True).clamp(min=1)
        found: Tensor = (self.table(tokens) * (tokens > 0)[..., None]).sum(dim=1) / known.sqrt()
        return found


class _Towers(nn.Module):
    def __init__(self, features: int, tokens: int) -> None:
        super().__init__()
        self.image, self.text = FrozenImages(features), WordSums(tokens, TEXT_WIDTH)


class Proxy(nn.Module):
    """Answers every attribute from image features and tokens."""

    def __init__(self, features: int, vocabulary: Vocabulary, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        towers = cast(Backbone, _Towers(features, len(vocabulary)))
        self.fusion = CMAClip(towers, tasks, FusionConfig(width=WIDTH, depth=0, dropout=0.2))

    def forward(
        self, images: Tensor, has_image: Tensor, tokens: Tensor, has_title: Tensor, situation: Situation
    ) -> tuple[Tensor, ...]:
        """Return the logits of each attribute, `[B, C_t]`: from what the situation uses and the listing has."""
        image = text = None
        if situation.uses_image:
            image = TokenSequence.pooled_first(images[:, None]).keep(has_image)
        if situation.uses_title:
            words = self.fusion.backbone.text(tokens)
            text = TokenSequence.pooled_first(words[:, None]).keep(has_title)
        output: Output = self.fusion(image, text)
        return output.logits

    @torch.no_grad()
    def answer(
        self, listings: Listings, situation: Situation, titles: Sequence[str | None] | None = None
    ) -> list[Tensor]:
        """Return the logits of all listings; `titles` take the place of theirs."""
        self.eval()
        tokens = self.vocabulary.encode(titles or listings.titles)
        parts = []
        for rows in torch.split(torch.arange(len(listings)), 1024):
            columns = (listings.images, listings.has_image, tokens, listings.has_title)
            parts.append(self(*(column[rows] for column in columns), situation))
        return [torch.cat(each) for each in zip(*parts, strict=True)]


def train_proxy(
    listings: Listings,
    labels: NDArray[np.int64],
    tasks: Sequence[Task],
    remedy: Remedy,
    *,
    seed: int,
    neighbours: Sequence[Tensor] | None = None,
    teacher: Sequence[Tensor] | None = None,
    epochs: int = EPOCHS,
) -> Proxy:
    """Train on labels `[n, T]`, negative where there is none.

    neighbours, teacher: of each attribute what similar listings' labels, or the served network, say: `[n, C_t]`.
    """
    torch.manual_seed(seed)
    vocabulary = Vocabulary.of([title for title in listings.titles if title], rewritten=remedy.rewritten > 0)
    students = [Proxy(listings.images.shape[1], vocabulary, tasks) for _ in range(2 if remedy.coteaching else 1)]
    targets = _targets(torch.from_numpy(labels), tasks, remedy, neighbours, teacher)
    run = _Run(listings, torch.from_numpy(labels), targets, remedy)
    steps = epochs * max(1, len(listings) // BATCH)
    optimisers = [
        torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.05, fused=True) for student in students
    ]
    averages = [AveragedModel(student, multi_avg_fn=moving_average(EMA)) for student in students]
    for step, (rows, tokens) in enumerate(_batches(listings, vocabulary, remedy, seed, epochs)):
        losses = run.losses(students, rows, tokens, step / steps)
        for student, loss, optimiser, average in zip(students, losses, optimisers, averages, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = RATE * rate_factor(step, steps, warmup=round(0.05 * steps))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimiser.step()
            average.update_parameters(student)
    return cast(Proxy, averages[0].module) if remedy.averaged else students[0]


def _batches(
    listings: Listings, vocabulary: Vocabulary, remedy: Remedy, seed: int, epochs: int
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Yield the rows of each batch with their tokens: as the loss takes them, and as `consistency` compares them."""
    plain = vocabulary.encode(listings.titles)
    for epoch in range(epochs):
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(listings)))
        varied = plain
        if remedy.rewritten:
            rng = random.Random(f"{seed}/{epoch}")  # noqa: S311 - augmentation, no secret
            varied = vocabulary.encode(listings.titles, rewritten=remedy.rewritten, rng=rng)
        for rows in torch.split(order, BATCH):
            if len(rows) == min(BATCH, len(listings)):
                yield rows, (plain[rows], varied[rows])


def _targets(
    labels: Tensor,
    tasks: Sequence[Task],
    remedy: Remedy,
    neighbours: Sequence[Tensor] | None,
    teacher: Sequence[Tensor] | None,
) -> list[Tensor]:
    """Return what each listing is to be answered, `[n, C_t]` for each attribute; anything where it has no label."""
    found = []
    for t, task in enumerate(tasks):
        target = F.one_hot(labels[:, t].clamp(min=0), len(task.labels)).float()
        target = target * (1 - remedy.smoothing) + remedy.smoothing / len(task.labels)
        if neighbours is not None:
            target = target.lerp(neighbours[t], remedy.neighbours)
        if teacher is not None:
            target = target.lerp(teacher[t], remedy.teacher)
        found.append(target)
    return found


class _Run:
    """The loss of one training: what the labels, their neighbours, a teacher and earlier answers say."""

    def __init__(self, listings: Listings, labels: Tensor, targets: Sequence[Tensor], remedy: Remedy) -> None:
        """targets: what each listing is to be answered, `[n, C_t]` for each attribute; labels: `[n, T]`."""
        self.listings, self.labels, self.targets, self.remedy = listings, labels, targets, remedy
        self.weights = WEIGHTS if listings.has_image.any() else {Situation.TITLE: 1.0}
        self.main = next(iter(self.weights))
        self.earlier = [torch.zeros_like(target) for target in targets]

    def losses(
        self, students: Sequence[Proxy], rows: Tensor, tokens: tuple[Tensor, Tensor], progress: float
    ) -> list[Tensor]:
        """Return each student's loss."""
        columns = (self.listings.images[rows], self.listings.has_image[rows], tokens[1], self.listings.has_title[rows])
        answers = [{situation: student(*columns, situation) for situation in self.weights} for student in students]
        keep = [self._easy(rows, each[self.main], progress) for each in reversed(answers)]
        found = []
        for student, answer, kept in zip(students, answers, keep, strict=True):
            total = sum(
                (
                    weight * self._loss(rows, answer[situation], kept, situation)
                    for situation, weight in self.weights.items()
                ),
                torch.zeros(()),
            )
            if self.remedy.consistency:
                total = total + self.remedy.consistency * self._divergence(student, columns, tokens[0], answer)
            found.append(total)
        return found

    def _loss(self, rows: Tensor, logits: Sequence[Tensor], kept: Tensor, situation: Situation) -> Tensor:
        remedy, total = self.remedy, torch.zeros(())
        for t, scores in enumerate(logits):
            use = kept[:, t]
            target = self.targets[t][rows]
            if remedy.gce:
                own = scores.softmax(dim=1).gather(1, self.labels[rows, t].clamp(min=0)[:, None])[:, 0]
                each = (1 - own.clamp(min=1e-6) ** remedy.gce) / remedy.gce
            else:
                each = -(target * scores.log_softmax(dim=1)).sum(dim=1)
            if remedy.elr and situation is self.main:
                answer = scores.softmax(dim=1).clamp(1e-4, 1 - 1e-4)
                with torch.no_grad():
                    self.earlier[t][rows] = 0.7 * self.earlier[t][rows] + 0.3 * answer
                each = each + remedy.elr * (1 - (self.earlier[t][rows] * answer).sum(dim=1)).clamp(min=1e-4).log()
            total = total + (each * use).sum() / use.sum().clamp(min=1)
        return total

    def _easy(self, rows: Tensor, logits: Sequence[Tensor], progress: float) -> Tensor:
        """Return which labels are learned from, `[B, T]`: all, or those that the other student finds easy."""
        known = self.labels[rows] >= 0
        if not self.remedy.coteaching:
            return known
        dropped = 0.15 * min(1.0, 3 * progress)
        kept = known.clone()
        for t, scores in enumerate(logits):
            each = F.cross_entropy(scores.detach(), self.labels[rows, t].clamp(min=0), reduction="none")
            limit = torch.quantile(each[known[:, t]], 1 - dropped) if known[:, t].any() else each.max()
            kept[:, t] &= each <= limit
        return kept

    def _divergence(
        self, student: Proxy, columns: tuple[Tensor, ...], plain: Tensor, answer: dict[Situation, tuple[Tensor, ...]]
    ) -> Tensor:
        """Return how far answers to rewritten titles are from those to the titles as they are, in nats."""
        images, has_image, _, has_title = columns
        total = torch.zeros(())
        for situation in (each for each in self.weights if each.uses_title):
            with torch.no_grad():
                before = student(images, has_image, plain, has_title, situation)
            for old, new in zip(before, answer[situation], strict=True):
                total = total + F.kl_div(new.log_softmax(dim=1), old.softmax(dim=1), reduction="batchmean")
        return total
