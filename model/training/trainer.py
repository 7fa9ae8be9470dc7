"""The trainer that pre-training and fine-tuning share: schedule, guards, moving average, resuming, early end.

A run folder holds `state.pt` (what a resumed run needs), `tensorboard/` and what its owner saves. A run is
deterministic by its seed on one machine, also across an interruption: batches, augmentation and dropout depend
on the step alone. Where several processes train together (`model/training/distributed.py`), each runs this trainer on
its share of every batch; after each step all hold the same weights, averages and optimiser state.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar, cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from model.device import training_attention, training_precision
from model.errors import TrainingError
from model.inputs.dataset import TrainingBatch, TrainingBatches
from model.training import distributed
from model.training.config import OptimiserConfig
from model.training.log import TrainingLog, open_log
from model.training.optimiser import moving_average, parameter_groups, rate_factor

STATE = "state.pt"

SAVE_EVERY_SECONDS = 180.0

Network = TypeVar("Network", bound=nn.Module)


@dataclass(kw_only=True)
class Trainer(Generic[Network]):
    """One training run over `batches`, for at most `optimiser.epochs` epochs.

    loss: called with the network, a part of a batch on the device and the share of the training that is done; returns
    named scalars, always the same ones, of which `total` is minimised. A batch's are the sum over its parts, and the
    mean over processes. split: divides a process's share of a batch into parts, to save memory; as a rule it has one.
    validate: called after every epoch with the averaged network; its `score` decides what is best, and when training
    ends early (`OptimiserConfig.patience`).
    save_best: called with the averaged network and the scores when `score` is the best so far, or not further below it
    than `OptimiserConfig.tolerance`.
    fingerprint: what the run was started with; a state saved under another one is refused.
    Raises `TrainingError` where the listings do not fill a batch, or `folder` is a file; and in `run` on a non-finite
    loss, before the update, naming the batch.
    """

    network: Network
    loss: Callable[[Network, TrainingBatch, float], dict[str, Tensor]]
    batches: TrainingBatches
    optimiser: OptimiserConfig
    folder: Path
    device: torch.device
    validate: Callable[[Network], Mapping[str, float]]
    save_best: Callable[[Network, Mapping[str, float]], None]
    fingerprint: Mapping[str, Any]
    ema_decay: float
    split: Callable[[TrainingBatch], Sequence[TrainingBatch]] = lambda batch: [batch]
    console: Console = field(default_factory=distributed.first_console)
    average: AveragedModel = field(init=False)
    adamw: torch.optim.AdamW = field(init=False)
    learner: distributed.Learner = field(init=False)
    step: int = field(default=0, init=False)
    validated: int = field(default=0, init=False)
    best: float = field(default=-math.inf, init=False)
    best_epoch: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not len(self.batches):
            raise TrainingError(
                f"{len(self.batches.dataset)} training listings do not fill one batch of {self.optimiser.batch_size}"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise TrainingError(f"{self.folder} is a file; a run needs a folder")
        # Convolutions are about twice as fast with the channels last.
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.network, multi_avg_fn=moving_average(self.ema_decay), use_buffers=True)
        self.adamw = torch.optim.AdamW(parameter_groups(self.network, self.optimiser), fused=True)
        self.learner = distributed.Learner(self.network, lambda *part: self.loss(self.network, *part))

    def run(self) -> float:
        """Train to the end, resuming where an earlier run in the folder stopped; return the best score."""
        self._start()
        options: dict[str, Any] = {"steps": self.steps, "done": self.step, "batch_size": self.optimiser.batch_size}
        options["settings"] = self.fingerprint
        with open_log(self.folder, self.console, **options) as log, _defer_interrupts() as interrupted:
            while self.validated < self.optimiser.epochs and not self._out_of_patience:
                if self.step < (self.validated + 1) * len(self.batches):
                    self._train_epoch(self.validated, log, interrupted)
                self._validate_epoch(self.validated, log)
        if self.validated < self.optimiser.epochs:
            self.console.print(
                f"no better validation score in {self.optimiser.patient_epochs} epochs: training ends after epoch "
                f"{self.validated} of {self.optimiser.epochs}, and epoch {self.best_epoch} is kept "
                "(optimiser.patience=1 trains to the end)"
            )
        return self.best

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return len(self.batches) * self.optimiser.epochs

    @property
    def _out_of_patience(self) -> bool:
        return self.validated - self.best_epoch >= self.optimiser.patient_epochs

    def _train_epoch(self, epoch: int, log: TrainingLog, interrupted: Callable[[], bool]) -> None:
        self.network.train()
        saved = began = time.monotonic()
        for batch in self.batches.epoch(epoch, first_step=self.step - epoch * len(self.batches)):
            losses = self._update(batch.to(self.device), epoch)
            now = time.monotonic()
            self.seconds, began = self.seconds + now - began, now
            log.step(self.step, losses, self.seconds)
            stop = distributed.any_of(interrupted())
            if stop or now - saved > SAVE_EVERY_SECONDS:
                self._save()
                saved = now
            if stop:
                distributed.wait_for_all()  # a process that ends has the others ended: not before all is saved
                raise KeyboardInterrupt

    def _update(self, batch: TrainingBatch, epoch: int) -> dict[str, Tensor]:
        self._set_rate()
        self.adamw.zero_grad(set_to_none=True)
        losses, learned = self._backward(batch)
        if not torch.isfinite(losses["total"]):
            raise TrainingError(
                f"the loss is {losses['total'].item()} at epoch {epoch + 1}, batch {self.step % len(self.batches)} "
                f"(step {self.step}); nothing was updated. A smaller learning rate may help."
            )
        if not learned:  # nothing in this batch belongs to a situation that is trained
            self.step += 1
            return losses
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.optimiser.clip_norm)
        if not torch.isfinite(norm):
            raise TrainingError(f"the gradient is not finite at step {self.step}; nothing was updated")
        self.adamw.step()
        distributed.average_buffers(self.network)
        self.average.update_parameters(self.network)
        self.step += 1
        return losses | {"gradient_norm": norm}

    def _backward(self, batch: TrainingBatch) -> tuple[dict[str, Tensor], bool]:
        """Add up the gradients of a batch, part by part; return its losses, and whether anything was learned from."""
        parts, losses, learned = self.split(batch), list[dict[str, Tensor]](), False
        for number, part in enumerate(parts):
            # Each part draws numbers of its own; the first one of all, those of a batch that is not divided.
            stream = distributed.rank() * len(parts) + number
            torch.manual_seed(self.optimiser.seed * 1_000_000_007 + self.step + (stream << 40))
            with self.learner.accumulating(last=part is parts[-1]) as learn, training_attention(self.device):
                with training_precision(self.device, self.network):
                    values, useful = learn(part, self.step / self.steps)
                values["total"].backward()  # type: ignore[no-untyped-call]
            losses.append({name: value.detach() for name, value in values.items()})
            learned |= useful
        sums = {name: torch.stack([each[name] for each in losses]).sum() for name in losses[0]}
        return distributed.mean(sums), distributed.any_of(learned)

    def _set_rate(self) -> None:
        factor = rate_factor(self.step, self.steps, warmup=round(self.steps * self.optimiser.warmup_share))
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * factor

    def _validate_epoch(self, epoch: int, log: TrainingLog) -> None:
        self._save()  # whatever may go wrong while validating
        self.average.eval()
        averaged = cast(Network, self.average.module)
        began = time.monotonic()
        scores = dict(self.validate(averaged))
        self.seconds += time.monotonic() - began
        log.validation(self.step, scores)
        self.validated = epoch + 1
        better = scores["score"] > self.best - self.optimiser.tolerance
        self.best = max(self.best, scores["score"])
        if better:
            self.best_epoch = self.validated
            if distributed.is_first():
                self.save_best(averaged, scores)
        self._save()
        distributed.wait_for_all()
        summary = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.console.print(
            f"epoch {self.validated}/{self.optimiser.epochs}  {self.seconds:.0f} s  {summary}{'  *best' * better}"
        )

    def _save(self) -> None:
        if not distributed.is_first():  # all hold the same
            return
        state = {
            "fingerprint": digest(self.fingerprint),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "adamw": self.adamw.state_dict(),
            **{name: getattr(self, name) for name in PROGRESS},
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
        except Exception as error:  # a file that is not a state can fail in any way
            raise TrainingError(f"{path} cannot be read ({error}); remove it to start afresh") from error
        if state["fingerprint"] != digest(self.fingerprint):
            raise TrainingError(
                f"{self.folder} holds a run with another catalogue or configuration; "
                "choose another folder, or remove this one to start afresh"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.adamw.load_state_dict(state["adamw"])
        for name in PROGRESS:
            setattr(self, name, state[name])
        self.console.print(f"resuming {self.folder} at step {self.step}")

    def _start(self) -> None:
        """Resume, and make sure that all processes start from the same state."""
        self._resume()
        if len(set(distributed.gathered(self.step))) > 1:
            raise TrainingError(
                f"not every process finds the run's {STATE} in {self.folder}: all machines need the same storage there"
            )


PROGRESS = ("step", "validated", "best", "best_epoch", "seconds")
"""How far a `Trainer` has come: what its state holds besides tensors."""


def finished_checkpoint(out: Path) -> Path:
    """Return the checkpoint folder of a run that has ended. Raises `TrainingError` where it is gone."""
    folder = out / "checkpoint"
    if not folder.is_dir():
        raise TrainingError(f"the run in {out} has ended, but its checkpoint is gone; remove {out} to start afresh")
    return folder


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
