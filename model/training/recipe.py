"""Recipes: how a checkpoint is made, in one TOML file, stage by stage.

A stage pre-trains, trains, calibrates or evaluates, and starts from the checkpoint of an earlier one. Its folder,
OUT/<name>, holds its run, its checkpoint, and `stage.json`: what it was asked for, and the version that came of it. A
finished stage is skipped, an interrupted one resumes, and one whose settings have changed since is refused. No stage
changes what an earlier one made. OUT/checkpoint is a copy of the last one's checkpoint.

The topmost module of `model/`: it may import everything else there.
"""

from __future__ import annotations

import dataclasses
import filecmp
import json
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.checkpoint.folder import METRICS, load_checkpoint, write_json
from model.config import STRICT, FusionConfig, ModelConfig, from_json, to_json, update
from model.errors import ConfigError, TrainingError
from model.evaluation.calibrate import calibrate, calibration_table
from model.evaluation.evaluate import evaluate, evaluation_tables
from model.training import distributed, pretrain, train
from model.training.config import PretrainConfig, TrainConfig
from model.training.initialise import initial_model
from model.training.pretrained import FOLDER
from model.training.trainer import STATE, finished_checkpoint
from model.trust.certificates import TARGET_PRECISIONS
from model.trust.scope import SCOPE_LEVEL

RECORD = "stage.json"

CHECKPOINT, CARD = "checkpoint", "README.md"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all stages of a run share; `name` is what the trained checkpoints are called."""

    catalogue: Catalogue
    name: str
    device: str
    console: Console


class Stage(BaseModel):
    """What stages have in common: a `name`, and the stage they start `from`: the one before, unless they say so."""

    model_config = ConfigDict(**STRICT, frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    start: Annotated[str | None, Field(alias="from")] = None

    def asked(self, context: Context) -> dict[str, Any]:
        """Return every setting of the stage, for `stage.json`. Raises `ConfigError` for an impossible one."""
        return self.model_dump(mode="json", exclude={"name", "start"})

    def run(self, context: Context, folder: Path, start: str | None) -> Path:
        """Carry the stage out, or resume it, in `folder`, from the checkpoint `start`; return its checkpoint folder."""
        raise NotImplementedError


class TrainingStage(Stage):
    """A stage that trains. `backbone` and `init` say what the first one starts from, as the options of `train` do.

    All other fields are settings.
    """

    model_config = ConfigDict(extra="allow")

    init: str | None = None
    backbone: str | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that differ from the preset, nested as they are in the configuration."""
        return self.model_extra or {}


class PretrainStage(TrainingStage):
    """`cma-clip pretrain`; where it starts from a checkpoint, it keeps that one's image tower."""

    kind: Literal["pretrain"]

    def config(self, catalogue: Catalogue) -> PretrainConfig:
        """Return the preset for `catalogue` with the stage's settings."""
        return update(pretrain.default_config(catalogue), self.settings)

    def asked(self, context: Context) -> dict[str, Any]:
        return {"kind": self.kind, "backbone": self.backbone, "config": to_json(self.config(context.catalogue))}

    def run(self, context: Context, folder: Path, start: str | None) -> Path:
        return pretrain.pretrain(
            context.catalogue,
            folder,
            model=initial_model(self.backbone, start),
            config=self.config(context.catalogue),
            initial=Path(start) if start else None,
            device=context.device,
            console=context.console,
        )


class TrainStage(TrainingStage):
    """`cma-clip train`.

    `fusion` holds settings of the network, and `image_size` is its input's (height, width); both are otherwise those of
    the start. A convolutional image tower learns at a fraction of the cost from small images first.
    """

    kind: Literal["train"]
    fusion: dict[str, Any] = {}
    image_size: tuple[int, int] | None = None

    def model(self, catalogue: Catalogue, start: str | None) -> ModelConfig:
        """Return the configuration of the network that is trained."""
        model = train.default_model(catalogue, self.backbone, start)
        size = self.image_size or model.preprocess.image_size
        return dataclasses.replace(
            model,
            fusion=update(model.fusion, self.fusion),
            preprocess=dataclasses.replace(model.preprocess, image_size=size),
        )

    def config(self, catalogue: Catalogue) -> TrainConfig:
        """Return the preset for `catalogue` with the stage's settings."""
        return update(train.default_config(catalogue, self.init), self.settings)

    def asked(self, context: Context) -> dict[str, Any]:
        update(FusionConfig(), self.fusion)
        return {
            "kind": self.kind,
            "model": context.name,
            "backbone": self.backbone,
            "fusion": self.fusion,
            "image_size": list(self.image_size) if self.image_size else None,
            "config": to_json(self.config(context.catalogue)),
        }

    def run(self, context: Context, folder: Path, start: str | None) -> Path:
        return train.train(
            context.catalogue,
            folder,
            name=context.name,
            model=self.model(context.catalogue, start),
            config=self.config(context.catalogue),
            initial=start,
            device=context.device,
            console=context.console,
        )


