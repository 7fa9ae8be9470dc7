"""The layers of towers, from the input up: which stay as they are, which learn more slowly, which save memory."""

from __future__ import annotations

from torch import nn

from model.errors import ConfigError
from model.network.towers import Backbone
from model.training.config import OptimiserConfig


def layers_below_top(backbone: Backbone) -> dict[int, int]:
    """Return how far below the top layer of its tower each parameter is, by the parameter's `id`."""
    return {
        id(parameter): depth
        for tower in (backbone.image, backbone.text)
        for depth, layer in enumerate(reversed(tower.layers()))
        for parameter in layer
    }


def freeze_lower(backbone: Backbone, blocks: int) -> None:
    """Freeze the lowest `blocks` blocks of each tower, and what comes before them; a tower with no more blocks, whole.

    Raises `ConfigError` for a tower with batch normalisation, whose statistics would go on changing.
    """
    _refuse_batch_norm(backbone, "freeze")
    for tower in (backbone.image, backbone.text):
        for layer in tower.layers()[: blocks + 1]:
            for parameter in layer:
                parameter.requires_grad_(False)


def save_memory(backbone: Backbone, config: OptimiserConfig) -> None:
    """Let the towers keep no activations inside their blocks, and compile them, where `config` asks for it.

    Raises `ConfigError` for activation checkpointing of a tower with batch normalisation.
    """
    if config.activation_checkpointing:
        _refuse_batch_norm(backbone, "activation_checkpointing")
        backbone.image.checkpoint_activations()
        backbone.text.checkpoint_activations()
    if config.compile:
        backbone.image.compile()
        backbone.text.compile()


def _refuse_batch_norm(backbone: Backbone, setting: str) -> None:
    if has_batch_norm(backbone):
        raise ConfigError(
            f"{setting} is for Transformers: these towers have batch normalisation, whose statistics a second or a "
            "frozen forward pass would falsify. lock_image freezes an image tower of any kind"
        )


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer normalises by the statistics of the batch, which depend on how it is split."""
    return any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules())
