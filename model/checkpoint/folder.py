"""The checkpoint folder: everything needed to serve, written atomically and checked when read. Never pickle.

    config.json         name, version, backbone, preprocessing, fusion sizes, attributes with ordered labels, and which
                        product types never bear an attribute
    tokenizer.json      the towers' own tokenizer (absent for CLIP's, which is part of the program)
    model.safetensors   weights: matrices in half precision, vectors and statistics in float32
    calibration.json    temperatures and certified thresholds (absent until calibrated)
    scope.safetensors   what familiarity and agreement are measured against (absent until calibrated)
    engines/<name>/     a compiled network with its own calibration, scope and metrics (`model.checkpoint.compiled`)
    metrics.json        what was measured on the test part (absent until evaluated)

Every part carries the version of the weights it belongs to: the first 12 hex digits of the SHA-256 of
`model.safetensors`. Reading and writing that file is `model.checkpoint.weights`: this module needs no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays

from model.checkpoint.compiled import ENGINES, CompiledNetwork, read_compiled
from model.config import ModelConfig, from_json
from model.errors import CheckpointError, ConfigError
from model.files import replace_durably
from model.situations import Situation
from model.tasks import Task
from model.trust.applicability import Applicability
from model.trust.calibration import Calibration, GateRecord
from model.trust.gate import Gate

PLAIN_POOLING, TRAINED_POOLING = 1, 2
"""What `format` of a configuration says of the image tower's pooled token: that it is the class token, or, where there
is none, the mean of the patches (`ImageTower.pools_plainly`); or that it is what the tower was trained to pool.

Programs that know format 1 alone pool every tower plainly. So one that pools otherwise is never written as format 1,
nor read.
"""

WEIGHTS, CONFIG, CALIBRATION, METRICS = "model.safetensors", "config.json", "calibration.json", "metrics.json"

SCOPE, TOKENIZER = "scope.safetensors", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder that has been read and verified, except for its weights (`load_weights`).

    `tasks` is empty where only towers were trained (`cma-clip pretrain`).
    """

    folder: Path
    name: str
    version: str
    config: ModelConfig
    tasks: tuple[Task, ...]
    training: Mapping[str, Any]
    calibration: Calibration | None
    gate: Gate | None
    """None until calibrated, and where the checkpoint was calibrated without one."""
    applicability: Applicability | None = None
    """None where the catalogue named no product type."""
    metrics: Mapping[str, Any] | None
    compiled: CompiledNetwork | None = None
    """The network of the engine that calibration, gate and metrics are of; None for PyTorch's."""
    compiled_digest: str = ""
    """12 hex digits that name the compiled network: its calibration and metrics carry them."""
    format: int
    """`PLAIN_POOLING` or `TRAINED_POOLING`."""
    home: Path
    """Where calibration, gate and metrics are: the folder itself, or the engine's."""

    @property
    def calibration_digest(self) -> str:
        """12 hex digits of the calibration and the gate in use; empty where it is not calibrated."""
        if self.calibration is None:
            return ""
        in_use = f"{self.calibration.digest} {'gate' if self.gate else 'no gate'}"
        return hashlib.sha256(in_use.encode()).hexdigest()[:12]


def load_checkpoint(folder: Path, engine: str | None = None) -> Checkpoint:
    """Read and verify a checkpoint folder, with the calibration and the metrics of an engine; None: of PyTorch's.

    Raises `CheckpointError` that names the part which is missing, damaged or belongs to other weights.
    """
    if engine is None:
        return _load(folder, folder)
    home = folder / ENGINES / engine
    if not home.is_dir():
        raise CheckpointError(f"{folder} carries no engine {engine}; `cma-clip compile` makes one")
    return load_compiled(folder, home)


def check_checkpoint(folder: Path, engine: str | None = None) -> None:
    """Check that a folder is a checkpoint, and carries an engine where one is named, without loading its network.

    Raises as `load_checkpoint` does.
    """
    if engine is None:
        _load(folder, None)
    else:
        load_checkpoint(folder, engine)


