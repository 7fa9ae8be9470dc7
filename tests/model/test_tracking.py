"""Where a run is followed: TensorBoard always, other services where they are set up, and none can stop a training."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.training.tracking import RUNS, SERVICES, Tracking

VARIABLES = [name for _, names in SERVICES.values() for name in names]

SETTINGS = {"name": "shop", "config": {"optimiser": {"epochs": 3, "seed": 0}, "compile": False}, "tasks": [["colour"]]}

FLAT = {"name": "shop", "config.optimiser.epochs": 3, "config.optimiser.seed": 0, "config.compile": False}


class Service(ModuleType):
    """A stand-in for the packages `mlflow` and `wandb` that remembers what it was told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.told: list[tuple[str, Any]] = []
        self.broken = False

    # mlflow
    def start_run(self, run_id: str | None, run_name: str | None) -> Any:
        self.told.append(("run", run_id or run_name))
        return type("Run", (), {"info": type("Info", (), {"run_id": "m-1"})})

    def log_params(self, settings: Mapping[str, Any]) -> None:
        self.told.append(("settings", dict(settings)))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        if self.broken:
            raise ConnectionError("the server is gone")
        self.told.append(("values", {**values, "step": step}))

    def end_run(self, status: str) -> None:
        self.told.append(("end", status))

    # wandb: the session is the module itself
    id = "w-1"

    def init(self, *, project: str, name: str, config: Mapping[str, Any], **options: Any) -> Service:
        self.told += [("run", options["id"] or name), ("settings", dict(config)), ("project", project)]
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.told.append(("metric", (name, step_metric)))

    def log(self, values: Mapping[str, float]) -> None:
        self.told.append(("values", dict(values)))

    def finish(self, exit_code: int) -> None:
        self.told.append(("end", exit_code))


@pytest.fixture(autouse=True)
def nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


def follow(folder: Path, said: io.StringIO, *, done: int = 0, failed: bool = False) -> None:
    tracking = Tracking(folder, Console(file=said, width=200), done=done, settings=SETTINGS)
    tracking.log({"train/total": 0.5}, done + 20)
    tracking.log({"validation/score": 0.25}, done + 30)
    tracking.close(failed=failed)


def installed(monkeypatch: pytest.MonkeyPatch, name: str) -> Service:
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    return service


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_is_there_without_being_asked_for(tmp_path: Path, said: io.StringIO) -> None:
    follow(tmp_path, said)
    assert scalars(tmp_path) == {"train/total": [(20, 0.5)], "validation/score": [(30, 0.25)]}
    assert not (tmp_path / RUNS).exists()
    assert said.getvalue() == ""


def test_mlflow_follows_where_its_variable_is_set(
    tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = installed(monkeypatch, "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    follow(tmp_path, said)
    assert service.told == [
        ("run", tmp_path.name),
        ("settings", FLAT),
        ("values", {"train/total": 0.5, "step": 20}),
        ("values", {"validation/score": 0.25, "step": 30}),
        ("end", "FINISHED"),
    ]
    assert scalars(tmp_path)


@pytest.mark.parametrize("variable", SERVICES["wandb"][1])
def test_weights_and_biases_follows_where_a_variable_of_it_is_set(
    tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    service = installed(monkeypatch, "wandb")
    monkeypatch.setenv(variable, "offline")
    follow(tmp_path, said, failed=True)
    assert service.told == [
        ("run", tmp_path.name),
        ("settings", FLAT),
        ("project", "offline" if variable == "WANDB_PROJECT" else "cma-clip"),
        ("metric", ("*", "step")),
        ("values", {"train/total": 0.5, "step": 20}),
        ("values", {"validation/score": 0.25, "step": 30}),
        ("end", 1),
    ]


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    services = {name: installed(monkeypatch, name) for name in SERVICES}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(tmp_path, said)
    assert json.loads((tmp_path / RUNS).read_text()) == {"mlflow": "m-1", "wandb": "w-1"}
    for service in services.values():
        service.told.clear()
    follow(tmp_path, said, done=30)
    assert services["mlflow"].told[0] == ("run", "m-1")
    assert services["mlflow"].told[1][0] == "values", "parameters can be set once"
    assert services["wandb"].told[0] == ("run", "w-1")


def test_a_service_that_is_not_installed_is_named(
    tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setattr("model.training.tracking.find_spec", lambda _: None)
    follow(tmp_path, said)
    assert said.getvalue() == "MLFLOW_TRACKING_URI is set, but mlflow is not installed: pip install mlflow\n"
    assert scalars(tmp_path)


def test_a_service_that_fails_is_named_once_and_training_goes_on(
    tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = installed(monkeypatch, "mlflow")
    service.broken = True
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    follow(tmp_path, said)
    assert said.getvalue() == "mlflow: the server is gone; this run is not followed there any further\n"
    assert len(scalars(tmp_path)) == 2


def test_of_several_processes_the_others_follow_nothing(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    service = installed(monkeypatch, "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    tracking = Tracking(None, Console(file=said), done=0, settings=SETTINGS)
    tracking.log({"train/total": 0.5}, 20)
    tracking.close(failed=False)
    assert service.told == []
