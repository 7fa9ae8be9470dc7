"""The layers of towers, from the input up: which stay as they are, which learn more slowly, which save memory.

Layer 0 holds what comes before the blocks: patches, class token, token embeddings, positions. Then come the blocks,
the last one with the norm after it, and at the top what pools them, where a tower has such a layer.
"""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from model.errors import ConfigError
from model.network.towers import Backbone
from model.training.config import OptimiserConfig

_OPEN_CLIP = {
    "stem": r"^(?:conv1|class_embedding|positional_embedding|patchnorm_pre_ln|ln_pre|token_embedding|cls_emb)",
    "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^ln_(?:post|final)", (99999,))],
}
"""Which parameters of open_clip's Transformers are in which layer, as timm's towers say it of theirs."""


def layers(tower: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of a tower, layer by layer, the lowest first."""
    inner = next((each for each in tower.modules() if hasattr(each, "group_matcher")), None)
    matcher = _OPEN_CLIP if inner is None else inner.group_matcher(coarse=False)
    if inner is None:
        inner = next((each for each in tower.modules() if hasattr(each, "transformer")), tower)
    parameters = dict(inner.named_parameters())
    found = [[parameters[name] for name in names] for _, names in sorted(group_parameters(inner, matcher).items())]
    known = {id(parameter) for layer in found for parameter in layer}
    above = [parameter for parameter in tower.parameters() if id(parameter) not in known]
    return [*found, above] if above else found


def layers_below_top(backbone: Backbone) -> dict[int, int]:
    """Return how far below the top layer of its tower each parameter is, by the parameter's `id`."""
    return {
        id(parameter): depth
        for tower in (backbone.image, backbone.text)
        for depth, layer in enumerate(reversed(layers(tower)))
        for parameter in layer
    }


def freeze_lower(backbone: Backbone, blocks: int) -> None:
    """Freeze the lowest `blocks` blocks of each tower, and what comes before them; a tower with no more blocks, whole.

    Raises `ConfigError` for a tower with batch normalisation, whose statistics would go on changing.
    """
    _refuse_batch_norm(backbone, "freeze")
    for tower in (backbone.image, backbone.text):
        for layer in layers(tower)[: blocks + 1]:
            for parameter in layer:
                parameter.requires_grad_(False)


def save_memory(backbone: Backbone, config: OptimiserConfig) -> None:
    """Let the towers keep no activations inside their blocks, and compile them, where `config` asks for it.

    Raises `ConfigError` for activation checkpointing of a tower with batch normalisation.
    """
    if config.activation_checkpointing:
        _refuse_batch_norm(backbone, "activation_checkpointing")
        for module in backbone.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = True
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
