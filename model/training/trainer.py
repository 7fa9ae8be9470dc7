"""The training loop that pre-training and fine-tuning share: schedule, guard, average, resume, progress.

A run folder holds `state.pt` (what a resumed run needs), `tensorboard/` and what its owner saves. A run is
deterministic by its seed on one machine, also across an interruption: batches, augmentation and dropout depend
on the step alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from model.device import training_precision
from model.errors import TrainingError
from model.inputs.dataset import TrainingBatch, TrainingBatches
from model.training.config import OptimiserConfig

STATE = "state.pt"

SAVE_EVERY_SECONDS = 180.0

LOG_EVERY_STEPS = 20

Tensors = tuple[Tensor, ...] | list[Tensor]

LossFunction = Callable[[nn.Module, TrainingBatch, float], dict[str, Tensor]]
"""Network, batch (on the device) and the share of the training that is done -> named scalar losses; `total` is what
is minimised."""


@dataclass(kw_only=True)
class Loop:
    """One training run over `batches`, for `optimiser.epochs` epochs.

    validate: called after every epoch with the averaged network; its `score` decides what is best.
    save_best: called with the averaged network and the scores when `score` is the best so far.
    fingerprint: what the run was started with; a state saved under another one is refused.
    Raises `TrainingError` on a non-finite loss, before the update, naming the batch.
    """

    network: nn.Module
    loss: LossFunction
    batches: TrainingBatches
    optimiser: OptimiserConfig
    folder: Path
    device: torch.device
    validate: Callable[[nn.Module], Mapping[str, float]]
    save_best: Callable[[nn.Module, Mapping[str, float]], None]
    fingerprint: Mapping[str, Any]
    ema_decay: float
    console: Console = field(default_factory=lambda: Console(stderr=True))
    best: float = -math.inf
    step: int = 0
    validated: int = 0
    seconds: float = 0.0

    def run(self) -> float:
        """Train to the end, resuming where an earlier run in the folder stopped; return the best score."""
        steps = len(self.batches)
        if steps == 0:
            raise TrainingError(
                f"{len(self.batches.dataset)} training listings do not fill one batch of {self.optimiser.batch_size}"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise TrainingError(f"{self.folder} is a file; a run needs a folder")
        # Convolutions are about twice as fast with the channels last.
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.network, multi_avg_fn=moving_average(self.ema_decay), use_buffers=True)
        self.adamw = torch.optim.AdamW(parameter_groups(self.network, self.optimiser), fused=True)
        self._resume()
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step)
        with self._progress(self._steps), _defer_interrupts() as interrupted:
            for epoch in range(self.validated, self.optimiser.epochs):
                if self.step < (epoch + 1) * steps:
                    self._epoch(epoch, steps, interrupted)
                self._end_epoch(epoch)
        self.writer.close()
        return self.best

    def _epoch(self, epoch: int, steps: int, interrupted: Callable[[], bool]) -> None:
        self.network.train()
        saved = began = time.monotonic()
        for batch in self.batches.epoch(epoch, first_step=self.step - epoch * steps):
            losses = self._update(batch.to(self.device), epoch)
            now = time.monotonic()
            self.seconds, began = self.seconds + now - began, now
            if self.step % LOG_EVERY_STEPS == 0:
                self._log(epoch, losses)
            if interrupted() or now - saved > SAVE_EVERY_SECONDS:
                self._save()
                saved = now
            if interrupted():
                raise KeyboardInterrupt
            self.progress.update(self.task, completed=self.step)

    def _update(self, batch: TrainingBatch, epoch: int) -> dict[str, Tensor]:
        torch.manual_seed(self.optimiser.seed * 1_000_000_007 + self.step)
        self._set_rate()
        with training_precision(self.device):
            losses = self.loss(self.network, batch, self.step / self._steps)
        if not torch.isfinite(losses["total"]):
            raise TrainingError(
                f"the loss is {losses['total'].item()} at epoch {epoch + 1}, batch {self.step % len(self.batches)} "
                f"(step {self.step}); nothing was updated. A smaller learning rate may help."
            )
        if not losses["total"].requires_grad:  # nothing in this batch can be read in a situation that is trained
            self.step += 1
            return losses
        self.adamw.zero_grad(set_to_none=True)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.optimiser.clip_norm)
        if not torch.isfinite(norm):
            raise TrainingError(f"the gradient is not finite at step {self.step}; nothing was updated")
        self.adamw.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return losses | {"gradient_norm": norm}

    @property
    def _steps(self) -> int:
        return len(self.batches) * self.optimiser.epochs

    def _set_rate(self) -> None:
        factor = rate_factor(self.step, self._steps, warmup=round(self._steps * self.optimiser.warmup_share))
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * factor

    def _end_epoch(self, epoch: int) -> None:
        self._save()  # whatever may go wrong while validating
        self.average.eval()
        began = time.monotonic()
        scores = dict(self.validate(self.average.module))
        self.seconds += time.monotonic() - began
        for name, value in scores.items():
            self.writer.add_scalar(f"validation/{name}", value, self.step)
        better = scores["score"] > self.best
        if better:
            self.best = scores["score"]
            self.save_best(self.average.module, scores)
        self.validated = epoch + 1
        self._save()
        summary = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.console.print(
            f"epoch {epoch + 1}/{self.optimiser.epochs}  {self.seconds:.0f} s  {summary}{'  *best' if better else ''}"
        )

    def _log(self, epoch: int, losses: Mapping[str, Tensor]) -> None:
        values = {name: value.item() for name, value in losses.items()}
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, self.step)
        rate = self.optimiser.batch_size * self.step / self.seconds
        self.writer.add_scalar("train/listings_per_second", rate, self.step)
        self.progress.update(
            self.task, description=f"epoch {epoch + 1} loss {values['total']:.3f} {rate:.0f} listings/s"
        )
        if not self.console.is_terminal and self.step % (5 * LOG_EVERY_STEPS) == 0:
            minutes = (self._steps - self.step) * self.seconds / self.step / 60
            shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            self.console.print(
                f"step {self.step}/{self._steps}  {shown}  {rate:.0f} listings/s  {minutes:.0f} min left"
            )

    @contextmanager
    def _progress(self, total: int) -> Iterator[None]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as self.progress:
            self.task = self.progress.add_task("training", total=total, completed=self.step)
            yield

    def _save(self) -> None:
        state = {
            "fingerprint": digest(self.fingerprint),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "adamw": self.adamw.state_dict(),
            "step": self.step,
            "validated": self.validated,
            "best": self.best,
            "seconds": self.seconds,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{STATE}"
        torch.save(state, temporary)
        temporary.replace(self.folder / STATE)

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # what is no state can fail in any way
            raise TrainingError(f"{path} cannot be read ({error}); remove it to start afresh") from error
        if state["fingerprint"] != digest(self.fingerprint):
            raise TrainingError(
                f"{self.folder} holds a run with another catalogue or configuration; "
                "choose another folder, or remove this one to start afresh"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.adamw.load_state_dict(state["adamw"])
        self.step, self.validated = state["step"], state["validated"]
        self.best, self.seconds = state["best"], state["seconds"]
        self.console.print(f"resuming {self.folder} at step {self.step}")


def finished_checkpoint(out: Path) -> Path:
    """Return the checkpoint folder of a run that has ended. Raises `TrainingError` where it is gone."""
    folder = out / "checkpoint"
    if not folder.is_dir():
        raise TrainingError(f"the run in {out} has ended, but its checkpoint is gone; remove {out} to start afresh")
    return folder


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return PyTorch's exponential moving average of `decay`, with a warm-up.

    After n updates the decay is at most `1 - (1 + n) ** (-2/3)`, as timm's `ModelEmaV3` has it: an average over more
    steps than that would remember, in a short run, weights from before the learning rate fell.
    """

    def move(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
        warmed_up = min(decay, 1 - (1 + int(updates)) ** (-2 / 3))
        get_ema_multi_avg_fn(warmed_up)(averages, values, updates)  # type: ignore[no-untyped-call]

    return move


def parameter_groups(network: nn.Module, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Split what is trained by learning rate (towers, rest) and by decay (matrices, but not vectors and embeddings)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:  # a locked tower
            continue
        tower = name.startswith("backbone.")
        decays = parameter.ndim >= 2 and "embedding" not in name
        groups.setdefault((tower, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": config.learning_rate * (config.backbone_rate if tower else 1.0),
            "lr": 0.0,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (tower, decays), parameters in groups.items()
    ]


def rate_factor(step: int, total: int, *, warmup: int) -> float:
    """Return the learning rate's share of its peak: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@contextmanager
def _defer_interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag, so that the step at hand is finished and saved."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def digest(content: Mapping[str, Any]) -> str:
    """Return a hash of JSON content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
