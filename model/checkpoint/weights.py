"""The weights of a checkpoint folder, written and read by PyTorch: what `model.checkpoint.folder` does without."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from model.checkpoint.folder import (
    CONFIG,
    PLAIN_POOLING,
    TOKENIZER,
    TRAINED_POOLING,
    WEIGHTS,
    Checkpoint,
    replace_folder,
    take_out_tokenizer,
    weights_version,
    write_json,
)
from model.config import ModelConfig, to_json
from model.errors import CheckpointError
from model.network.towers import ImageTower
from model.tasks import Task
from model.trust.applicability import Applicability


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    *,
    name: str,
    config: ModelConfig,
    tasks: Sequence[Task],
    training: Mapping[str, Any],
    applicability: Applicability | None = None,
) -> str:
    """Write a new checkpoint, replacing `folder` in one step, and return its version.

    What is stored is rounded (`stored_tensors`); `network` itself is left as it is. `training` says where the weights
    come from, for the model card. Raises `CheckpointError` where a weight would overflow.
    """
    tensors = stored_tensors(network)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        save_file(tensors, temporary / WEIGHTS)
        (temporary / WEIGHTS).chmod(0o644)  # safetensors lets the owner alone read, and a container is another user
        version, model = weights_version(temporary / WEIGHTS), to_json(config)
        if (tokenizer := take_out_tokenizer(model)) is not None:
            (temporary / TOKENIZER).write_bytes(tokenizer)
        content = {
            "format": PLAIN_POOLING if _image_tower(network).pools_plainly else TRAINED_POOLING,
            "name": name,
            "version": version,
            **model,
            "attributes": [task.to_json() for task in tasks],
            **({} if applicability is None else {"applicability": applicability.to_json()}),
            "training": dict(training),
        }
        write_json(temporary / CONFIG, content)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return version


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Fill `network` with the checkpoint's weights, in float32.

    Raises `CheckpointError` when the weights are damaged or of another network, and as `read_weights` does.
    """
    path = checkpoint.folder / WEIGHTS
    tensors = read_weights(checkpoint, _image_tower(network))
    expected = network.state_dict()
    if difference := sorted(set(expected) ^ set(tensors)):
        raise CheckpointError(
            f"{path} does not belong to {CONFIG}: {len(difference)} tensors differ, as {difference[0]}"
        )
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{path} does not belong to {CONFIG}: {key} is {list(value.shape)}, not {list(expected[key].shape)}"
            )
    network.load_state_dict(tensors)


def read_weights(checkpoint: Checkpoint, tower: ImageTower) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors by name, for a network whose image tower is built as `tower` is.

    Raises `CheckpointError` when they are damaged or replaced, and where they were trained with the tower pooled
    otherwise: from the same weights, other answers would come.
    """
    path = checkpoint.folder / WEIGHTS
    tensors = read_tensors(path)
    if weights_version(path) != checkpoint.version:
        raise CheckpointError(f"{path} has been replaced since {CONFIG} was read; load it again")
    if checkpoint.format == PLAIN_POOLING and not tower.pools_plainly:
        raise CheckpointError(
            f"{checkpoint.folder} was made by an older release, which pooled image towers such as "
            f"{checkpoint.config.backbone_name}'s by a plain mean: its answers would be others now. Train it again "
            "from the pretrained towers; until then, serve it with the release that made it"
        )
    return tensors


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; raises `CheckpointError` when it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _image_tower(network: nn.Module) -> ImageTower:
    tower = network.get_submodule("backbone.image")
    assert isinstance(tower, ImageTower)
    return tower


@torch.no_grad()
def stored_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the network's tensors as they are stored: matrices in half precision, all else unchanged.

    Loaded and stored again they are the same, bit for bit. Raises `CheckpointError` where a weight would overflow.
    """
    tensors = {}
    for key, value in network.state_dict().items():
        # Vectors are few and hold statistics and scales that half precision would degrade.
        matrix = value.is_floating_point() and value.ndim >= 2
        tensors[key] = (value.half() if matrix else value).contiguous()
        if value.is_floating_point() and not torch.isfinite(tensors[key]).all():
            raise CheckpointError(f"weight {key} is not finite in half precision")
    return tensors
