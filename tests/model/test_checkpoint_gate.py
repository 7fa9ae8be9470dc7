"""The gate in the checkpoint folder: written with its calibration, checked when read, and not needed to serve."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from model.checkpoint.folder import (
    CALIBRATION,
    SCOPE,
    Checkpoint,
    load_checkpoint,
    write_calibration,
    write_part,
)
from model.errors import CheckpointError
from model.inference.predictions import Abstention
from model.inference.predictor import Predictor
from model.situations import Situation
from model.trust.calibration import AttributeCalibration, Calibration, Certificate
from model.trust.conflict import fit_conflict
from model.trust.gate import Gate
from tests.model.test_conflict import MATCHED, MISMATCHED, REFERENCE
from tests.model.test_gate import fitted

CERTIFIED = Certificate(threshold=0.5, coverage=1.0, support=100, bound=0.95)


def made_calibration(checkpoint: Checkpoint) -> Calibration:
    attribute = AttributeCalibration(temperature=1.0, thresholds={0.9: CERTIFIED})
    return Calibration(
        version=checkpoint.version,
        method="made up",
        confidence_level=0.95,
        target_precisions=(0.9,),
        situations={situation: {task.name: attribute for task in checkpoint.tasks} for situation in Situation},
    )


def made_gate(width: int) -> Gate:
    return dataclasses.replace(fitted(width), conflict=fit_conflict(MATCHED, MISMATCHED, REFERENCE, 0.01))


@pytest.fixture
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    checkpoint = load_checkpoint(checkpoint_folder)
    write_calibration(checkpoint, made_calibration(checkpoint), made_gate(checkpoint.config.fusion.width))
    return load_checkpoint(checkpoint_folder)


def test_a_gate_is_read_with_its_calibration(checkpoint: Checkpoint) -> None:
    assert checkpoint.gate is not None
    assert checkpoint.calibration is not None
    record = checkpoint.calibration.gate
    assert record is not None
    assert record.scope_level == {situation: gate.level for situation, gate in checkpoint.gate.scopes.gates.items()}
    assert record.conflict_level == 0.01
    assert Calibration.from_json(json.loads(json.dumps(checkpoint.calibration.to_json()))) == checkpoint.calibration


def test_the_same_gate_is_the_same_file(checkpoint: Checkpoint) -> None:
    before = (checkpoint.folder / SCOPE).read_bytes()
    assert checkpoint.gate is not None
    write_calibration(checkpoint, made_calibration(checkpoint), checkpoint.gate)
    assert (checkpoint.folder / SCOPE).read_bytes() == before


def test_a_checkpoint_without_its_scope_file_still_answers(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / SCOPE).unlink()
    predictor = Predictor.load(checkpoint.folder)
    assert predictor.info.scope_gate is False
    assert predictor.info.calibration != checkpoint.calibration_digest
    answer = predictor.predict(predictor.collate([predictor.prepare("a red circle", None)]))[0]
    assert (answer.scope.familiarity, answer.scope.in_scope) == (None, None)


def test_an_old_calibration_without_a_gate_is_read(checkpoint: Checkpoint) -> None:
    write_part(checkpoint, CALIBRATION, made_calibration(checkpoint).to_json())
    read = load_checkpoint(checkpoint.folder)
    assert read.gate is None
    assert read.calibration == made_calibration(checkpoint)


def test_a_gate_of_another_calibration_is_named(checkpoint: Checkpoint) -> None:
    before = (checkpoint.folder / CALIBRATION).read_text()
    write_calibration(
        checkpoint,
        made_calibration(checkpoint),
        dataclasses.replace(fitted(checkpoint.config.fusion.width), conflict=None),
    )
    (checkpoint.folder / CALIBRATION).write_text(before)
    with pytest.raises(CheckpointError, match=r"scope\.safetensors is not the one that calibration\.json"):
        load_checkpoint(checkpoint.folder)


def test_a_gate_of_another_network_is_named(checkpoint: Checkpoint) -> None:
    write_calibration(checkpoint, made_calibration(checkpoint), made_gate(7))
    with pytest.raises(CheckpointError, match=r"scope\.safetensors and config\.json differ"):
        load_checkpoint(checkpoint.folder)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_gate_is_named(checkpoint: Checkpoint, content: bytes) -> None:
    path = checkpoint.folder / SCOPE
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"scope\.safetensors"):
        load_checkpoint(checkpoint.folder)


def test_an_unfamiliar_listing_has_nothing_accepted_at_any_target(checkpoint: Checkpoint) -> None:
    predictor = Predictor.load(checkpoint.folder)
    answer = predictor.predict(predictor.collate([predictor.prepare("zxcv qwer", None)]))[0]
    assert answer.scope.familiarity is not None
    assert answer.scope.in_scope is False
    for task in predictor.tasks:
        found = answer.attribute(task.name, target_precision=0.9, top_k=1)
        assert found.abstention is Abstention.UNFAMILIAR_LISTING
