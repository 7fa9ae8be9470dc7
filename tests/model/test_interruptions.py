"""What training does when something comes in between: a signal, a full disk, a damaged image, a changed table."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import WEIGHTS, load_checkpoint
from model.checkpoint.weights import read_tensors
from model.config import ModelConfig
from model.errors import CatalogueError, ConfigError, TrainingError
from model.inputs.dataset import ListingDataset, TrainingBatch, TrainingBatches
from model.network.cma_clip import CMAClip
from model.tasks import Task
from model.training.config import OptimiserConfig, SituationWeights, TrainConfig
from model.training.train import train
from model.training.trainer import STATE, Trainer
from model.training.validation import Validation
from tests.conftest import write_catalogue


@pytest.fixture
def arguments(model_config: ModelConfig, train_config: TrainConfig) -> dict[str, Any]:
    return {"name": "t", "model": model_config, "config": train_config, "console": Console(file=io.StringIO())}


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / WEIGHTS)


@pytest.fixture
def steps(catalogue: Catalogue, train_config: TrainConfig) -> int:
    """Of an epoch."""
    return len(catalogue.part(Part.TRAIN)) // train_config.optimiser.batch_size


def same(one: Path, other: Path) -> bool:
    expected, actual = weights(one), weights(other)
    return expected.keys() == actual.keys() and all(torch.equal(expected[key], actual[key]) for key in expected)


def at_call(count: int, call: Callable[..., Any], happening: Callable[[], None]) -> Callable[..., Any]:
    """Return `call`, but for something that happens right before it is called for the `count`-th time."""
    calls = 0

    def wrapped(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            happening()
        return call(*given, **options)

    return wrapped


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize(("epochs", "more"), [(0, 3), (1, 0), (1, 1), (2, 0)])
def test_an_interrupted_run_resumes_as_if_it_had_not_been(
    catalogue: Catalogue,
    tmp_path: Path,
    arguments: dict[str, Any],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    more: int,
) -> None:
    """In the last step of an epoch too: that epoch is validated, and may be the best, all the same."""
    whole = train(catalogue, tmp_path / "whole", **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", at_call(epochs * steps + more, Trainer._update, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(catalogue, tmp_path / "parts", **arguments)
    assert (tmp_path / "parts" / STATE).is_file()
    assert same(train(catalogue, tmp_path / "parts", **arguments), whole)


@pytest.mark.parametrize("validation", [1, 2])
def test_a_run_that_ends_while_it_validates_loses_nothing(
    catalogue: Catalogue, tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, validation: int
) -> None:
    whole = train(catalogue, tmp_path / "whole", **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "__call__", at_call(validation, Validation.__call__, fail))
        with pytest.raises(OSError, match="no space"):
            train(catalogue, tmp_path / "parts", **arguments)
    assert same(train(catalogue, tmp_path / "parts", **arguments), whole)


def test_a_resumed_run_remembers_its_best(
    catalogue: Catalogue, tmp_path: Path, arguments: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(Validation, "__call__", lambda *_: {"score": next(scores)})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", at_call(steps + 2, Trainer._update, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(catalogue, tmp_path, **arguments)
    best = weights(tmp_path / "checkpoint")
    folder = train(catalogue, tmp_path, **arguments)
    assert all(torch.equal(best[key], value) for key, value in weights(folder).items())
    assert load_checkpoint(folder).training["validation"]["score"] == 0.9


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    catalogue: Catalogue, tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root of zero is zero, and its slope is not a number."""
    seen: list[dict[str, Tensor]] = []

    def steep(trainer: Trainer[CMAClip], batch: TrainingBatch, epoch: int) -> Any:
        seen.append({key: value.clone() for key, value in trainer.network.state_dict().items()})
        plain = trainer.loss

        def loss(network: CMAClip, batch: TrainingBatch, progress: float) -> dict[str, Tensor]:
            losses = plain(network, batch, progress)
            zero = sum(parameter.square().sum() for parameter in network.parameters()) * 0.0
            return losses | {"total": losses["total"] + torch.as_tensor(zero).sqrt()}

        trainer.loss = loss
        try:
            return update(trainer, batch, epoch)
        finally:
            seen.append(dict(trainer.network.state_dict()))

    update = Trainer._update
    monkeypatch.setattr(Trainer, "_update", steep)
    with pytest.raises(TrainingError, match="gradient is not finite at step 0"):
        train(catalogue, tmp_path, **arguments)
    before, after = seen
    trained = [key for key in before if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(before[key], after[key]) for key in trained)


