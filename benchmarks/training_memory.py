"""What memory training takes on a GPU, by tower and by what is done to save it; no GPU is needed.

    python -m benchmarks.training_memory [--out benchmarks/results/training_memory.json]

The loss is computed on tensors that have shape, type and device but no content (PyTorch's `FakeTensorMode`), in
bfloat16 as on a GPU, and every tensor that is kept for the backward pass is counted once. Weights, moving average,
gradients and AdamW's two moments are 4 bytes a parameter each. Not counted: what a kernel needs while it runs, CUDA's
context, and what the allocator loses to fragmentation.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from model.network.cma_clip import CMAClip, build_cma_clip
from model.network.losses import multi_task_loss
from model.tasks import Task
from model.training.config import clip_training
from model.training.initialise import initial_model
from model.training.layers import freeze_lower, save_memory

TASKS = tuple(Task(name=f"attribute {n}", labels=tuple(f"label {m}" for m in range(50))) for n in range(7))

TITLE_TOKENS = 24

SIZES = (8, 16)
"""Two micro-batches tell what a listing takes from what is kept once, such as weights in bfloat16."""

WAYS = ((0, False), (0, True), (6, False), (6, True))
"""How many blocks are frozen, and whether activations are checkpointed."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one way to train a tower takes: `fixed` bytes, and `listing` bytes for each listing of a micro-batch."""

    backbone: str
    freeze: int
    activation_checkpointing: bool
    parameters: int
    fixed: int
    listing: int


def footprint(backbone: str, *, freeze: int, checkpointing: bool) -> Footprint:
    """Return what training `backbone` takes with its lowest `freeze` blocks frozen."""
    model = initial_model(backbone, None)
    optimiser = dataclasses.replace(clip_training(100_000).optimiser, activation_checkpointing=checkpointing)
    with FakeTensorMode(), torch.device("cuda"):
        network = build_cma_clip(model, TASKS).train()
        if freeze:
            freeze_lower(network.backbone, freeze)
        save_memory(network.backbone, optimiser)
        small, large = (_kept(network, size, model.preprocess.image_size) for size in SIZES)
    parameters = list(network.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    listing = (large - small) // (SIZES[1] - SIZES[0])
    return Footprint(
        backbone=backbone,
        freeze=freeze,
        activation_checkpointing=checkpointing,
        parameters=sum(each.numel() for each in parameters),
        fixed=4 * (2 * sum(each.numel() for each in parameters) + 3 * trained) + small - SIZES[0] * listing,
        listing=listing,
    )


def _kept(network: CMAClip, size: int, image_size: tuple[int, int]) -> int:
    """Return how many bytes the forward pass of `size` listings keeps for the backward pass, besides the weights."""
    own = {each.untyped_storage()._cdata for each in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    labels = torch.zeros(size, len(TASKS), dtype=torch.long)
    with saved_tensors_hooks(keep, lambda tensor: tensor), _as_on_a_gpu():
        image = network.backbone.encode_image(torch.zeros(size, 3, *image_size))
        text = network.backbone.encode_text(torch.zeros(size, TITLE_TOKENS, dtype=torch.long))
        # As `TrainingLoss`: both modalities, mismatched pairs, each modality alone.
        total = torch.stack(
            [
                multi_task_loss(network(*given).logits, labels)
                for given in ((image, text), (image, text), (image, None), (None, text))
            ]
        ).sum()
    assert total.requires_grad
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Autocast to bfloat16, with FlashAttention: `torch.autocast` and PyTorch's choice of attention ask for a real GPU.

    Masks are left out, which a GPU's memory-efficient attention takes at no other cost than their own.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        half = (each.to(torch.bfloat16) for each in (query, key, value))
        attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(*half)[0]
        return attended

    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with patch.object(F, "scaled_dot_product_attention", attend):
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def main(
    backbones: Annotated[str, typer.Option(help="names of backbones")] = "ViT-B-32,ViT-B-16,ViT-L-14",
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file", show_default=False)] = None,
) -> None:
    """Print a row for each backbone and way to train it."""
    found = [
        footprint(name, freeze=freeze, checkpointing=checkpointing)
        for name in backbones.split(",")
        for freeze, checkpointing in WAYS
    ]
    for each in found:
        print(
            f"{each.backbone:10} freeze {each.freeze}  checkpointing {each.activation_checkpointing!s:5}  "
            f"{each.parameters / 1e6:6.0f} M parameters  {each.fixed / 2**30:5.2f} GiB, "
            f"and {each.listing / 2**20:6.1f} MiB a listing"
        )
    if out is not None:
        out.write_text(json.dumps([dataclasses.asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
