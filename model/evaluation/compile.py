"""Compiles a checkpoint for CPUs: exported, quantised on train, chosen on validation, certified on calibration and
measured on test.

Scores of another engine are other scores: temperatures, limits and certificates are fitted anew with it. What is
written is `engines/<name>/` (`model.checkpoint.compiled`), all at once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.checkpoint.compiled import ENGINE, ENGINES
from model.checkpoint.folder import (
    METRICS,
    Checkpoint,
    load_compiled,
    replace_folder,
    write_calibration,
    write_json,
    write_part,
)
from model.errors import ConfigError, ModelError
from model.evaluation.calibrate import fit_calibration
from model.evaluation.differences import Differences, Measured, differences, differences_json, labels_changed
from model.evaluation.evaluate import measure
from model.evaluation.heldout import HeldOut, collect
from model.inference.engines.choose import unable
from model.inference.engines.engine import EngineName
from model.inference.engines.openvino_engine import OpenVinoEngine
from model.inference.predictor import Predictor
from model.inference.stream import prepare_listing
from model.situations import Situation
from model.trust.calibration import Calibration

if TYPE_CHECKING:
    import openvino as ov

SAMPLES = 600
"""Training images on which the ranges of activations are found."""

MOST_LABELS_CHANGED = 0.02
"""The share of validation listings that may get another label, of each attribute in each situation, by what is chosen
to be quantised.
"""

COMPARED_AT = 0.95
"""Verdicts are compared at this target precision, where it is calibrated, else at the highest."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What was written."""

    folder: Path
    calibration: Calibration
    differences: Differences
    """From the reference, on the validation part."""
    metrics: Mapping[str, Any]