class CalibrateStage(Stage):
    """`cma-clip calibrate`, on a copy of the checkpoint that it starts from."""

    kind: Literal["calibrate"]
    target_precision: tuple[float, ...] = TARGET_PRECISIONS
    per_label: bool = False
    together: bool = False
    scope_level: float = SCOPE_LEVEL

    def run(self, context: Context, folder: Path, start: str | None) -> Path:
        checkpoint = _copy(start, folder / CHECKPOINT)
        (checkpoint / METRICS).unlink(missing_ok=True)  # of another calibration
        calibration = calibrate(
            checkpoint,
            context.catalogue,
            target_precisions=self.target_precision,
            per_label=self.per_label,
            together=self.together,
            scope_level=self.scope_level,
            device=context.device,
            console=context.console,
        )
        context.console.print(calibration_table(calibration))
        return checkpoint


class EvaluateStage(Stage):
    """`cma-clip evaluate`, on a copy of the checkpoint that it starts from."""

    kind: Literal["evaluate"]

    def run(self, context: Context, folder: Path, start: str | None) -> Path:
        checkpoint = _copy(start, folder / CHECKPOINT)
        evaluation = evaluate(checkpoint, context.catalogue, device=context.device, console=context.console)
        for table in evaluation_tables(evaluation.metrics):
            context.console.print(table)
        return checkpoint


KINDS: Mapping[str, type[Stage]] = {
    "pretrain": PretrainStage,
    "train": TrainStage,
    "calibrate": CalibrateStage,
    "evaluate": EvaluateStage,
}

STARTS: Mapping[str, Sequence[str]] = {
    "calibrate": ("train", "calibrate", "evaluate"),
    "evaluate": ("calibrate", "evaluate"),
}
"""The kinds of stages that a calibration or an evaluation can start from."""


# --- the file ----------------------------------------------------------------------------------------------