def load_compiled(folder: Path, home: Path) -> Checkpoint:
    """Read and verify a checkpoint folder with the compiled network in `home`; raises as `load_checkpoint` does."""
    checkpoint = _load(folder, None)
    compiled, digest = read_compiled(home, checkpoint.version)
    return _with_parts(dataclasses.replace(checkpoint, home=home, compiled=compiled, compiled_digest=digest))


def _load(folder: Path, home: Path | None) -> Checkpoint:
    """Read config.json, and the parts in `home`, where one is given."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing")
    version = weights_version(folder / WEIGHTS)
    content = _read(folder / CONFIG, version, required=True)
    assert content is not None
    if (form := content.pop("format", None)) not in (PLAIN_POOLING, TRAINED_POOLING):
        raise CheckpointError(f"{folder / CONFIG}: format must be 1 or 2; this file is of another release")
    try:
        name, training = str(content.pop("name")), dict(content.pop("training", {}))
        content.pop("version")
        tasks = tuple(map(Task.from_json, content.pop("attributes")))
        if len({task.name for task in tasks}) < len(tasks):
            raise ConfigError("an attribute is listed twice")
        learned = content.pop("applicability", None)
        applicability = None if learned is None else Applicability.from_json(learned, tasks)
        _put_in_tokenizer(folder, content)
        config = from_json(ModelConfig, content)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    checkpoint = Checkpoint(
        folder=folder,
        name=name,
        version=version,
        config=config,
        tasks=tasks,
        training=training,
        calibration=None,
        gate=None,
        applicability=applicability,
        metrics=None,
        format=form,
        home=folder,
    )
    return checkpoint if home is None else _with_parts(checkpoint)


def take_out_tokenizer(content: dict[str, Any]) -> bytes | None:
    """Take a tokenizer's definition out of a configuration, which names its hash instead; None where it has none."""
    tokenizer = content["preprocess"]["tokenizer"]
    if tokenizer is None:
        return None
    definition = bytes(tokenizer.pop("definition").encode())
    tokenizer["sha256"] = hashlib.sha256(definition).hexdigest()
    return definition


def _put_in_tokenizer(folder: Path, content: dict[str, Any]) -> None:
    """Put back what `take_out_tokenizer` has taken out. Raises `CheckpointError` where the file is another one."""
    preprocess = content.get("preprocess")
    tokenizer = preprocess.get("tokenizer") if isinstance(preprocess, dict) else None
    if not isinstance(tokenizer, dict):
        return
    path = folder / TOKENIZER
    try:
        definition = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(definition).hexdigest() != tokenizer.pop("sha256", None):
        raise CheckpointError(f"{path} is not the one that {CONFIG} describes: it is damaged or replaced")
    tokenizer["definition"] = definition.decode()


def _with_parts(checkpoint: Checkpoint) -> Checkpoint:
    """Read calibration, gate and metrics."""
    home, version, engine = checkpoint.home, checkpoint.version, checkpoint.compiled_digest
    calibration = _read(home / CALIBRATION, version, engine=engine)
    metrics = _read(home / METRICS, version, engine=engine)
    checkpoint = dataclasses.replace(
        checkpoint,
        calibration=Calibration.from_json(calibration) if calibration is not None else None,
        metrics=metrics,
    )
    _check_calibration(checkpoint)
    return dataclasses.replace(checkpoint, gate=_load_gate(checkpoint))


def provenance(initial: str | Path | None) -> Any:
    """Say where a training started: a checkpoint of ours with its own training, or the name of what was given."""
    if not initial or not Path(initial).is_dir():
        named = str(initial or "")
        return named if named.startswith("hf-hub:") else Path(named).name or None
    checkpoint = load_checkpoint(Path(initial))
    return {"name": checkpoint.name, "version": checkpoint.version, "training": checkpoint.training}


def write_part(checkpoint: Checkpoint, part: str, content: Mapping[str, Any]) -> None:
    """Write `CALIBRATION` or `METRICS` beside the weights they were measured on, atomically."""
    engine = {"engine": checkpoint.compiled_digest} if checkpoint.compiled else {}
    write_json(checkpoint.home / part, {"version": checkpoint.version, **engine, **content})


