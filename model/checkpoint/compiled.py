"""A compiled network in a checkpoint: `engines/<name>/`, with what it was calibrated to and measured with.

    engine.json         which weights it was compiled from, and the hash of each of its files
    image.xml, .bin     pixels to tokens; text: token ids to tokens; fusion: tokens to logits, weights and embeddings
    calibration.json, scope.safetensors, metrics.json    as in the checkpoint, certified and measured with this engine

The parts carry the version of the weights and the digest of the engine: 12 hex digits of the SHA-256 of `engine.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import CheckpointError

FORMAT = 1

ENGINES, ENGINE = "engines", "engine.json"


@dataclass(frozen=True, kw_only=True)
class CompiledNetwork:
    """What `engine.json` says."""

    name: str
    """openvino-int8, openvino-bf16 or openvino-f32: also the folder's name."""
    version: str
    """That of the weights it was compiled from."""
    made_with: str
    """The compiler and its release."""
    parameters: int
    grid: tuple[int, int]
    """Rows and columns of the image tower's patches."""
    precision: Mapping[str, str]
    """Of image, text and fusion: the number format, f32 or bf16, of what is not stored as integers."""
    files: Mapping[str, str]
    """SHA-256 of each file of the network."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of `engine.json`."""
        return {"format": FORMAT, **asdict(self), "grid": list(self.grid)}


def read_compiled(folder: Path, version: str) -> tuple[CompiledNetwork, str]:
    """Read and verify a compiled network; return it with its digest.

    Raises `CheckpointError` that names the file which is missing, damaged or of another checkpoint.
    """
    path = folder / ENGINE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        compiled = _from_json(json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if compiled.version != version:
        raise CheckpointError(
            f"{path} was compiled from weights {compiled.version}, but the checkpoint's are {version}: "
            "run `cma-clip compile` again"
        )
    if compiled.name != folder.name and not folder.name.startswith("."):
        raise CheckpointError(f"{path} is of the engine {compiled.name}, but lies in a folder called {folder.name}")
    for name, digest in compiled.files.items():
        if file_digest(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is not the one that {ENGINE} describes: it is damaged or replaced")
    return compiled, hashlib.sha256(text).hexdigest()[:12]


def _from_json(content: Mapping[str, Any]) -> CompiledNetwork:
    if content["format"] != FORMAT:
        raise ValueError(f"format must be {FORMAT}; this file is of another release")
    rows, columns = content["grid"]
    files = {str(name): str(digest) for name, digest in content["files"].items()}
    if foreign := [name for name in files if name != Path(name).name]:
        raise ValueError(f"{foreign[0]!r} is no file of this folder")
    return CompiledNetwork(
        name=str(content["name"]),
        version=str(content["version"]),
        made_with=str(content["made_with"]),
        parameters=int(content["parameters"]),
        grid=(int(rows), int(columns)),
        precision={str(part): str(value) for part, value in content["precision"].items()},
        files=files,
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raises `CheckpointError` where it is missing or cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
