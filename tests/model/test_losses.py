"""The loss of multi-valued attributes, and the accuracy that chooses a checkpoint where there are any."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.network.losses import multi_task_loss
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED
from model.training.validation import _accuracy, _r_precision

# Three listings; a single-valued attribute of four labels, then a multi-valued one of three.
LOGITS = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[2.0, -1.0, 0.5]] * 3))
LABELS = torch.tensor([[3, 1, 0, 1], [OUT_OF_VOCABULARY, 0, 0, 0], [1, *[UNLABELLED] * 3]])


def test_a_label_set_has_the_likelihood_of_independent_answers() -> None:
    chances = torch.sigmoid(LOGITS[1][0])
    sets = [chances[0] * (1 - chances[1]) * chances[2], (1 - chances).prod()]  # of the two labelled listings
    expected = F.cross_entropy(LOGITS[0][[0, 2]], torch.tensor([3, 1])) - torch.stack(sets).log().mean()
    torch.testing.assert_close(multi_task_loss(LOGITS, LABELS, multi_valued={1}), expected)


def test_unlabelled_rows_teach_nothing() -> None:
    scores = LOGITS[1].clone().requires_grad_()
    multi_task_loss((LOGITS[0], scores), LABELS, multi_valued=(1,)).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert (scores.grad[:2] != 0).all()
    assert (scores.grad[2] == 0).all()
    nothing = torch.full((2, 3), UNLABELLED)
    assert multi_task_loss((LOGITS[1][:2],), nothing, multi_valued={0}).item() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_adds_no_more_labels_than_that_of_a_softmax(smoothing: float) -> None:
    """The loss is least at the smoothed targets: absent labels together have the smoothing's share of one label."""
    labels = torch.tensor([[0, 0, 1, 0]])
    target = labels * (1 - smoothing) + smoothing / 4
    scores = target.logit(eps=1e-7).requires_grad_()
    multi_task_loss((scores,), labels, multi_valued={0}, label_smoothing=smoothing).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-6
    assert target.sum().item() == pytest.approx(1.0)


def test_with_one_label_r_precision_is_the_accuracy() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(50, 6, generator=generator), torch.randint(6, (50,), generator=generator)
    torch.testing.assert_close(_r_precision(scores, F.one_hot(labels, 6)), _accuracy(scores, labels))


def test_r_precision_counts_as_many_best_labels_as_there_are() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    labels = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [UNLABELLED] * 4])
    found = _r_precision(scores, labels)
    assert found[:2].tolist() == [0.5, 1.0]
    assert found[2:].isnan().all()
