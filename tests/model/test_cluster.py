"""Labelling on a cluster, with Ray in this process: the bytes of one machine, whatever ends in between.

`tests/ray` runs the same on Ray itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.errors import CheckpointError, ConfigError, DecodingStoppedError, ModelError
from model.inference import cluster, output, schedule
from model.inference.bulk import LabellingInterrupted
from model.inference.cluster import Cluster, import_ray, label_on_cluster
from model.inference.predictor import Predictor
from model.inputs.decode import decode_image
from model.inputs.limits import Limits
from model.inputs.pool import DecodedImage
from model.inputs.preprocess import ImageTransform, Resizing
from tests.model.fake_ray import FakeRay, ObjectLostError
from tests.model.test_label import FakePredictor, label, png, write_catalogue, write_named

ROWS = 40
TABLE = "id,title\n" + "".join(f"{n},{'' if n % 7 == 3 else f'Title {n}'}\n" for n in range(ROWS)) + "torn\n"


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "UNIT_ROWS", 6)
    monkeypatch.setattr(output, "SHARD_ROWS", 4)
    monkeypatch.setattr(output, "MERGED_SHARDS", 2)
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: FakePredictor())
    monkeypatch.setattr(cluster, "DecodePool", PoolHere)


class PoolHere:
    """Decodes in this process, which saves starting others for every actor."""

    def __init__(self, workers: int, *, memory: int) -> None:
        pass

    def __enter__(self) -> PoolHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        pass

    def decode(self, data: bytes, limits: Limits, resizing: Resizing) -> DecodedImage:
        decoded = decode_image(data, resizing.image_size, limits)
        return DecodedImage(ImageTransform(resizing).show(decoded.image), decoded.warnings)


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    return write_catalogue(folder, TABLE, {"2": png("red"), "3": png("blue"), "4": b"torn"})


@pytest.fixture(scope="module")
def one_machine(toml: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("one") / "one.csv"
    label(toml, out)
    return out.read_bytes()


def on_cluster(
    toml: Path, out: str | Path, ray: FakeRay, *, workers: int = 2, decoders: int = 1, **options: Any
) -> Any:
    arguments: dict[str, Any] = {"target_precision": 0.9, "batch_size": 3, "progress": False, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "import_ray", lambda: ray)
        where = Cluster(address="local", workers=workers, decoders=decoders)
        return label_on_cluster("weights", toml, out, where, **arguments)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_bytes_and_the_report_are_those_of_one_machine(toml: Path, tmp_path: Path, suffix: str) -> None:
    one, many = tmp_path / f"one{suffix}", tmp_path / f"many{suffix}"
    here, there = label(toml, one), on_cluster(toml, many, FakeRay())
    assert many.read_bytes() == one.read_bytes()
    assert str(there.report) == str(here.report)
    assert (there.rows, there.failed, there.resumed) == (here.rows, here.failed, 0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ends=st.sets(st.tuples(st.sampled_from(["start", "decode", "predict"]), st.integers(1, 8)), max_size=4),
    seed=st.integers(0, 100),
)
def test_whatever_ends_in_between_the_bytes_are_the_same(
    toml: Path, one_machine: bytes, tmp_path_factory: pytest.TempPathFactory, ends: set[tuple[str, int]], seed: int
) -> None:
    out = tmp_path_factory.mktemp("out") / "many.csv"
    ray = FakeRay(ends=lambda name, call: (name, call) in ends, seed=seed)
    on_cluster(toml, out, ray, workers=3, decoders=2)
    assert out.read_bytes() == one_machine
    assert all(actor.has_ended for actor in ray.actors)
    assert ray.is_shut_down


def test_a_run_goes_on_where_one_machine_stopped_and_the_other_way_round(
    toml: Path, one_machine: bytes, tmp_path: Path
) -> None:
    with pytest.raises(LabellingInterrupted):
        label(toml, tmp_path / "a.csv", FakePredictor(dies_after=9))
    resumed = on_cluster(toml, tmp_path / "a.csv", FakeRay()).resumed
    assert 0 < resumed < ROWS
    with pytest.raises(LabellingInterrupted):
        on_cluster(toml, tmp_path / "b.csv", FakeRay(ends=interrupt_at("predict", 6)))
    assert label(toml, tmp_path / "b.csv").resumed > 0
    for name in ("a.csv", "b.csv"):
        assert (tmp_path / name).read_bytes() == one_machine


def interrupt_at(name: str, call: int) -> Any:
    def ends(now: str, number: int) -> bool:
        if (now, number) == (name, call):
            raise KeyboardInterrupt
        return False

    return ends


def test_units_hold_whole_batches() -> None:
    sizes = [len(unit.items) for unit in schedule.cut(iter(range(20)), 4)]  # type: ignore[arg-type]
    assert sizes == [4, 4, 4, 4, 4]  # not 6
    assert [len(unit.items) for unit in schedule.cut(iter(range(20)), 3)] == [6, 6, 6, 2]  # type: ignore[arg-type]


def test_images_by_url_are_fetched_by_the_decoders(tmp_path: Path) -> None:
    opened = []

    @contextmanager
    def open_fetch() -> Iterator[Any]:
        opened.append(True)
        yield lambda url: png("red")

    toml = write_named(tmp_path, ["https://a.example/1.png"] * 5, {})
    label(toml, tmp_path / "one.csv", fetch=lambda url: png("red"))
    on_cluster(toml, tmp_path / "many.csv", FakeRay(), open_fetch=open_fetch, decoders=2)
    assert (tmp_path / "many.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert opened == [True] * 2


def test_no_more_is_read_ahead_than_the_actors_may_have(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, open_units = 0, set[int]()
    cut, add = schedule.cut, output.Shards.add_block

    def counted(*arguments: Any) -> Iterator[schedule.Unit]:
        nonlocal most
        for unit in cut(*arguments):
            open_units.add(unit.number)
            most = max(most, len(open_units))
            yield unit

    def added(self: output.Shards, block: output.Block) -> None:
        open_units.discard(min(open_units))
        add(self, block)

    monkeypatch.setattr(cluster, "cut", counted)
    monkeypatch.setattr(output.Shards, "add_block", added)
    monkeypatch.setattr(schedule, "DEPTH", 1)
    on_cluster(toml, tmp_path / "out.csv", FakeRay(), workers=1, decoders=1)
    assert most == 4  # of 7: two actors, one unit each, twice


# --- what can't be mended ----------------------------------------------------------------------------------


def test_a_unit_that_ends_every_actor_ends_the_run_and_what_was_finished_is_kept(toml: Path, tmp_path: Path) -> None:
    ray = FakeRay(ends=lambda name, call: name == "predict" and call > 3)
    with pytest.raises(ModelError, match=r"listings from '\d+' on were begun 5 times|end again and again"):
        on_cluster(toml, tmp_path / "out.csv", ray)
    assert label(toml, tmp_path / "out.csv").resumed > 0


def test_actors_that_cannot_even_start_end_the_run(toml: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="end again and again with nothing done"):
        on_cluster(toml, tmp_path / "out.csv", FakeRay(ends=lambda name, call: name == "start"))
    assert not list(tmp_path.iterdir())


def test_lost_pixels_are_decoded_again(
    toml: Path, one_machine: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, lost = cluster.PredictActor.predict, [True, True]

    def loses(self: Any, *arguments: Any) -> Any:
        if lost:
            lost.pop()
            raise ObjectLostError("with its machine")
        return predict(self, *arguments)

    monkeypatch.setattr(cluster.PredictActor, "predict", loses)
    ray = FakeRay()
    on_cluster(toml, tmp_path / "many.csv", ray)
    assert (tmp_path / "many.csv").read_bytes() == one_machine
    assert len(ray.actors) == 3  # no predictor is to blame


def test_a_machine_that_cannot_decode_is_given_up(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, broken = cluster.DecodeActor.decode, [True]

    def stops(self: Any, items: Any) -> Any:
        if broken:
            broken.pop()
            raise DecodingStoppedError("no decode worker can be started")
        return decode(self, items)

    monkeypatch.setattr(cluster.DecodeActor, "decode", stops)
    ray = FakeRay()
    assert on_cluster(toml, tmp_path / "out.csv", ray).rows == ROWS + 1
    assert len(ray.actors) == 4


def test_a_bug_is_shown_as_it_is(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePredictor, "collate", lambda *_: 1 / 0)
    with pytest.raises(Exception, match="division by zero"):
        on_cluster(toml, tmp_path / "out.csv", FakeRay())


def test_a_checkpoint_that_is_not_there_is_one_line(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise CheckpointError("there is no checkpoint folder weights")

    monkeypatch.setattr(Predictor, "load", missing)
    with pytest.raises(CheckpointError, match="there is no checkpoint folder weights"):
        on_cluster(toml, tmp_path / "out.csv", FakeRay())


def test_machines_with_different_checkpoints_are_refused(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = iter(["torch", "openvino-int8", "torch"])

    def loaded(*_: Any, **__: Any) -> FakePredictor:
        predictor = FakePredictor()
        predictor.info = replace(predictor.info, engine=next(engines))
        return predictor

    monkeypatch.setattr(Predictor, "load", loaded)
    with pytest.raises(ConfigError, match=r"the checkpoint's engine is (torch|openvino-int8) on .* name an engine"):
        on_cluster(toml, tmp_path / "out.csv", FakeRay())


def test_mistakes_cost_nothing(toml: Path, tmp_path: Path) -> None:
    ray = FakeRay()
    with pytest.raises(ConfigError, match="batch size"):
        on_cluster(toml, tmp_path / "out.csv", ray, batch_size=0)
    assert not ray.begun
    with pytest.raises(ConfigError, match="unknown attribute"):
        on_cluster(toml, tmp_path / "out.csv", ray, attributes=["shape"])
    assert not list(tmp_path.iterdir())
    assert all(actor.has_ended for actor in ray.actors)


# --- the cluster -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "where", "predictors", "decoders"),
    [
        ({"CPU": 8.0}, Cluster(address="auto"), (4, {"num_cpus": 1.0}), (4, {"num_cpus": 1.0})),
        ({"CPU": 1.0}, Cluster(address="auto"), (1, {"num_cpus": 0.5}), (1, {"num_cpus": 0.5})),
        ({"CPU": 2.0}, Cluster(address="auto", workers=2, decoders=2), (2, {"num_cpus": 0.5}), (2, {"num_cpus": 0.5})),
        ({"CPU": 16.0}, Cluster(address="auto", threads=4), (2, {"num_cpus": 4.0}), (8, {"num_cpus": 1.0})),
        (
            {"CPU": 32.0, "GPU": 4.0},
            Cluster(address="auto"),
            (4, {"num_cpus": 1.0, "num_gpus": 1.0}),
            (28, {"num_cpus": 1.0}),
        ),
        (
            {"CPU": 8.0, "GPU": 1.0},
            Cluster(address="auto", workers=2),
            (2, {"num_cpus": 1.0, "num_gpus": 0.5}),
            (6, {"num_cpus": 1.0}),
        ),
    ],
)
def test_processors_are_divided(
    resources: dict[str, float], where: Cluster, predictors: tuple[int, Any], decoders: tuple[int, Any]
) -> None:
    shares = cluster._shares(FakeRay(resources=resources), where, "auto")
    assert (shares.predictors.count, shares.predictors.options) == predictors
    assert (shares.decoders.count, shares.decoders.options) == decoders
    cpus = sum(share.count * share.options["num_cpus"] for share in (shares.predictors, shares.decoders))
    assert cpus <= resources["CPU"]


def test_without_the_gpu_where_the_device_is_a_cpu() -> None:
    shares = cluster._shares(FakeRay(resources={"CPU": 4.0, "GPU": 1.0}), Cluster(address="auto"), "cpu")
    assert shares.predictors.options == {"num_cpus": 1.0}


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379"])
def test_a_local_cluster_is_started_and_a_remote_one_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    ray = FakeRay()
    monkeypatch.setattr(cluster, "import_ray", lambda: ray)
    with cluster._connected(address):
        assert ray.begun["address"] == address
        assert ("num_cpus" in ray.begun) is (address == "local")
    assert ray.is_shut_down


def test_a_connection_that_is_there_is_used_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    ray.connected = True
    monkeypatch.setattr(cluster, "import_ray", lambda: ray)
    with cluster._connected("auto"):
        pass
    assert not ray.begun
    assert not ray.is_shut_down


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: Any) -> None:
        raise ConnectionError("Could not find any\nrunning Ray instance")

    ray = FakeRay()
    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setattr(cluster, "import_ray", lambda: ray)
    with (
        pytest.raises(ConfigError, match="no Ray cluster answers at auto: Could not find any running Ray instance"),
        cluster._connected("auto"),
    ):
        pass


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'cma-clip\[ray\]'"):
        import_ray()
