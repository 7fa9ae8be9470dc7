"""Fine-tuning on a real (small) catalogue: it learns, starts from what it is given, resumes exactly, keeps the best."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.checkpoint.folder import WEIGHTS, load_checkpoint
from model.checkpoint.weights import read_tensors
from model.config import ModelConfig, to_json
from model.errors import ConfigError, TrainingError
from model.inputs.augment import CORRUPTION_SHARES, AugmentConfig
from model.inputs.dataset import ListingDataset, TrainingBatch, collate
from model.inputs.normalise import TensorTransform
from model.network import towers
from model.network.cma_clip import CMAClip, build_cma_clip
from model.network.losses import multi_task_loss
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED, Task
from model.training import initialise
from model.training import train as train_module
from model.training.config import SituationWeights, TrainConfig, clip_training, small_training
from model.training.initialise import initial_model, initial_network, keep_heads
from model.training.objective import TrainingLoss, drop_modalities, mismatched
from model.training.train import FineTuning, default_config, train
from model.training.trainer import Trainer
from model.training.validation import Validation
from tests.conftest import TINY_BACKBONE


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / WEIGHTS)


def test_training_learns_the_shapes(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, train_config: TrainConfig, console: Console
) -> None:
    longer = dataclasses.replace(
        train_config, optimiser=dataclasses.replace(train_config.optimiser, epochs=6, learning_rate=1e-2)
    )
    folder = train(catalogue, tmp_path, name="tiny", model=model_config, config=longer, console=console)
    checkpoint = load_checkpoint(folder)
    assert [task.name for task in checkpoint.tasks] == ["colour", "shape"]
    assert checkpoint.training["validation"]["title"] > 0.9
    assert checkpoint.training["validation"]["image_and_title"] > 0.9
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_catalogue_and_a_folder_are_enough(
    catalogue: Catalogue, tmp_path: Path, train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default backbone and preset are of another size than a test's."""
    monkeypatch.setattr(train_module, "FEW_LISTINGS", 0)
    monkeypatch.setattr(initialise, "DEFAULT_BACKBONE", "tiny")
    monkeypatch.setattr(towers, "BACKBONES", {"tiny": TINY_BACKBONE})
    monkeypatch.setattr(train_module, "small_training", lambda listings: train_config if listings > 100 else None)
    checkpoint = load_checkpoint(train(catalogue, tmp_path))
    assert (checkpoint.name, checkpoint.config.backbone_name) == ("cma-clip", "tiny")
    assert checkpoint.training["config"] == to_json(train_config)
    again = load_checkpoint(train(catalogue, tmp_path / "again", initial=tmp_path / "checkpoint"))
    assert again.training["initial"]["version"] == checkpoint.version


def test_the_preset_depends_on_the_start_and_the_number_of_listings(
    catalogue: Catalogue, checkpoint_folder: Path
) -> None:
    listings = len(catalogue.part(Part.TRAIN))
    assert default_config(catalogue, None) == small_training(listings)
    assert default_config(catalogue, str(checkpoint_folder)) == small_training(listings)
    assert default_config(catalogue, "openai") == clip_training(listings)