def write_calibration(checkpoint: Checkpoint, calibration: Calibration, gate: Gate) -> Calibration:
    """Write the gate, then the calibration that was certified behind it; return it with the gate's record.

    An older calibration is removed first: interrupted in between, the checkpoint is one that is not calibrated.
    """
    folder = checkpoint.home
    arrays, description = gate.to_arrays()
    # One entry, since safetensors writes several in any order, and the file is known by its hash.
    metadata = {"gate": json.dumps({"version": checkpoint.version, **description})}
    (folder / CALIBRATION).unlink(missing_ok=True)
    temporary = folder / f".{SCOPE}.{os.getpid()}"
    try:
        save_arrays(arrays, temporary, metadata)
        temporary.chmod(0o644)
        replace_durably(temporary, folder / SCOPE)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{folder / SCOPE} cannot be written: {error}") from error
    record = GateRecord(
        digest=weights_version(folder / SCOPE),
        scope_level={situation: scope.level for situation, scope in gate.scopes.gates.items()},
        conflict_level=gate.conflict.level if gate.conflict else None,
    )
    calibration = dataclasses.replace(calibration, gate=record)
    write_part(checkpoint, CALIBRATION, calibration.to_json())
    return calibration


def _load_gate(checkpoint: Checkpoint) -> Gate | None:
    """Read the gate that the calibration was certified behind; None where either is missing."""
    path, record = checkpoint.home / SCOPE, checkpoint.calibration.gate if checkpoint.calibration else None
    if record is None or not path.is_file():
        return None
    if weights_version(path) != record.digest:
        raise CheckpointError(f"{path} is not the one that {CALIBRATION} was certified with; run `cma-clip calibrate`")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        gate = Gate.from_arrays(arrays, json.loads(metadata["gate"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    width = checkpoint.config.fusion.width
    if (gate.conflict is not None and len(gate.conflict.limits) != len(checkpoint.tasks)) or any(
        len(scope.direction) != width * (2 if situation is Situation.IMAGE_AND_TITLE else 1)
        for situation, scope in gate.scopes.gates.items()
    ):
        raise CheckpointError(f"{path} and {CONFIG} differ in the number of attributes, or the fusion's width")
    return gate


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON as `write_text` does."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old one or the new one.

    Raises `CheckpointError` where it cannot be written; the old one is still there then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        replace_durably(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def weights_version(path: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _read(path: Path, version: str, *, required: bool = False, engine: str = "") -> dict[str, Any] | None:
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path.parent}: {path.name} is missing")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object")
    if content.get("version") != version:
        raise CheckpointError(
            f"{path} belongs to weights {content.get('version')}, but {WEIGHTS} is {version}: "
            "the folder was put together from different checkpoints"
        )
    if content.get("engine", "") != engine:
        raise CheckpointError(f"{path} is of another engine than the network beside it; run `cma-clip compile` again")
    return content


def _check_calibration(checkpoint: Checkpoint) -> None:
    if checkpoint.calibration is None:
        return
    names = {task.name for task in checkpoint.tasks}
    for situation, attributes in checkpoint.calibration.situations.items():
        if difference := sorted(names ^ set(attributes)):
            raise CheckpointError(
                f"{checkpoint.home / CALIBRATION}: situation {situation} and {CONFIG} differ in {difference[0]!r}"
            )
        for task in checkpoint.tasks:
            if unknown := sorted(set(attributes[task.name].labels) - set(task.labels)):
                raise CheckpointError(
                    f"{checkpoint.home / CALIBRATION}: {task.name} has no label {unknown[0]!r} in {CONFIG}"
                )


def replace_folder(new: Path, folder: Path) -> None:
    """Put the finished folder `new` in the place of `folder`; no reader ever sees a half-written one."""
    if not folder.exists():
        replace_durably(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.rename(old / folder.name)
    try:
        replace_durably(new, folder)
    except BaseException:
        (old / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
