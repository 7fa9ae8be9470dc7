"""Where the losses and scores of a run are followed: TensorBoard; MLflow and Weights & Biases where they are set up.

The latter are set up by environment variables of their own, which they read themselves: a run is sent to MLflow where
`MLFLOW_TRACKING_URI` is set, and to Weights & Biases where `WANDB_PROJECT`, `WANDB_API_KEY` or `WANDB_MODE` is. A
resumed run goes on in the same place: `tracking.json` in its folder holds what they call it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from model.checkpoint.folder import write_json

RUNS = "tracking.json"

T = TypeVar("T")


class Tracker(Protocol):
    """One place where a run is followed."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record named values after `step` optimiser steps."""

    def close(self, *, failed: bool) -> None:
        """Say that the run has ended, or, with `failed`, was interrupted or went wrong."""


class TensorBoard:
    """Event files in the folder of the run; what an interrupted run wrote after step `done` is taken back."""

    def __init__(self, folder: Path, *, done: int) -> None:
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class MLflow:
    """A run in MLflow; `settings` become its parameters."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None) -> None:
        import mlflow  # noqa: PLC0415 - optional, and slow to import

        self.mlflow = mlflow
        self.run = mlflow.start_run(run_id=run, run_name=None if run else folder.name).info.run_id
        if run is None:
            mlflow.log_params(settings)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics(values, step=step)

    def close(self, *, failed: bool) -> None:
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


class WeightsAndBiases:
    """A run in Weights & Biases; `settings` become its configuration."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None) -> None:
        import wandb  # noqa: PLC0415 - optional, and slow to import

        self.session = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cma-clip"),
            name=folder.name,
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config=dict(settings),
            id=run,
            resume="allow" if run else None,
        )
        # Steps of its own, since W&B's cannot go back: a killed run resumes where it was saved last.
        self.session.define_metric("*", step_metric="step")
        self.run = self.session.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.session.log({**values, "step": step})

    def close(self, *, failed: bool) -> None:
        self.session.finish(exit_code=int(failed))


SERVICES: Mapping[str, tuple[Callable[..., MLflow | WeightsAndBiases], tuple[str, ...]]] = {
    "mlflow": (MLflow, ("MLFLOW_TRACKING_URI",)),
    "wandb": (WeightsAndBiases, ("WANDB_PROJECT", "WANDB_API_KEY", "WANDB_MODE")),
}
"""By the name of the package: its tracker, and the variables of which one has to be set."""


class Tracking:
    """All trackers of a run. One that fails is named, and left out from then on: no training ends because of its log.

    Without `folder` there are none: of several processes, the first one alone reports.
    """

    def __init__(self, folder: Path | None, console: Console, *, done: int, settings: Mapping[str, Any]) -> None:
        self.console = console
        self.trackers: dict[str, Tracker] = {}
        if folder is not None:
            self.trackers["TensorBoard"] = TensorBoard(folder, done=done)
            self._open_services(folder, done=done, settings=_flat(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record named values after `step` optimiser steps."""
        for name, tracker in list(self.trackers.items()):
            self._attempt(name, partial(tracker.log, values, step))

    def close(self, *, failed: bool) -> None:
        """End what was opened."""
        for name, tracker in list(self.trackers.items()):
            self._attempt(name, partial(tracker.close, failed=failed))

    def _open_services(self, folder: Path, *, done: int, settings: Mapping[str, Any]) -> None:
        path = folder / RUNS
        runs = json.loads(path.read_text(encoding="utf-8")) if done and path.is_file() else {}
        for package, (service, variables) in SERVICES.items():
            variable = next((each for each in variables if os.environ.get(each)), None)
            if variable is None:
                continue
            if find_spec(package) is None:
                self.console.print(f"{variable} is set, but {package} is not installed: pip install {package}")
                continue
            tracker = self._attempt(package, partial(service, folder, settings, runs.get(package)))
            if tracker is not None:
                self.trackers[package], runs[package] = tracker, tracker.run
        if runs:
            write_json(path, runs)

    def _attempt(self, name: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:  # whatever a server, a network or a disk may do
            self.trackers.pop(name, None)
            self.console.print(f"{name}: {error or type(error).__name__}; this run is not followed there any further")
            return None


def _flat(settings: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    """Return nested settings by dotted path; lists, such as those of labels, are left out."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{inside}{name}.")
        elif not isinstance(value, list):
            found[inside + name] = value
    return found
