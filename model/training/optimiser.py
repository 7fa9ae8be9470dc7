"""How fast each parameter learns: groups for AdamW, the schedule of the rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.network.towers import Backbone
from model.training.config import OptimiserConfig
from model.training.layers import layers_below_top

Tensors = tuple[Tensor, ...] | list[Tensor]


def parameter_groups(network: nn.Module, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Split what is trained by learning rate (layers of towers, token embeddings, rest) and by decay.

    Matrices decay; vectors and embeddings do not.
    """
    modules = list(network.modules())
    backbones = [module for module in modules if isinstance(module, Backbone)]
    below = {key: layers for each in backbones for key, layers in layers_below_top(each).items()}
    tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    embeddings = {id(each) for module in modules for each in _embeddings(module)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if not parameter.requires_grad:  # of a locked tower, or a frozen layer
            continue
        rate = 1.0
        if id(parameter) in below:
            rate = config.backbone_rate * config.layer_decay ** below[id(parameter)]
        if id(parameter) in tables:
            rate *= config.embedding_rate
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        groups.setdefault((rate, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": config.learning_rate * rate,
            "lr": 0.0,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (rate, decays), parameters in groups.items()
    ]


def _embeddings(module: nn.Module) -> Iterable[Tensor]:
    """Yield what `module` itself says must not decay: towers of timm and of open_clip name theirs by a method."""
    if isinstance(module, nn.Embedding):
        yield module.weight
    named = getattr(module, "no_weight_decay", None)
    if named is not None:
        names = named()
        yield from (parameter for name, parameter in module.named_parameters() if name in names)


def rate_factor(step: int, total: int, *, warmup: int) -> float:
    """Return the learning rate's share of its peak: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return PyTorch's exponential moving average of `decay`, with a warm-up.

    After n updates the decay is at most `1 - (1 + n) ** (-2/3)`, as timm's `ModelEmaV3` has it: an average over more
    steps than that would remember, in a short run, weights from before the learning rate fell.
    """

    def move(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
        warmed_up = min(decay, 1 - (1 + int(updates)) ** (-2 / 3))
        get_ema_multi_avg_fn(warmed_up)(averages, values, updates)  # type: ignore[no-untyped-call]

    return move