def test_a_run_says_at_its_start_what_was_chosen(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, train_config: TrainConfig, console: Console
) -> None:
    train(catalogue, tmp_path, model=model_config, config=train_config, console=console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert f"{len(catalogue.part(Part.TRAIN))} training listings: 2 epochs of 11 batches of 16" in said
    assert said.index("training listings") < said.index("epoch 1/2")


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    catalogue: Catalogue,
    tmp_path: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments: dict[str, Any] = {"name": "t", "model": model_config, "config": train_config, "console": console}
    whole = train(catalogue, tmp_path / "whole", **arguments)

    update, steps = Trainer._update, 0

    def interrupted_update(trainer: Trainer[CMAClip], batch: TrainingBatch, epoch: int) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            trainer._save()
            raise KeyboardInterrupt
        return update(trainer, batch, epoch)

    monkeypatch.setattr(Trainer, "_update", interrupted_update)
    with pytest.raises(KeyboardInterrupt):
        train(catalogue, tmp_path / "parts", **arguments)
    resumed = train(catalogue, tmp_path / "parts", **arguments)
    expected, actual = tensors(whole), tensors(resumed)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_a_run_of_other_arguments_is_not_resumed(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, train_config: TrainConfig, console: Console
) -> None:
    arguments: dict[str, Any] = {"name": "t", "model": model_config, "console": console}
    train(catalogue, tmp_path, config=train_config, **arguments)
    other = dataclasses.replace(train_config, label_smoothing=0.2)
    with pytest.raises(TrainingError, match="another catalogue or configuration"):
        train(catalogue, tmp_path, config=other, **arguments)


def test_a_start_from_a_trained_checkpoint_keeps_towers_and_fusion(checkpoint_folder: Path) -> None:
    other = (Task(name="sleeve", labels=("long", "short", "none")),)
    network = initial_network(initial_model(None, str(checkpoint_folder)), other, str(checkpoint_folder))
    stored, actual = tensors(checkpoint_folder), network.state_dict()
    kept = [key for key in stored if key.startswith(("backbone.", "sequence_attention."))]
    assert kept
    assert all(torch.equal(actual[key], stored[key].float()) for key in kept)
    assert actual["heads.0.3.weight"].shape[0] == 3


def test_heads_are_kept_where_that_is_asked_for(
    catalogue: Catalogue,
    tmp_path: Path,
    checkpoint_folder: Path,
    tasks: tuple[Task, ...],
    model_config: ModelConfig,
    train_config: TrainConfig,
    console: Console,
) -> None:
    network = build_cma_clip(model_config, tasks)
    keep_heads(network, tasks, str(checkpoint_folder))
    stored, actual = tensors(checkpoint_folder), network.state_dict()
    assert all(torch.equal(actual[key], stored[key].float()) for key in stored)
    with pytest.raises(ConfigError, match="needs a checkpoint folder"):
        keep_heads(network, tasks, None)
    other = (Task(name="sleeve", labels=("long", "short")),)
    with pytest.raises(ConfigError, match="knows other attributes or labels"):
        keep_heads(build_cma_clip(model_config, other), other, str(checkpoint_folder))
    # A step so small that nothing is learned shows what training started from.
    still = dataclasses.replace(train_config.optimiser, epochs=1, learning_rate=1e-9)
    config = dataclasses.replace(train_config, optimiser=still, keep_heads=True)
    arguments: dict[str, Any] = {"name": "t", "model": model_config, "console": console}
    end = train(catalogue, tmp_path / "run", config=config, initial=str(checkpoint_folder), **arguments)
    heads = [key for key in stored if key.startswith("heads.")]
    assert all(torch.allclose(tensors(end)[key], stored[key], atol=1e-3) for key in heads)


def test_an_unknown_start_is_refused(model_config: ModelConfig, tasks: tuple[Task, ...]) -> None:
    model = dataclasses.replace(model_config, backbone_name="ViT-B-32")
    with pytest.raises(ConfigError, match="neither a file nor a pretrained tag"):
        initial_network(model, tasks, "no-such-tag")


def test_every_parameter_gets_a_gradient(
    catalogue: Catalogue, tasks: tuple[Task, ...], model_config: ModelConfig, train_config: TrainConfig
) -> None:
    network = build_cma_clip(model_config, tasks).train()
    dataset = ListingDataset(catalogue, catalogue.listings[:16], tasks, model_config.preprocess)
    # Two steps: the modality attention starts at zero, and what stands before it must learn through it too.
    batch = collate([dataset[i] for i in range(16)])
    TrainingLoss(train_config, dataset.transform)(network, batch, 0.5)["total"].backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_loss_of_a_batch_is_the_sum_over_attributes_of_means_over_labelled_rows() -> None:
    logits = (torch.randn(3, 4), torch.randn(3, 2))
    labels = torch.tensor([[1, 0], [UNLABELLED, 1], [OUT_OF_VOCABULARY, 1]])
    expected = -logits[0].log_softmax(1)[0, 1] - logits[1].log_softmax(1)[torch.arange(3), labels[:, 1]].mean()
    assert torch.allclose(multi_task_loss(logits, labels), expected)
    none = torch.full((3, 2), UNLABELLED)
    assert multi_task_loss(logits, none).item() == 0.0


def test_rows_without_a_modality_leave_the_unimodal_losses_finite(
    network: CMAClip, train_config: TrainConfig, model_config: ModelConfig
) -> None:
    batch = TrainingBatch(
        pixels=torch.randint(0, 255, (3, 3, 24, 16), dtype=torch.uint8),
        tokens=torch.tensor([[49406, 320, 49407], [0, 0, 0], [49406, 321, 49407]]),
        labels=torch.tensor([[0, 1], [1, 0], [2, 1]]),
        has_image=torch.tensor([True, True, False]),
        has_title=torch.tensor([True, False, True]),
    )
    losses = TrainingLoss(train_config, TensorTransform(model_config.preprocess))(network, batch, 0.5)
    losses["total"].backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_mismatched_pair_counts_by_its_share_and_asks_for_the_labels_of_either_listing(
    network: CMAClip, train_config: TrainConfig, model_config: ModelConfig
) -> None:
    batch = TrainingBatch(
        pixels=torch.randint(0, 255, (3, 3, 24, 16), dtype=torch.uint8),
        tokens=torch.tensor([[49406, 320, 49407], [49406, 322, 49407], [49406, 321, 49407]]),
        labels=torch.tensor([[0, 1], [1, 0], [2, 1]]),
        has_image=torch.tensor([True, True, True]),
        has_title=torch.tensor([True, True, True]),
    )
    config = dataclasses.replace(
        train_config,
        weights=SituationWeights(image_and_title=2.0, image=0, title=0),
        modality_dropout=0,
        mismatched_titles=0.3,
        mismatched_images=0.1,
    )
    transform = TensorTransform(model_config.preprocess)
    network.eval()
    losses = TrainingLoss(config, transform)(network, batch, 0.5)
    image = network.backbone.encode_image(transform.normalise(batch.pixels))
    text = network.backbone.encode_text(batch.tokens)

    def loss(title_of: list[int], labels_of: list[int]) -> torch.Tensor:
        logits = network(image, text.select(torch.tensor(title_of))).logits
        return multi_task_loss(logits, batch.labels[labels_of], label_smoothing=config.label_smoothing)

    own, before = [0, 1, 2], [2, 0, 1]
    expected = 2.0 * (0.6 * loss(own, own) + 0.3 * loss(before, own) + 0.1 * loss(before, before))
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-4)
    annealed = TrainingLoss(dataclasses.replace(config, anneal=0.5), transform)
    late = 2.0 * (0.8 * loss(own, own) + 0.15 * loss(before, own) + 0.05 * loss(before, before))
    assert annealed(network, batch, 0.5)["total"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert annealed(network, batch, 1.0)["total"].item() == pytest.approx(late.item(), rel=1e-4)
    none = dataclasses.replace(config, mismatched_titles=0, mismatched_images=0)
    assert "mismatched" not in TrainingLoss(none, transform)(network, batch, 0.5)


def incomplete_batch() -> TrainingBatch:
    """Seven listings, each of which lacks something: labels, the image or the title."""
    generator = torch.Generator().manual_seed(1)
    words = [[49406, 320 + row, 49407] if row % 3 else [0, 0, 0] for row in range(7)]
    return TrainingBatch(
        pixels=torch.randint(0, 255, (7, 3, 24, 16), dtype=torch.uint8, generator=generator),
        tokens=torch.tensor(words),
        labels=torch.tensor(
            [[0, UNLABELLED], [1, 0], [UNLABELLED, 1], [UNLABELLED, UNLABELLED], [OUT_OF_VOCABULARY, 1], [3, 0], [2, 0]]
        ),
        has_image=torch.tensor([True, False, True, True, True, False, True]),
        has_title=torch.tensor([bool(each[0]) for each in words]),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_the_losses_and_gradients_of_a_batches_parts_add_up_to_its_own(
    network: CMAClip, train_config: TrainConfig, model_config: ModelConfig, size: int
) -> None:
    """Whatever is missing where: a mean is over what the whole batch has, never a mean of means."""
    optimiser = dataclasses.replace(train_config.optimiser, micro_batch=size)
    undrawn = dataclasses.replace(train_config, modality_dropout=0.0, mismatched_titles=0.0, mismatched_images=0.0)
    config = dataclasses.replace(undrawn, optimiser=optimiser)
    loss, batch = TrainingLoss(config, TensorTransform(model_config.preprocess)), incomplete_batch()

    def backward(parts: Sequence[TrainingBatch]) -> tuple[dict[str, float], list[torch.Tensor]]:
        network.zero_grad()
        sums: dict[str, float] = {}
        for part in parts:
            losses = loss(network, part, 0.5)
            losses["total"].backward()  # type: ignore[no-untyped-call]
            sums = {name: sums.get(name, 0.0) + value.item() for name, value in losses.items()}
        return sums, [each.grad.clone() for each in network.parameters() if each.grad is not None]

    parts = loss.split(batch)
    assert max(len(part.labels) for part in parts) <= size
    (expected, gradients), (actual, added) = backward([batch]), backward(parts)
    assert actual == pytest.approx(expected, rel=1e-5)
    for one, other in zip(gradients, added, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_mismatched_pairs_of_parts_count_as_much_as_those_of_the_whole(
    network: CMAClip, train_config: TrainConfig, model_config: ModelConfig
) -> None:
    """Of equal listings every pairing is the same, and so is the loss."""
    rows = torch.zeros(8, dtype=torch.long)
    one = TrainingBatch(
        pixels=torch.full((1, 3, 24, 16), 7, dtype=torch.uint8),
        tokens=torch.tensor([[49406, 320, 49407]]),
        labels=torch.tensor([[0, 1]]),
        has_image=torch.tensor([True]),
        has_title=torch.tensor([True]),
    )
    batch = TrainingBatch(*(getattr(one, each.name)[rows] for each in dataclasses.fields(one)))
    optimiser = dataclasses.replace(train_config.optimiser, micro_batch=3)
    config = dataclasses.replace(train_config, optimiser=optimiser, modality_dropout=0.0, mismatched_titles=0.3)
    loss = TrainingLoss(config, TensorTransform(model_config.preprocess))
    parts = loss.split(batch)
    assert [len(part.labels) for part in parts] == [3, 3, 2]
    whole = loss(network, batch, 0.5)["mismatched"].item()
    assert whole > 0
    assert sum(loss(network, part, 0.5)["mismatched"].item() for part in parts) == pytest.approx(whole, rel=1e-5)


def test_a_run_in_micro_batches_learns_what_a_run_in_batches_does(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, train_config: TrainConfig, console: Console
) -> None:
    undrawn = dataclasses.replace(train_config, modality_dropout=0.0, mismatched_titles=0.0, mismatched_images=0.0)
    parts = dataclasses.replace(undrawn, optimiser=dataclasses.replace(undrawn.optimiser, micro_batch=5))
    folders = [
        train(catalogue, tmp_path / name, model=model_config, config=config, console=console)
        for name, config in (("whole", undrawn), ("parts", parts))
    ]
    expected, actual = (load_checkpoint(folder).training["validation"] for folder in folders)
    assert actual == pytest.approx(expected, abs=0.1)


def test_lower_blocks_stay_as_they_were_given(
    catalogue: Catalogue,
    tmp_path: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    checkpoint_folder: Path,
    console: Console,
) -> None:
    config = dataclasses.replace(train_config, freeze=1)
    folder = train(
        catalogue, tmp_path / "run", model=model_config, config=config, initial=checkpoint_folder, console=console
    )
    before, after = tensors(checkpoint_folder), tensors(folder)
    same = {key for key in before if key in after and torch.equal(before[key], after[key])}
    assert {key for key in before if key.startswith("backbone.")} <= same, "each tower has one block"
    assert not any(key.startswith("sequence_attention.blocks.0.mlp") for key in same)


def test_corruption_shares_fall_along_a_line_and_nothing_else_changes(train_config: TrainConfig) -> None:
    augment = AugmentConfig(corrupted_images=0.2, blank_images=0.02, title_dropout=0.3, label_word_dropout=0.04)
    config = dataclasses.replace(
        train_config, anneal=0.5, augment=augment, modality_dropout=0.1, mismatched_titles=0.08, mismatched_images=0.02
    )

    def shares(at: TrainConfig) -> list[float]:
        varied = [getattr(at.augment, name) for name in CORRUPTION_SHARES]
        return [at.modality_dropout, at.mismatched_titles, at.mismatched_images, *varied]

    for progress, factor in ((0.0, 1.5), (0.25, 1.25), (0.5, 1.0), (1.0, 0.5)):
        assert shares(config.at(progress)) == pytest.approx([factor * share for share in shares(config)])
    constant = dataclasses.replace(config, anneal=0.0)
    assert constant.at(0.0) == constant.at(0.5) == constant.at(1.0) == config.at(0.5) == constant


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"anneal": 1.5}, "anneal must be from 0 to 1"),
        ({"anneal": 1.0, "mismatched_titles": 0.6}, "at the start of training"),
    ],
)
def test_an_impossible_fall_is_refused(train_config: TrainConfig, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(train_config, **wrong)


def test_training_varies_each_epoch_by_the_shares_of_its_middle(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, train_config: TrainConfig, console: Console
) -> None:
    given: list[Any] = []

    class Recording(FineTuning):
        def dataset(
            self, listings: Sequence[Listing], augment: Sequence[AugmentConfig] | None = None
        ) -> ListingDataset:
            given.append(augment)
            return super().dataset(listings, augment)

    augment = AugmentConfig(title_dropout=0.2)
    config = dataclasses.replace(train_config, augment=augment, anneal=1.0)
    Recording(catalogue, name="t", model=model_config, config=config, initial=None, console=console).run(tmp_path)
    assert given[1] is None  # the validation part
    assert [each.title_dropout for each in given[0]] == pytest.approx([0.3, 0.1])
    assert [each.crop for each in given[0]] == [augment.crop, augment.crop]


def test_modalities_are_dropped_one_at_a_time_and_never_the_only_one() -> None:
    torch.manual_seed(0)
    image = torch.tensor([True, True, False]).repeat(2000)
    title = torch.tensor([True, False, True]).repeat(2000)
    kept_image, kept_title = drop_modalities(image, title, 0.4)
    assert (kept_image | kept_title).all()
    assert not (kept_image & ~image).any()
    both = image & title
    assert (~kept_image[both]).float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert (~kept_title[both]).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_an_image_meets_another_listings_title_only_where_there_are_both() -> None:
    image = torch.tensor([True, True, False, True])
    title = torch.tensor([True, True, True, False])
    images, titles = mismatched(image, title)
    assert images.tolist() == [1, 3]  # the first listing's neighbour is the last, which has no title
    assert titles.tolist() == [0, 2]
    alone = torch.tensor([True])
    assert mismatched(alone, alone)[0].tolist() == []


def test_a_locked_image_tower_stays_as_it_was_given(
    catalogue: Catalogue, tmp_path: Path, model_config: ModelConfig, train_config: TrainConfig, console: Console
) -> None:
    arguments: dict[str, Any] = {"name": "t", "model": model_config, "console": console}
    start = train(catalogue, tmp_path / "start", config=train_config, **arguments)
    locked = dataclasses.replace(train_config, lock_image=True)
    end = train(catalogue, tmp_path / "end", config=locked, initial=str(start), **arguments)
    before, after = tensors(start), tensors(end)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("backbone.image.") for name in changed)  # batch statistics neither
    assert any(name.startswith("backbone.text.") for name in changed)


