"""What a training run reports while it runs: to its trackers, by a progress bar, and in lines without a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor

from model.progress import progress_bar
from model.training import distributed
from model.training.tracking import Tracking

LOG_EVERY_STEPS = 20

PRINT_EVERY_STEPS = 5 * LOG_EVERY_STEPS


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The log of one run of `steps` optimiser steps, each of a batch of `batch_size` listings."""

    console: Console
    tracking: Tracking
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
        followed = {f"train/{name}": value for name, value in values.items()}
        self.tracking.log(followed | {"train/listings_per_second": rate}, step)
        self.bar.update(self.task, description=f"loss {values['total']:.3f} {rate:.0f} listings/s")
        if not self.console.is_terminal and step % PRINT_EVERY_STEPS == 0:
            minutes = (self.steps - step) * seconds / step / 60
            shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            self.console.print(f"step {step}/{self.steps}  {shown}  {rate:.0f} listings/s  {minutes:.0f} min left")

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Record validation scores."""
        self.tracking.log({f"validation/{name}": value for name, value in scores.items()}, step)


@contextmanager
def open_log(
    folder: Path, console: Console, *, steps: int, done: int, batch_size: int, settings: Mapping[str, Any]
) -> Iterator[TrainingLog]:
    """Open the log of a run in `folder`, of which `done` steps are done; it is closed whatever happens.

    Of several processes, the first one alone reports to trackers.
    """
    tracking = Tracking(folder if distributed.is_first() else None, console, done=done, settings=settings)
    failed = True
    try:
        with progress_bar(console) as bar:
            task = bar.add_task("training", total=steps, completed=done)
            yield TrainingLog(
                console=console, tracking=tracking, bar=bar, task=task, steps=steps, batch_size=batch_size
            )
        failed = False
    finally:
        tracking.close(failed=failed)