def test_the_average_has_the_statistics_of_the_batches_too(
    catalogue: Catalogue, tasks: tuple[Task, ...], model_config: ModelConfig, train_config: TrainConfig, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 24 * 16), nn.Linear(3 * 24 * 16, 1))
    dataset = ListingDataset(catalogue, catalogue.part(Part.TRAIN), tasks, model_config.preprocess)
    statistics = []

    def validate(average: nn.Module) -> dict[str, float]:
        statistics.append(average.get_buffer("1.running_mean").mean().item())
        return {"score": 0.0}

    Trainer(
        network=network,
        loss=lambda module, batch, _: {"total": module(batch.pixels.float()).square().mean()},
        batches=TrainingBatches(dataset, batch_size=16, workers=0, seed=0),
        optimiser=train_config.optimiser,
        folder=tmp_path,
        device=torch.device("cpu"),
        validate=validate,
        save_best=lambda *_: None,
        fingerprint={},
        ema_decay=0.5,
    ).run()
    assert all(mean > 50 for mean in statistics), "pixels go from 0 to 255, mostly white; the statistics start at 0"


# --- what the catalogue may hold ---------------------------------------------------------------------------


def with_damaged_images(toml: Path, *damaged: int) -> Catalogue:
    for row in damaged:
        path = toml.parent / "images" / f"sku-{row}.png"
        path.write_bytes(path.read_bytes()[:60])
    return Catalogue.open(toml)


def test_a_damaged_image_is_named_and_its_listing_used_without_it(
    tmp_path: Path, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write_catalogue(tmp_path / "shop", 120)
    table = toml.parent / "table.csv"
    lines = table.read_text().splitlines()
    lines[6] = lines[6].rpartition(",")[0] + ","  # row 5 has no title either: nothing is left of it
    table.write_text("\n".join(lines) + "\n")
    train(with_damaged_images(toml, *range(12)), tmp_path / "run", **arguments)
    said = capsys.readouterr().err
    assert "sku-5.png: the image cannot be decoded" in said
    assert said.count("sku-5.png") == 1


def test_a_run_of_a_table_that_has_changed_is_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    toml = write_catalogue(tmp_path / "shop", 120)
    train(Catalogue.open(toml), tmp_path / "run", **arguments)
    with pytest.raises(TrainingError, match="another catalogue or configuration"):
        train(Catalogue.open(toml), tmp_path / "run", **arguments | {"name": "other"})
    table = toml.parent / "table.csv"
    table.write_text(table.read_text().replace(",Red,", ",Blue,", 1))
    with pytest.raises(TrainingError, match="another catalogue or configuration"):
        train(Catalogue.open(toml), tmp_path / "run", **arguments)


def test_a_finished_run_whose_checkpoint_is_gone_says_so(
    catalogue: Catalogue, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    folder = train(catalogue, tmp_path / "run", **arguments)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match="its checkpoint is gone"):
        train(catalogue, tmp_path / "run", **arguments)


def test_a_state_that_cannot_be_read_is_named(catalogue: Catalogue, tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(catalogue, tmp_path, **arguments)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=rf"{STATE} cannot be read"):
        train(catalogue, tmp_path, **arguments)


def test_a_run_needs_a_folder(catalogue: Catalogue, tmp_path: Path, arguments: dict[str, Any]) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match="is a file"):
        train(catalogue, tmp_path / "run", **arguments)


def test_too_small_a_catalogue_is_refused_before_anything_is_written(tmp_path: Path, arguments: dict[str, Any]) -> None:
    config = arguments["config"]
    optimiser = dataclasses.replace(config.optimiser, batch_size=1000)
    arguments |= {"config": dataclasses.replace(config, optimiser=optimiser)}
    with pytest.raises(TrainingError, match="do not fill one batch"):
        train(Catalogue.open(write_catalogue(tmp_path / "shop", 120)), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_validation_part_without_labels_is_refused_before_training(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Four groups, none of which falls into the validation part."""
    toml = write_catalogue(tmp_path / "shop", 120)
    toml.write_text(toml.read_text() + 'group = "colour"\n')
    with pytest.raises(CatalogueError, match="validation part holds no labelled listing"):
        train(Catalogue.open(toml), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_images_alone_are_trained_where_few_listings_have_one(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Most batches have none, and teach nothing then."""
    toml = write_catalogue(tmp_path / "shop", 120)
    for listing in Catalogue.open(toml).part(Part.TRAIN)[6:]:
        (toml.parent / "images" / f"{listing.id}.png").unlink()
    images = SituationWeights(image_and_title=0.0, image=1.0, title=0.0)
    arguments |= {"config": dataclasses.replace(arguments["config"], weights=images)}
    assert train(Catalogue.open(toml), tmp_path / "run", **arguments).is_dir()
    for listing in Catalogue.open(toml).part(Part.TRAIN)[:6]:
        (toml.parent / "images" / f"{listing.id}.png").unlink()
    with pytest.raises(ConfigError, match="no listing of the train part belongs to a situation"):
        train(Catalogue.open(toml), tmp_path / "other", **arguments)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**40}, {"weight_decay": -1.0}, {"backbone_rate": -0.1}])
def test_impossible_optimisers_are_refused(train_config: TrainConfig, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimiserConfig(**{"epochs": 1, "batch_size": 1, "learning_rate": 1.0, **wrong})
