"""What a training run reports while it runs: TensorBoard, a progress bar, and lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.progress import progress_bar

LOG_EVERY_STEPS = 20

PRINT_EVERY_STEPS = 5 * LOG_EVERY_STEPS


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The log of one run of `steps` optimiser steps, each of a batch of `batch_size` listings."""

    console: Console
    writer: SummaryWriter
    bar: Progress
    task: TaskID
    steps: int
    batch_size: int

    def step(self, step: int, losses: Mapping[str, Tensor], seconds: float) -> None:
        """Report that `step` steps are done, which took `seconds`; the named losses are shown now and then."""
        self.bar.update(self.task, completed=step)
        if step % LOG_EVERY_STEPS:
            return
        values = {name: value.item() for name, value in losses.items()}
        rate = self.batch_size * step / seconds
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        self.writer.add_scalar("train/listings_per_second", rate, step)
        self.bar.update(self.task, description=f"loss {values['total']:.3f} {rate:.0f} listings/s")
        if not self.console.is_terminal and step % PRINT_EVERY_STEPS == 0:
            minutes = (self.steps - step) * seconds / step / 60
            shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            self.console.print(f"step {step}/{self.steps}  {shown}  {rate:.0f} listings/s  {minutes:.0f} min left")

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Record validation scores."""
        for name, value in scores.items():
            self.writer.add_scalar(f"validation/{name}", value, step)


@contextmanager
def open_log(folder: Path, console: Console, *, steps: int, done: int, batch_size: int) -> Iterator[TrainingLog]:
    """Open the log of a run in `folder`, of which `done` steps are done; it is closed whatever happens."""
    with SummaryWriter(str(folder / "tensorboard"), purge_step=done) as writer, progress_bar(console) as bar:
        task = bar.add_task("training", total=steps, completed=done)
        yield TrainingLog(console=console, writer=writer, bar=bar, task=task, steps=steps, batch_size=batch_size)
