"""The trainer: guards, parameter groups, schedule, moving average, early end, and a log that is closed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.folder import load_checkpoint
from model.config import ModelConfig, PreprocessConfig
from model.errors import TrainingError
from model.inputs.dataset import ListingDataset, TrainingBatch, TrainingBatches
from model.network.cma_clip import CMAClip, build_cma_clip
from model.tasks import Task
from model.training.config import OptimiserConfig, TrainConfig
from model.training.log import TrainingLog
from model.training.objective import TrainingLoss
from model.training.optimiser import moving_average, parameter_groups, rate_factor
from model.training.pretrain import ContrastiveModel
from model.training.trainer import Trainer

PREPROCESS = PreprocessConfig(image_size=(24, 16), context_length=16)

SHIPPED = Path(__file__).parents[2] / "weights" / "fashion"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_a_non_finite_loss_stops_before_the_update(
    catalogue: Catalogue,
    tasks: tuple[Task, ...],
    tmp_path: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    console: Console,
) -> None:
    network = build_cma_clip(model_config, tasks)
    dataset = ListingDataset(catalogue, catalogue.part(Part.TRAIN), tasks, model_config.preprocess)
    seen: list[dict[str, torch.Tensor]] = []

    def poisoned(module: CMAClip, batch: TrainingBatch, progress: float) -> dict[str, torch.Tensor]:
        seen.append({key: value.clone() for key, value in module.state_dict().items()})
        loss = TrainingLoss(train_config, dataset.transform)(module, batch, progress)
        return loss | {"total": loss["total"] * (float("nan") if len(seen) == 3 else 1.0)}

    trainer = Trainer(
        network=network,
        loss=poisoned,
        batches=TrainingBatches(dataset, batch_size=16, workers=0, seed=0),
        optimiser=train_config.optimiser,
        folder=tmp_path,
        device=torch.device("cpu"),
        validate=lambda _: {"score": 0.0},
        save_best=lambda _network, _scores: None,
        fingerprint={},
        ema_decay=0.9,
        console=console,
    )
    with pytest.raises(TrainingError, match=r"epoch 1, batch 2 \(step 2\)"):
        trainer.run()
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in seen[-1].items())


class Run:
    """A run of a small network whose validation gives `scores` in turn, epoch by epoch."""

    def __init__(
        self, catalogue: Catalogue, folder: Path, scores: list[float], *, patience: float, tolerance: float = 0.0
    ) -> None:
        self.dataset = ListingDataset(catalogue, catalogue.part(Part.TRAIN)[:8], (), PREPROCESS)
        self.folder, self.scores, self.patience, self.tolerance = folder, scores, patience, tolerance
        self.saved: list[float] = []
        self.said = io.StringIO()

    def trainer(self) -> Trainer[nn.Sequential]:
        def validate(_: nn.Sequential) -> dict[str, float]:
            return {"score": self.scores[trainer.validated]}

        def loss(network: nn.Sequential, batch: TrainingBatch, _: float) -> dict[str, torch.Tensor]:
            return {"total": network(batch.pixels.float()).square().mean()}

        trainer = Trainer(
            network=nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 16, 1)),
            loss=loss,
            batches=TrainingBatches(self.dataset, batch_size=4, workers=0, seed=0),
            optimiser=OptimiserConfig(
                epochs=len(self.scores),
                batch_size=4,
                learning_rate=1e-5,
                patience=self.patience,
                tolerance=self.tolerance,
                workers=0,
            ),
            folder=self.folder,
            device=torch.device("cpu"),
            validate=validate,
            save_best=lambda _, scores: self.saved.append(scores["score"]),
            fingerprint={},
            ema_decay=0.5,
            console=Console(file=self.said, width=300),
        )
        return trainer


FALLING = [0.1, 0.5, 0.4, 0.3, 0.9, 0.9, 0.9, 0.9]


def test_training_ends_where_validation_falls_and_keeps_the_best(catalogue: Catalogue, tmp_path: Path) -> None:
    run = Run(catalogue, tmp_path, FALLING, patience=0.25)
    trainer = run.trainer()
    assert trainer.run() == 0.5
    assert (trainer.validated, trainer.best_epoch) == (4, 2)
    assert run.saved == [0.1, 0.5]
    assert (
        "no better validation score in 2 epochs: training ends after epoch 4 of 8, and epoch 2 is kept"
        in run.said.getvalue()
    )
    # Started again, it has ended.
    again = run.trainer()
    assert again.run() == 0.5
    assert (again.step, again.validated) == (trainer.step, 4)
    assert run.saved == [0.1, 0.5]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_ends_early_where_an_uninterrupted_one_does(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    run = Run(catalogue, tmp_path, FALLING, patience=0.25)
    validate = Trainer._validate_epoch

    def interrupted(trainer: Trainer[Any], at: int, log: TrainingLog) -> None:
        if at == epoch:
            trainer._save()
            raise KeyboardInterrupt
        validate(trainer, at, log)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.trainer().run()
    trainer = run.trainer()
    assert trainer.run() == 0.5
    assert (trainer.validated, trainer.best_epoch) == (4, 2)
    assert run.saved == [0.1, 0.5]


@pytest.mark.parametrize(
    ("patience", "scores"),
    [
        (1.0, [0.5, *[0.1] * 7]),
        (0.5, [0.5, 0.4, 0.4, 0.4, 0.6, 0.1, 0.1, 0.1]),  # better again just in time
    ],
)
def test_training_goes_to_its_end_where_patience_lasts(
    catalogue: Catalogue, tmp_path: Path, patience: float, scores: list[float]
) -> None:
    run = Run(catalogue, tmp_path, scores, patience=patience)
    trainer = run.trainer()
    trainer.run()
    assert trainer.validated == 8
    assert "no better validation score" not in run.said.getvalue()


def test_a_later_epoch_within_the_tolerance_of_the_best_replaces_it(catalogue: Catalogue, tmp_path: Path) -> None:
    """However many follow one another, none may be further below the very best than the tolerance."""
    scores = [0.5, 0.8, 0.79, 0.785, 0.775, 0.79, 0.6]
    run = Run(catalogue, tmp_path, scores, patience=1, tolerance=0.02)
    assert run.trainer().run() == 0.8
    assert run.saved == [0.5, 0.8, 0.79, 0.785, 0.79]


def test_the_log_is_closed_when_training_fails(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[SummaryWriter] = []
    close = SummaryWriter.close

    def noted(writer: SummaryWriter) -> None:
        closed.append(writer)
        close(writer)

    monkeypatch.setattr(SummaryWriter, "close", noted)
    trainer = Run(catalogue, tmp_path, FALLING, patience=1).trainer()
    monkeypatch.setattr(trainer, "loss", lambda *_: {"total": torch.tensor(float("inf"))})
    with pytest.raises(TrainingError, match="the loss is inf"):
        trainer.run()
    assert len(closed) == 1


def test_the_average_follows_closely_at_first_and_by_its_decay_in_the_end() -> None:
    move = moving_average(0.9)
    for updates, remembered in ((1, 1 - 2 ** (-2 / 3)), (7, 0.75), (1000, 0.9)):
        average, value = torch.zeros(2), torch.ones(2)
        move([average], [value], updates)
        assert average.tolist() == pytest.approx([1 - remembered] * 2)
    moving_average(0.0)([average], [value], 5)
    assert torch.equal(average, value)


def test_the_towers_learn_at_their_own_rate_and_vectors_and_embeddings_do_not_decay(
    network: CMAClip, model_config: ModelConfig
) -> None:
    """By modules, as names say it too: of the tiny network, the shipped one, and the one that is pre-trained."""
    shipped = load_checkpoint(SHIPPED)
    networks = (
        network,
        build_cma_clip(shipped.config, shipped.tasks),
        ContrastiveModel(build_cma_clip(model_config, shipped.tasks).backbone, 16),
    )
    config = OptimiserConfig(epochs=1, batch_size=1, learning_rate=1.0, backbone_rate=0.1, embedding_rate=4.0)
    for each in networks:
        groups = parameter_groups(each, config)
        by_identity = {id(p): group for group in groups for p in group["params"]}
        assert len(by_identity) == sum(len(group["params"]) for group in groups) == len(list(each.parameters()))
        for name, parameter in each.named_parameters():
            group = by_identity[id(parameter)]
            rate = 0.4 if "token_embedding" in name else 0.1 if name.startswith("backbone.") else 1.0
            assert group["peak"] == rate, name
            assert (group["weight_decay"] == 0) == (parameter.ndim < 2 or "embedding" in name), name


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    factors = [rate_factor(step, 100, warmup=10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[99] < 0.001