def compile_engine(
    checkpoint: str | Path, catalogue: Catalogue, *, engine: str, console: Console | None = None
) -> Compilation:
    """Compile a calibrated checkpoint folder for an engine: openvino-int8, openvino-bf16 or openvino-f32.

    Target precisions, and whether each label is certified by itself, are those of the checkpoint's own calibration. An
    engine of that name that is there already is replaced at the end.

        compile_engine("runs/shop/checkpoint", Catalogue.open("shop.toml"), engine="openvino-int8")

    Raises `ConfigError` for an unknown engine, one that this machine cannot run or quantise for, a checkpoint that is
    not calibrated, and where quantisation changes too many labels; else as `fit_calibration` and `Predictor.load` do.
    """
    console = console or Console(stderr=True)
    name = _checked(engine)
    reference = Predictor.load(checkpoint, device="cpu", engine="torch")
    if reference.checkpoint.calibration is None:
        raise ConfigError(f"{checkpoint} is not calibrated yet; run `cma-clip calibrate` on it first")
    engines = reference.checkpoint.folder / ENGINES
    engines.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=engines))
    try:
        temporary.chmod(0o755)
        found = _Compiler(reference, catalogue, console).run(name, temporary)
        replace_folder(temporary, engines / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not any(engines.iterdir()):
            engines.rmdir()
    return replace(found, folder=engines / name)


def _checked(engine: str) -> EngineName:
    """Return the engine called so; raise `ConfigError` for one that cannot be compiled here."""
    names = [name for name in EngineName if name is not EngineName.TORCH]
    if engine not in names:
        raise ConfigError(f"unknown engine {engine!r}; there are {', '.join(names)}")
    name = EngineName(engine)
    if reason := unable(name) or unable(EngineName.TORCH):
        raise ConfigError(f"engine {name} cannot be compiled here: {reason}")
    return name


class _Compiler:
    """One compilation: the reference's answers on validation, and the catalogue."""

    def __init__(self, reference: Predictor, catalogue: Catalogue, console: Console) -> None:
        self._reference, self._catalogue, self._console = reference, catalogue, console
        self._validation = self._on_validation(reference)

    def run(self, name: EngineName, folder: Path) -> Compilation:
        """Write a whole engine into `folder`."""
        own = self._reference.checkpoint
        assert own.calibration is not None
        predictor, validation = self._choose(name, folder)
        attributes = [each for them in own.calibration.situations.values() for each in them.values()]
        calibration, gate = fit_calibration(
            predictor,
            self._catalogue,
            console=self._console,
            target_precisions=own.calibration.target_precisions,
            per_label=any(each.labels for each in attributes),
            applicability=own.applicability,
        )
        calibration = write_calibration(predictor.checkpoint, calibration, gate)
        targets = calibration.target_precisions
        apart = differences(
            Measured(held_out=validation, calibration=calibration, gate=gate),
            Measured(held_out=self._validation, calibration=own.calibration, gate=own.gate),
            COMPARED_AT if COMPARED_AT in targets else targets[-1],
        )
        evaluation = measure(
            predictor, calibration, gate, self._catalogue, applicability=own.applicability, console=self._console
        )
        metrics = {**evaluation.metrics, "beside_torch": differences_json(apart)}
        write_part(predictor.checkpoint, METRICS, metrics)
        return Compilation(folder=folder, calibration=calibration, differences=apart, metrics=metrics)

    def _choose(self, name: EngineName, folder: Path) -> tuple[Predictor, Mapping[Situation, HeldOut]]:
        """Write the fastest network that keeps its labels on validation; return it with its answers there."""
        changed = {}
        for what, parts in self._candidates(name):
            predictor = self._written(name, folder, parts)
            validation = self._on_validation(predictor)
            changed[what] = labels_changed(validation, self._validation)
            self._console.print(f"{what}: {100 * changed[what]:.2f} % of labels change, at most", soft_wrap=True)
            if changed[what] <= MOST_LABELS_CHANGED or name is not EngineName.OPENVINO_INT8:
                return predictor, validation
        raise ConfigError(
            f"engine {name} changes {100 * min(changed.values()):.2f} % of an attribute's labels on validation, more "
            f"than {100 * MOST_LABELS_CHANGED:g} %: compile openvino-bf16 or openvino-f32 instead"
        )

    def _candidates(self, name: EngineName) -> Iterator[tuple[str, Mapping[str, ov.Model]]]:
        """Yield the networks to choose from, by what they are, the fastest first."""
        from model.inference.engines.export import QUANTISED_AFTER, export, quantise  # noqa: PLC0415 - imports torch
        from model.inference.engines.torch_engine import TorchEngine  # noqa: PLC0415

        engine, checkpoint = self._reference.engine, self._reference.checkpoint
        assert isinstance(engine, TorchEngine)
        if name is not EngineName.OPENVINO_INT8:
            yield name, export(engine, checkpoint)
            return
        samples = self._samples()
        for kept in QUANTISED_AFTER:
            what = f"{name}, the first {kept} convolutions in float32" if kept else name
            yield what, quantise(export(engine, checkpoint), samples, kept)

    def _written(self, name: EngineName, folder: Path, parts: Mapping[str, ov.Model]) -> Predictor:
        from model.inference.engines.export import write_network  # noqa: PLC0415 - imports torch

        compiled = write_network(folder, name, parts, self._reference.engine.info, self._reference.checkpoint)
        write_json(folder / ENGINE, compiled.to_json())
        checkpoint: Checkpoint = load_compiled(self._reference.checkpoint.folder, folder)
        return Predictor(checkpoint, OpenVinoEngine.load(checkpoint))

    def _samples(self) -> list[NDArray[np.uint8]]:
        """Return pixels `[1, 3, H, W]` of training images, evenly from the whole part."""
        listings = [listing for listing in self._catalogue.part(Part.TRAIN) if listing.image]
        samples = []
        for listing in listings[:: max(1, len(listings) // SAMPLES)][:SAMPLES]:
            try:
                prepared = prepare_listing(self._reference, self._catalogue.images, None, listing.image)
            except ModelError:
                continue  # an image that cannot be read is reported where the catalogue is
            samples.append(prepared.pixels[None])
        if not samples:
            raise ConfigError(f"{self._catalogue.config.path} has no training image to quantise on")
        return samples

    def _on_validation(self, predictor: Predictor) -> Mapping[Situation, HeldOut]:
        listings = self._catalogue.part(Part.VALIDATION)
        what = f"validation by {predictor.info.engine}"
        return collect(predictor, self._catalogue, listings, console=self._console, what=what)