def test_a_situation_without_weight_is_not_computed(
    network: CMAClip,
    catalogue: Catalogue,
    tasks: tuple[Task, ...],
    model_config: ModelConfig,
    train_config: TrainConfig,
) -> None:
    dataset = ListingDataset(catalogue, catalogue.listings[:8], tasks, model_config.preprocess)
    batch = collate([dataset[i] for i in range(8)])
    alone = dataclasses.replace(train_config, weights=SituationWeights(image_and_title=0, image=1, title=0))
    losses = TrainingLoss(alone, dataset.transform)(network, batch, 0.5)
    assert losses.keys() == {"image", "total"}
    losses["total"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in network.backbone.text.parameters())
    assert any(p.grad is not None and p.grad.any() for p in network.backbone.image.parameters())


def test_validation_scores_what_is_trained(
    network: CMAClip, catalogue: Catalogue, tasks: tuple[Task, ...], model_config: ModelConfig
) -> None:
    dataset = ListingDataset(catalogue, catalogue.listings[:40], tasks, model_config.preprocess)
    weights = SituationWeights(image_and_title=0, image=1, title=1)
    scores = Validation(dataset, weights, device=torch.device("cpu"), workers=0)(network)
    assert scores.keys() == {"image_and_title", "image", "title", "score"}
    assert scores["score"] == pytest.approx((scores["image"] + scores["title"]) / 2)


@pytest.mark.parametrize("weights", [{"image_and_title": 0, "image": 0, "title": 0}, {"image": -1}])
def test_impossible_situation_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="one at least must be positive"):
        SituationWeights(**weights)
