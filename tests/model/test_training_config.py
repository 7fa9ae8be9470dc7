"""Presets: what is chosen for a catalogue of which size, and how it is said."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError
from model.training.config import (
    OptimiserConfig,
    Schedule,
    clip_schedule,
    clip_training,
    describe_schedule,
    pretraining_schedule,
    small_pretraining,
    small_schedule,
    small_training,
)


def test_a_large_catalogue_is_trained_as_the_shipped_checkpoint_was() -> None:
    assert small_schedule(30_139) == Schedule(epochs=12, batch_size=128)
    assert clip_schedule(30_139) == Schedule(epochs=10, batch_size=128)
    assert pretraining_schedule(30_133) == Schedule(epochs=2, batch_size=256)


def test_a_small_catalogue_gets_smaller_batches_and_more_epochs() -> None:
    """1,500 listings are what 2,000 rows leave for training: 11 batches of 128."""
    for preset in (small_training, clip_training):
        few, many = preset(1_500).optimiser, preset(30_139).optimiser
        assert few.batch_size < many.batch_size
        assert few.epochs > many.epochs
        assert dataclasses.replace(few, epochs=many.epochs, batch_size=many.batch_size) == many
    few_pairs, many_pairs = small_pretraining(1_500).optimiser, small_pretraining(30_133).optimiser
    assert few_pairs.batch_size < many_pairs.batch_size
    assert few_pairs.epochs > many_pairs.epochs


@given(st.integers(1, 100_000))
def test_schedules_fill_batches_and_reach_their_steps(examples: int) -> None:
    for choose, smallest, steps in (
        (small_schedule, 32, 1_500),
        (clip_schedule, 32, 1_000),
        (pretraining_schedule, 64, 200),
    ):
        chosen = choose(examples)
        assert chosen.batch_size >= smallest
        if examples >= smallest:
            assert examples // chosen.batch_size * chosen.epochs >= steps
        more = choose(examples + 1_000)
        assert more.batch_size >= chosen.batch_size


def test_what_was_chosen_is_said_with_the_reason() -> None:
    usual = small_training(30_139).optimiser
    assert describe_schedule(30_139, "training listings", usual, usual) == (
        "30,139 training listings: 12 epochs of 235 batches of 128, 2,820 optimiser steps "
        "(the default for this number of training listings)"
    )
    shorter = dataclasses.replace(usual, epochs=3)
    assert describe_schedule(30_139, "training listings", shorter, usual) == (
        "30,139 training listings: 3 epochs of 235 batches of 128, 705 optimiser steps "
        "(as set; the default here is 12 epochs of batches of 128)"
    )


@pytest.mark.parametrize(("patience", "epochs", "patient"), [(0.5, 12, 6), (0.5, 3, 2), (0.5, 1, 1), (1.0, 12, 12)])
def test_patience_is_a_share_of_the_epochs(patience: float, epochs: int, patient: int) -> None:
    optimiser = OptimiserConfig(epochs=epochs, batch_size=1, learning_rate=1.0, patience=patience)
    assert optimiser.patient_epochs == patient


@pytest.mark.parametrize("patience", [0.0, -0.5, 1.5])
def test_an_impossible_patience_is_refused(patience: float) -> None:
    with pytest.raises(ConfigError, match="patience must be above 0 and at most 1"):
        OptimiserConfig(epochs=1, batch_size=1, learning_rate=1.0, patience=patience)


def test_impossible_settings_of_large_models_are_refused() -> None:
    usual = small_training(30_139)
    for wrong, message in (
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1"),
        ({"micro_batch": -1}, "micro_batch cannot be negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(usual.optimiser, **wrong)
    with pytest.raises(ConfigError, match="freeze cannot be negative"):
        dataclasses.replace(usual, freeze=-1)
    single = dataclasses.replace(usual.optimiser, micro_batch=1)
    with pytest.raises(ConfigError, match="micro_batch must be 2 at least"):
        dataclasses.replace(usual, optimiser=single)
    dataclasses.replace(usual, optimiser=single, mismatched_titles=0.0, mismatched_images=0.0)
