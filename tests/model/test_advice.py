"""What is recommended follows the size of the catalogue, and says how its time was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.catalogue.check import check_catalogue, check_listings
from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.config import ModelConfig
from model.tasks import Task
from model.training import advice
from model.training.advice import advise, seconds_per_step
from model.training.config import TrainConfig
from model.training.train import default_config, default_initial


def test_it_is_what_training_does_by_default(catalogue: Catalogue) -> None:
    advised = advise(check_listings(catalogue), timed=False)
    assert advised is not None
    config = default_config(catalogue, default_initial(catalogue)).optimiser
    assert (advised.epochs, advised.batch_size) == (config.epochs, config.batch_size)
    assert advised.steps == config.epochs * (len(catalogue.part(Part.TRAIN)) // config.batch_size)
    assert (advised.start, advised.pretrain, advised.minutes) == ("ImageNet weights", False, None)


def test_a_large_catalogue_is_pre_trained(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.training.train.FEW_LISTINGS", 10)
    advised = advise(check_listings(catalogue), timed=False)
    assert advised is not None
    assert (advised.start, advised.pretrain) == ("random weights", True)


def test_the_minutes_are_those_of_all_steps(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "seconds_per_step", lambda *_: 6.0)
    advised = advise(check_listings(catalogue))
    assert advised is not None
    assert advised.minutes == pytest.approx(advised.steps / 10)
    assert "3 optimiser steps" in advised.basis


def test_a_step_is_timed(model_config: ModelConfig, train_config: TrainConfig, tasks: tuple[Task, ...]) -> None:
    assert 0 < seconds_per_step(model_config, train_config, tasks) < 60


def test_nothing_is_recommended_for_what_training_refuses(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("id,title,colour\n1,Shirt,Red\n")
    toml = tmp_path / "shop.toml"
    toml.write_text('[catalogue]\ntable = "table.csv"\nid = "id"\ntitle = "title"\nattributes = ["colour"]\n')
    assert advise(check_catalogue(toml)) is None
