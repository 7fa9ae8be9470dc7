"""Labels a whole catalogue on a Ray cluster: the rows and bytes that `model.inference.label` writes on one machine.

The process that asks for it reads the table, so that rows are repaired and counted as everywhere, and cuts it into
units of whole batches. Actors of two kinds work at them: *decoders* read and decode images, on CPUs; *predictors* hold
the checkpoint and answer, on GPUs where there are some. Pixels go from one to the other through Ray's object store,
and the rows come back encoded, to be written in order. A unit whose actor ends, or whose pixels are lost with a
machine, is done again by another one (`model.inference.schedule`).

Actors rather than Ray Data: its blocks are cut by size, so that batches would hold other listings than on one machine;
what it writes can't be continued; and a table other than Parquet can't be read in parallel anyway.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import FetchedImages, Images, open_images
from model.errors import CatalogueError, ConfigError
from model.inference.bulk import Item, LabelJob, Labelling, RowMaker, Shown, decode_item, prepare_shown
from model.inference.label import check_batch_size
from model.inference.output import Block, OutputFormat, Sink, output_format
from model.inference.predictions import ListingPredictor, ModelInfo, Prediction
from model.inference.predictor import Predictor
from model.inference.schedule import Crews, Schedule, Share, cut
from model.inference.stream import Failure, stream
from model.inputs.limits import CATALOGUE
from model.inputs.pool import DecodedImage, DecodePool, memory_for, worker_count
from model.inputs.preprocess import Resizing
from model.tasks import Task
from model.threads import available_cores, settle_threads

OpenFetch = Callable[[], AbstractContextManager[Callable[[str], bytes]]]
"""Opens what fetches images by URL; it is called in each decoder, so it must be possible to pickle it."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where to run: the address of a Ray cluster (`local`: one is started on this machine), and how many actors.

    workers: predictors; None: as many as GPUs, else half as many as CPUs. decoders: None: as many as CPUs are left.
    threads: that a predictor computes with on CPUs.
    """

    address: str
    workers: int | None = None
    decoders: int | None = None
    threads: int = 1


def label_on_cluster(
    checkpoint: str | Path,
    catalogue: str | Path,
    out: str | Path,
    cluster: Cluster,
    *,
    target_precision: float = 0.95,
    attributes: Sequence[str] | None = None,
    batch_size: int = 32,
    open_fetch: OpenFetch | None = None,
    allow_missing_images: bool = False,
    part_format: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    progress: bool = True,
    advance: Callable[[int], None] | None = None,
) -> Labelling:
    """Label a catalogue on a Ray cluster; the arguments and errors are those of `model.inference.label`.

    The checkpoint and the images must be at the same places on every machine; the table only here. Raises `ConfigError`
    too where no cluster answers, or where the checkpoint would be loaded otherwise on one machine than on another, and
    `ModelError` where actors end again and again.
    """
    check_batch_size(batch_size)
    config = CatalogueConfig.load(Path(catalogue).absolute()).without_labels()  # actors work in folders of their own
    images = open_images(config.images)
    load = partial(Predictor.load, os.path.abspath(checkpoint), device=device, dtype=dtype, engine=engine)
    with _connected(cluster.address) as ray, Crews(ray) as crews:
        shares = _shares(ray, cluster, device)
        predictors = crews.hire(PredictActor, (load, cluster.threads, batch_size), shares.predictors, check_same)
        loaded: Loaded = predictors.first()
        job = LabelJob.open(
            loaded.info,
            loaded.tasks,
            config,
            images if open_fetch is None else FetchedImages(images, _fetched_by_decoders),
            target_precision=target_precision,
            attributes=attributes,
            allow_missing_images=allow_missing_images,
        )
        arguments = (ray.put(images), loaded.resizing, open_fetch)  # a zip's directory is sent once
        decoders = crews.hire(DecodeActor, arguments, shares.decoders)
        decoders.first()

        def fill(items: Iterator[Item], output: OutputFormat, sink: Sink, added: Callable[[int], None]) -> None:
            schedule = Schedule(ray, decoders, predictors, job.rows, output.suffix)
            for block in schedule.blocks(cut(items, batch_size, sink.rows)):
                sink.add_block(block)
                added(block.rows)

        return job.run(out, fill, part_format=part_format, progress=progress, advance=advance)


def _fetched_by_decoders(url: str) -> bytes:
    raise CatalogueError(f"{url} is fetched by the cluster's decoders")


def import_ray() -> Any:
    """Return `ray`; `ConfigError` where it isn't installed."""
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("labelling on a cluster needs Ray: pip install 'cma-clip[ray]'") from error
    return ray


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to the cluster at an address, unless this process has, and return `ray`. Raises `ConfigError`."""
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which would be sent to Ray's makers
    local = {"num_cpus": available_cores(), "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **local)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {' '.join(str(error).split())}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Shares:
    """Those of both kinds."""

    predictors: Share
    decoders: Share


def _shares(ray: Any, cluster: Cluster, device: str) -> Shares:
    """Divide the cluster's processors; where there are fewer than actors, each gets a part of one."""
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), 0 if device == "cpu" else int(resources.get("GPU", 0))
    workers = cluster.workers or gpus or max(1, int(cpus) // (2 * cluster.threads))
    threads = 1 if gpus else cluster.threads
    decoders = cluster.decoders or max(1, int(cpus) - workers * threads)
    part = min(1.0, cpus / (workers * threads + decoders))
    # Above 1 Ray takes whole processors alone.
    of_predictor = {"num_cpus": float(int(part * threads)) if part * threads > 1 else part * threads}
    if gpus:
        of_predictor["num_gpus"] = min(1.0, gpus / workers)
    return Shares(Share(workers, of_predictor), Share(decoders, {"num_cpus": part}))


# --- actors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint as it has been loaded on a machine, whose name is `host`."""

    host: str
    info: ModelInfo
    tasks: tuple[Task, ...]
    resizing: Resizing


def check_same(first: Loaded, other: Loaded) -> None:
    """Raise `ConfigError` where two machines would answer differently."""
    for name in ("name", "version", "calibration", "engine", "dtype", "scope_gate", "image_size", "target_precisions"):
        one, two = getattr(first.info, name), getattr(other.info, name)
        if one != two:
            raise ConfigError(
                f"the checkpoint's {name} is {one} on {first.host} and {two} on {other.host}, so their answers would "
                "differ; give each machine the same files, and name an engine that all can run"
            )


class PredictActor:
    """Holds the checkpoint, and answers listings whose images have been decoded."""

    def __init__(self, load: Callable[[], ListingPredictor], threads: int, batch_size: int) -> None:
        self._load, self._threads, self._batch_size = load, threads, batch_size
        self._predictor: ListingPredictor | None = None

    def start(self) -> Loaded:
        """Load the checkpoint. Not in the constructor, whose exceptions Ray reports as the death of the actor."""
        settle_threads(self._threads)
        self._predictor = loaded = self._load()
        return Loaded(host=socket.gethostname(), info=loaded.info, tasks=loaded.tasks, resizing=loaded.resizing)

    def predict(
        self, shown: Sequence[tuple[str, Shown | Failure]], rows: RowMaker, suffix: str, first: int
    ) -> list[Block]:
        """Return the rows of some listings, encoded as an output of this suffix has them: the `first` ones, the others.

        Either is left out where it is empty.
        """
        predictor = self._predictor
        assert predictor is not None, "an actor is started before it is given work"

        def compute(prepared: list[Any]) -> Sequence[Prediction]:
            return predictor.predict(predictor.collate(prepared))

        batches = stream(shown, lambda each: prepare_shown(predictor, each[1]), compute, batch_size=self._batch_size)
        made = [rows.row(listing_id, answer) for batch in batches for (listing_id, _), answer in batch.answers()]
        output = output_format(suffix, rows.names, rows.separators)
        return [output.encode(some) for some in (made[:first], made[first:]) if some]


class DecodeActor:
    """Reads and decodes the images of listings, in processes of its own that can be killed."""

    def __init__(self, images: Images, resizing: Resizing, open_fetch: OpenFetch | None) -> None:
        self._images, self._resizing, self._open_fetch = images, resizing, open_fetch
        self._opened = ExitStack()  # never closed: the pool and its processes end with this one

    def start(self) -> None:
        """Start the processes. Raises `DecodingStoppedError`."""
        workers = worker_count(1)
        self._pool = self._opened.enter_context(DecodePool(workers, memory=memory_for(CATALOGUE.max_pixels)))
        self._threads = self._opened.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="decode"))
        if self._open_fetch is not None:
            self._images = FetchedImages(self._images, self._opened.enter_context(self._open_fetch()))
        self._pool.start()

    def decode(self, items: Sequence[Item]) -> tuple[int, list[tuple[str, Shown | Failure]]]:
        """Return how many items there are, and each one's id with what was decoded of it."""

        def decode(data: bytes) -> DecodedImage:
            return self._pool.decode(data, CATALOGUE, self._resizing)

        shown = self._threads.map(lambda item: (item.id, decode_item(item, self._images, decode)), items)
        return len(items), list(shown)
