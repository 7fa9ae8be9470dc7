"""`compile`: an engine of its own, quantised on train, certified and measured anew, beside the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.checkpoint.folder import load_checkpoint
from model.errors import ConfigError
from model.evaluation import compile as compiling
from model.evaluation.calibrate import calibrate
from model.evaluation.compile import compile_engine
from model.evaluation.differences import differences_table
from model.inference.engines import export
from model.inference.engines.engine import EngineName
from model.inference.predictor import Predictor
from model.situations import Situation

QUIET = Console(quiet=True)


def test_an_engine_is_compiled_certified_and_measured(
    checkpoint_folder: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "SAMPLES", 8)
    monkeypatch.setattr(compiling, "MOST_LABELS_CHANGED", 1.0)  # of untrained weights nothing can be asked
    calibrate(checkpoint_folder, catalogue, target_precisions=[0.5], device="cpu", console=QUIET)
    found = compile_engine(checkpoint_folder, catalogue, engine="openvino-int8", console=QUIET)
    assert found.folder == checkpoint_folder / "engines" / "openvino-int8"
    assert [path.name for path in found.folder.parent.iterdir()] == ["openvino-int8"]
    assert "u8" in (found.folder / "image.xml").read_text() or "i8" in (found.folder / "image.xml").read_text()
    predictor = Predictor.load(checkpoint_folder, engine="openvino-int8")
    info, own = predictor.info, load_checkpoint(checkpoint_folder)
    assert (info.engine, info.dtype, info.version) == ("openvino-int8", "int8", own.version)
    assert info.target_precisions == (0.5,)
    assert info.calibration
    assert info.calibration != own.calibration_digest
    assert info.metrics["situations"]["image"]["listings"] > 0
    assert predictor.checkpoint.calibration == found.calibration
    both = found.differences[Situation.IMAGE_AND_TITLE]["colour"]
    assert 0 <= both.labels <= 1
    assert both.largest < 0.2
    assert info.metrics["beside_torch"]["image_and_title"]["colour"]["labels"] == both.labels
    assert differences_table(found.differences).row_count == 6


def test_a_quantisation_that_costs_too_much_is_refused_and_leaves_nothing(
    checkpoint_folder: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "SAMPLES", 2)
    monkeypatch.setattr(export, "QUANTISED_AFTER", (0,))
    monkeypatch.setattr(compiling, "labels_changed", lambda *_: 0.03)
    calibrate(checkpoint_folder, catalogue, target_precisions=[0.5], device="cpu", console=QUIET)
    with pytest.raises(ConfigError, match=r"changes 3\.00 % of .* more than 2 %: compile openvino-bf16"):
        compile_engine(checkpoint_folder, catalogue, engine="openvino-int8", console=QUIET)
    assert not (checkpoint_folder / "engines").exists()


def test_an_engine_needs_a_calibrated_checkpoint(checkpoint_folder: Path, catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError, match="not calibrated yet"):
        compile_engine(checkpoint_folder, catalogue, engine=EngineName.OPENVINO_F32, console=QUIET)


@pytest.mark.parametrize("engine", ["torch", "auto", "openvino-int4"])
def test_what_cannot_be_compiled_is_named(checkpoint_folder: Path, catalogue: Catalogue, engine: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown engine '{engine}'; there are openvino-f32"):
        compile_engine(checkpoint_folder, catalogue, engine=engine, console=QUIET)
