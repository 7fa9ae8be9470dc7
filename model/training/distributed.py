"""The processes that train together, one for each device, as `torchrun` starts them.

They share each batch: what is trained, step by step, is the same whatever their number. Each holds the whole network;
PyTorch's DDP averages the gradients. The first one writes and prints, the others only compute. In a process that
trains alone everything here returns what it is given, or does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.device import pick_device
from model.errors import ConfigError, TrainingError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long processes wait for the first one while it does what it does alone, such as calibrating."""


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def first_console() -> Console:
    """Return a console on standard error, which stays silent in all processes but the first."""
    return Console(stderr=True, quiet=not is_first())


def join(device: str) -> torch.device:
    """Join the processes that `torchrun` started, until this one ends; return its device.

    `device` is `auto`, `cpu` or `cuda`, and any name that `pick_device` knows where a process trains alone. Raises
    `ConfigError` for a device that is not there.
    """
    if process_count() == 1:
        return pick_device(device)
    target = _own_device(device)
    if not dist.is_initialized():
        if target.type == "cuda":
            torch.cuda.set_device(target)
        dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    return target


@cache
def _patient_group() -> dist.ProcessGroup:
    """Return the group for what is in the memory of the CPU, in which a process may be waited for for very long.

    The other one gives up after minutes, so that training does not hang where a machine is gone.
    """
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup), "every process is in it"
    return group


def _own_device(device: str) -> torch.device:
    target = pick_device(device)
    if target.type != "cuda":
        return target
    if target.index is not None:
        raise ConfigError(f"each of several processes has a GPU of its own; use cuda, not {device}")
    return pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


def share_of(batch_size: int) -> slice:
    """Return the rows of a batch that are this process's. Raises `TrainingError` where they cannot be shared evenly."""
    if batch_size % process_count():
        raise TrainingError(
            f"a batch of {batch_size} listings cannot be shared evenly by {process_count()} processes; "
            "set optimiser.batch_size to a multiple of their number"
        )
    size = batch_size // process_count()
    return slice(rank() * size, (rank() + 1) * size)


def part_of(count: int) -> range:
    """Return which of `count` things are this process's, in order: the parts of all processes, in theirs, are all."""
    return range(rank() * count // process_count(), (rank() + 1) * count // process_count())


# --- what the processes tell each other; all have to call these, in the same order -------------------------------


def total(numbers: Tensor) -> Tensor:
    """Return the sum of a tensor, on the device that trains, over the processes."""
    if dist.is_initialized():
        dist.all_reduce(numbers)
    return numbers


def mean(scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the means of named scalars, the same names in each process, over the processes."""
    if not dist.is_initialized():
        return dict(scalars)
    together = torch.stack([value.detach().float() for value in scalars.values()])
    return dict(zip(scalars, total(together) / process_count(), strict=True))


def any_of(flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, group=_patient_group())
    return bool(flags)


def wait_for_all() -> None:
    """Return when all processes have come here."""
    any_of(False)


def gathered(content: T) -> list[T]:
    """Return the content of each process, in order; it is pickled."""
    if not dist.is_initialized():
        return [content]
    contents: list[Any] = [None] * process_count()
    dist.all_gather_object(contents, content, group=_patient_group())
    return contents


def average_buffers(network: nn.Module) -> None:
    """Set floating-point buffers, the statistics of batch normalisation, to their means over the processes.

    Each process has seen its own share of the batch.
    """
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not dist.is_initialized() or not buffers:
        return
    together = total(torch.cat([buffer.flatten() for buffer in buffers])) / process_count()
    values = torch.split(together, [buffer.numel() for buffer in buffers])
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value.view_as(buffer))


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, `[n, d]` of each, as one tensor, in order.

    For a loss that each process computes of all rows: the gradient of its own rows is then the sum over the processes,
    which are all the same.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = gathered(len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # collectives take tensors of one shape
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        ctx.own = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))
        return torch.cat([each[:count] for each, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.own] * process_count()


# --- gradients ---------------------------------------------------------------------------------------------------


class Learner:
    """Computes losses with a network; their gradients are averaged over the processes in the backward pass."""

    def __init__(self, network: nn.Module, compute: Callable[..., dict[str, Tensor]]) -> None:
        module = _Forward(network, compute)
        self.module: nn.Module = module
        if dist.is_initialized():
            self.module = DistributedDataParallel(
                module,
                forward_sync_buffers=False,  # they are averaged instead
                find_unused_parameters=True,  # not every batch has every modality
                gradient_as_bucket_view=True,
            )

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[Callable[..., tuple[dict[str, Tensor], bool]]]:
        """Yield the forward pass of a part of a batch, whose backward pass has to be in the block too.

        It returns what `compute` does, and whether there is anything to learn from. Gradients add up in each process;
        the `last` part's backward pass averages their sums.
        """
        module = self.module
        with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
            yield module


class _Forward(nn.Module):
    """A network and what is computed with it as one module: DDP hooks into the forward pass of a module."""

    def __init__(self, network: nn.Module, compute: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.network, self.compute = network, compute

    def forward(self, *given: Any) -> tuple[dict[str, Tensor], bool]:
        losses = self.compute(*given)
        learned = losses["total"].requires_grad
        if not learned:  # other processes may have something to learn from: their gradients are averaged with zeros
            trained = [each.flatten()[0] for each in self.network.parameters() if each.requires_grad]
            losses["total"] = losses["total"] + 0.0 * torch.stack(trained).sum()
        return losses, learned
