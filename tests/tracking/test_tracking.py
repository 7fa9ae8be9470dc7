"""A tiny training that MLflow and Weights & Biases follow themselves: what they keep is what TensorBoard has.

Run by `make test-tracking`, which installs both: MLflow with SQLite, Weights & Biases offline.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from model.catalogue.listings import Catalogue
from model.config import ModelConfig
from model.training.config import TrainConfig
from model.training.tracking import RUNS, Tracking
from model.training.train import train

BLOCK = 1 << 15

pytestmark = pytest.mark.filterwarnings("ignore")  # of both packages


@pytest.fixture(scope="module")
def run(
    catalogue: Catalogue,
    model_config: ModelConfig,
    train_config: TrainConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """Train while both follow, and then go on with both for one more step, as a resumed run does; return its folder."""
    folder = tmp_path_factory.mktemp("followed") / "shop"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent}/mlflow.db")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "attributes")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.chdir(folder.parent)  # MLflow makes a folder for artifacts where it is
        said = io.StringIO()
        train(catalogue, folder, name="shop", model=model_config, config=train_config, console=Console(file=said))
        assert "not followed there" not in said.getvalue(), said.getvalue()
        resumed = Tracking(folder, Console(file=said), done=1000, settings={})
        resumed.log({"train/total": 0.125}, 1001)
        resumed.close(failed=True)
        yield folder


def in_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: {each.step: each.value for each in events.Scalars(name)} for name in events.Tags()["scalars"]}


def alike(found: dict[str, dict[int, float]], expected: dict[str, dict[int, float]]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-6)


def test_mlflow_keeps_what_tensorboard_has_in_one_run(run: Path, train_config: TrainConfig) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("attributes")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == json.loads((run / RUNS).read_text())["mlflow"]
    assert found.info.run_name == "shop"
    assert found.info.status == "FAILED", "what went on with it was said to"
    assert found.data.params["config.optimiser.learning_rate"] == str(train_config.optimiser.learning_rate)
    metrics = {
        name: {each.step: each.value for each in client.get_metric_history(found.info.run_id, name)}
        for name in found.data.metrics
    }
    assert metrics["train/total"][1001] == 0.125
    alike(metrics, in_tensorboard(run))


def test_weights_and_biases_keeps_what_tensorboard_has_under_one_id(run: Path, train_config: TrainConfig) -> None:
    records = [record for file in sorted(run.rglob("run-*.wandb")) for record in kept(file)]
    begun = [record.run for record in records if record.HasField("run")]
    assert {each.run_id for each in begun} == {json.loads((run / RUNS).read_text())["wandb"]}
    assert begun[0].project == "cma-clip"
    assert begun[0].display_name == "shop"
    settings = {each.key: json.loads(each.value_json) for each in begun[0].config.update}
    assert settings["config.optimiser.learning_rate"] == train_config.optimiser.learning_rate
    values: dict[str, dict[int, float]] = {}
    for record in records:
        if record.HasField("history"):
            row = {each.key or each.nested_key[0]: json.loads(each.value_json) for each in record.history.item}
            for name, value in row.items():
                if name != "step" and not name.startswith("_"):
                    values.setdefault(name, {})[row["step"]] = value
    alike(values, in_tensorboard(run))


def kept(file: Path) -> Iterator[Any]:
    """Yield what an offline run keeps, in order: records in LevelDB's log format, behind 7 bytes of a header.

    Blocks of 32 KiB hold chunks: a checksum of 4 bytes, the chunk's size in 2, and its kind: 1 is a whole record; 2, 3
    and 4 are the begin, the middle and the end of one.
    """
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left  # no room for another chunk
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