class _File(BaseModel):
    """The top level of a recipe's file; `pretrain` and `train` hold settings of all stages of that kind."""

    model_config = STRICT

    catalogue: str | None = None
    name: str | None = None
    pretrain: dict[str, Any] = {}
    train: dict[str, Any] = {}
    stage: Annotated[list[dict[str, Any]], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe file that has been read: paths are resolved, and each stage but the first says where it starts."""

    path: Path
    name: str
    catalogue: Path | None
    stages: tuple[Stage, ...]

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe. Raises `ConfigError` that names the stage and the field at fault, in one line."""
        try:
            file = from_json(_File, tomllib.loads(path.read_text(encoding="utf-8")))
            stages: dict[str, Stage] = {}
            for number, table in enumerate(file.stage, start=1):
                shared = {"pretrain": file.pretrain, "train": file.train}.get(table.get("kind", ""), {})
                stage = _read_stage(_overlay(shared, table), number, path.parent, stages)
                stages[stage.name] = stage
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error
        return cls(
            path=path,
            name=file.name or path.stem,
            catalogue=path.parent / file.catalogue if file.catalogue else None,
            stages=tuple(stages.values()),
        )


def _overlay(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings: those of a stage's `own`, and what else is `shared`."""
    merged = {**shared, **own}
    for name in shared.keys() & own.keys():
        if isinstance(shared[name], Mapping) and isinstance(own[name], Mapping):
            merged[name] = _overlay(shared[name], own[name])
    return merged


def _read_stage(table: Mapping[str, Any], number: int, folder: Path, earlier: Mapping[str, Stage]) -> Stage:
    where = f"stage {table.get('name', number)!r}"
    kind = KINDS.get(str(table.get("kind")))
    if kind is None:
        raise ConfigError(f"{where}: unknown kind {table.get('kind')!r}; known are {', '.join(KINDS)}")
    try:
        stage = from_json(kind, table)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if stage.name in earlier:
        raise ConfigError(f"{where}: two stages have this name")
    if stage.name == CHECKPOINT:
        raise ConfigError(f"{where}: this name is that of the final checkpoint's folder")
    if isinstance(stage, TrainingStage) and stage.init is not None:
        if stage.start is not None:
            raise ConfigError(f"{where}: from and init both say where it starts")
        return stage.model_copy(update={"init": _local(stage.init, folder)})
    return _linked(stage, where, earlier)


def _local(init: str, folder: Path) -> str:
    """Take a path as relative to the recipe; if there is none, it is the tag of pretrained weights."""
    scheme, path = (FOLDER if init.startswith(FOLDER) else ""), folder / init.removeprefix(FOLDER)
    return f"{scheme}{path}" if path.exists() else init


def _linked(stage: Stage, where: str, earlier: Mapping[str, Stage]) -> Stage:
    """Return a stage that says which stage it starts from."""
    start = list(earlier)[-1] if stage.start is None and earlier else stage.start
    if start is not None and start not in earlier:
        raise ConfigError(f"{where}: from names {start!r}, but the stages before it are {', '.join(earlier) or 'none'}")
    kind = _kind(earlier[start]) if start is not None else "no stage"
    wanted = STARTS.get(_kind(stage))
    if wanted is not None and kind not in wanted:
        raise ConfigError(f"{where}: it has to start from a stage of kind {' or '.join(wanted)}, not {kind}")
    return stage.model_copy(update={"start": start})


def _kind(stage: Stage) -> str:
    return next(name for name, kind in KINDS.items() if isinstance(stage, kind))


# --- the run -----------------------------------------------------------------------------------------------


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    catalogue: Catalogue | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Carry out what is not done yet of a recipe in the folder `out`; return the final checkpoint, OUT/checkpoint.

    `catalogue` takes the place of the recipe's own. Every setting of every stage is checked before the first one runs.
    Processes that `torchrun` started train together; the first one alone does the rest, while the others wait.
    Raises `ConfigError` for a wrong setting or where no catalogue is named, `TrainingError` for a stage that was run
    with other settings, and what the stages raise.
    """
    if catalogue is None:
        if recipe.catalogue is None:
            raise ConfigError(f"{recipe.path} names no catalogue; name one")
        catalogue = Catalogue.open(recipe.catalogue)
    context = Context(
        catalogue=catalogue,
        name=recipe.name,
        device=device,
        console=console or distributed.first_console(),
    )
    asked = [_asked(stage, recipe, context) for stage in recipe.stages]
    checkpoints = {stage.name: out / stage.name / CHECKPOINT for stage in recipe.stages}
    distributed.join(device)
    for number, stage in enumerate(recipe.stages):
        context.console.rule(f"stage {number + 1} of {len(recipe.stages)}: {stage.name} ({_kind(stage)})")
        start = str(checkpoints[stage.start]) if stage.start else getattr(stage, "init", None)
        if distributed.is_first() or isinstance(stage, TrainingStage):
            _run_stage(stage, asked[number], out / stage.name, start, context)
        distributed.wait_for_all()
    if distributed.is_first():
        _publish(checkpoints[recipe.stages[-1].name], out / CHECKPOINT)
    return out / CHECKPOINT


def _asked(stage: Stage, recipe: Recipe, context: Context) -> dict[str, Any]:
    try:
        return stage.asked(context) | {"catalogue": context.catalogue.digest[:12]}
    except ConfigError as error:
        raise ConfigError(f"{recipe.path}: stage {stage.name!r}: {error}") from error


def _run_stage(stage: Stage, asked: Mapping[str, Any], folder: Path, start: str | None, context: Context) -> None:
    asked = {**asked, "from": load_checkpoint(Path(start)).version if start and Path(start).is_dir() else start}
    path = folder / RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"asked": asked, "version": None}
    begun = record["version"] is not None or (folder / STATE).is_file()
    if begun and (changed := _differences(record["asked"], asked)):
        raise TrainingError(
            f"stage {stage.name!r} in {folder} was run with other settings ({'; '.join(changed)}); "
            "remove that folder to run it again, or choose another output folder"
        )
    if record["version"] is not None:
        if load_checkpoint(finished_checkpoint(folder)).version != record["version"]:
            raise TrainingError(
                f"{folder / CHECKPOINT} is not the one that stage {stage.name!r} made; remove {folder} to run it again"
            )
        context.console.print("finished already")
        return
    if distributed.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"asked": asked, "version": None})
    checkpoint = stage.run(context, folder, start)
    if distributed.is_first():
        write_json(path, {"asked": asked, "version": load_checkpoint(checkpoint).version})
        (folder / STATE).unlink(missing_ok=True)  # several times as large as the weights, and of no more use


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Name what differs between two JSON documents, by dotted path."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        inside = f"{path}." if path else ""
        keys = [*before, *(key for key in now if key not in before)]
        return [each for key in keys for each in _differences(before.get(key), now.get(key), f"{inside}{key}")]
    return [] if before == now else [f"{path} was {json.dumps(before)}, is {json.dumps(now)}"]


def _copy(source: str | Path | None, folder: Path) -> Path:
    """Make `folder` a copy of the checkpoint `source`."""
    assert source is not None, "a recipe is refused where a stage that needs a start has none"
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shutil.copytree(source, temporary / folder.name)
        if folder.exists():
            shutil.rmtree(folder)
        (temporary / folder.name).rename(folder)
    finally:
        shutil.rmtree(temporary)
    return folder


def _publish(checkpoint: Path, folder: Path) -> None:
    """Make `folder` a copy of `checkpoint`, unless it is one already, whose card may have been edited since."""
    parts = _parts(checkpoint)
    if folder.is_dir() and _parts(folder) == parts:
        _, differing, unreadable = filecmp.cmpfiles(checkpoint, folder, parts, shallow=False)
        if not differing and not unreadable:
            return
    _copy(checkpoint, folder)


def _parts(checkpoint: Path) -> set[str]:
    return {path.name for path in checkpoint.iterdir()} - {CARD}
