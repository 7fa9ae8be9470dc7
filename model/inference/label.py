"""Labels a whole catalogue: one row of the output for each row of the table, in order and in constant memory.

The next batch is read and decoded while the current one computes (`model.inference.stream`), by processes that can be
killed (`model.inputs.pool`): a catalogue holds images from anywhere, and none of them may end the run. Finished rows
go to shards in a folder beside the output; after the last one they are merged into the output, which appears at once.
So an interrupted run continues where it stopped when it is started again. Several machines:
`model.inference.cluster`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import FetchedImages, Images, open_images
from model.errors import ConfigError
from model.inference.bulk import Item, LabelJob, Labelling, decode_item, prepare_shown
from model.inference.output import OutputFormat, Sink
from model.inference.predictions import ListingPredictor, Prediction
from model.inference.predictor import Predictor
from model.inference.stream import Failure, stream
from model.inputs.limits import CATALOGUE
from model.inputs.pool import DecodedImage, DecodePool, memory_for, worker_count
from model.threads import settle_threads, thread_count


def label(
    checkpoint: str | Path,
    catalogue: str | Path,
    out: str | Path,
    *,
    target_precision: float = 0.95,
    attributes: Sequence[str] | None = None,
    batch_size: int = 32,
    fetch: Callable[[str], bytes] | None = None,
    allow_missing_images: bool = False,
    part_format: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    threads: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Labelling:
    """Label a whole catalogue, named by its TOML file, with a checkpoint folder: `label_catalogue` does the work.

        label("weights/fashion", "shop.toml", "labels.parquet", target_precision=0.9)

    threads: that compute; 0: as many as there are cores. advance: is called with the number of rows that were just
    finished. Raises as that function and `Predictor.load` do.
    """
    settle_threads(threads)
    predictor = Predictor.load(checkpoint, device=device, dtype=dtype, engine=engine)
    return label_catalogue(
        predictor,
        Path(catalogue),
        out,
        target_precision=target_precision,
        batch_size=batch_size,
        attributes=attributes,
        fetch=fetch,
        allow_missing_images=allow_missing_images,
        part_format=part_format,
        advance=advance,
    )


def label_catalogue(
    predictor: ListingPredictor,
    toml: Path,
    out: str | Path,
    *,
    target_precision: float,
    batch_size: int,
    attributes: Sequence[str] | None = None,
    fetch: Callable[[str], bytes] | None = None,
    allow_missing_images: bool = False,
    part_format: str | None = None,
    progress: bool = True,
    advance: Callable[[int], None] | None = None,
) -> Labelling:
    """Label the catalogue that `toml` describes into `out`, CSV or Parquet by its suffix.

    `out` may be the URL of a file in an object store (`s3://bucket/labels.parquet`), and a folder, here or there, where
    it ends in a slash: then it is filled with parts, in `part_format` (csv or parquet; None: parquet).

    Columns: `id`; for each of `attributes` (None: all of the checkpoint) the label, `_confidence`, `_accepted`,
    `_abstention` (why it is not accepted, else empty) and `_image_weight`; `familiarity` (empty without a scope gate);
    `error`. The cells of a multi-valued attribute hold all accepted labels, or the likeliest where none is, joined by
    its separator; the three columns after it are joined in the same order. A listing that fails, if only for its image,
    has an error and no labels. `fetch` returns the bytes behind an image's URL, or raises `ModelError`; several threads
    call it. Without it a URL is an error. A listing whose image is not there is labelled by its title alone where only
    its id names the image and others are there, or with `allow_missing_images`. `progress` shows a bar on standard
    error, where that is a terminal; `advance` is called with the number of rows that were just finished.

    Raises `ConfigError` for an unknown attribute, a target precision that was not calibrated, an output that
    exists, that another run is writing, or that was begun with other settings; `CatalogueError` for an unusable
    catalogue, and where a column names images of which none is there, unless they may be missing;
    `LabellingInterrupted` on Ctrl-C, with every finished row kept (of a folder or an object store: every part);
    `ModelError` where the output cannot be written, because the disk is full for example.
    """
    check_batch_size(batch_size)
    config = CatalogueConfig.load(toml).without_labels()
    images: Images = open_images(config.images)
    if fetch is not None:
        images = FetchedImages(images, fetch)
    job = LabelJob.open(
        predictor.info,
        predictor.tasks,
        config,
        images,
        target_precision=target_precision,
        attributes=attributes,
        allow_missing_images=allow_missing_images,
    )

    def fill(items: Iterator[Item], _output: OutputFormat, sink: Sink, added: Callable[[int], None]) -> None:
        for item, answer in _answers(predictor, items, images, batch_size):
            sink.add(job.rows.row(item.id, answer))
            added(1)

    return job.run(out, fill, part_format=part_format, progress=progress, advance=advance)


def check_batch_size(batch_size: int) -> None:
    """Raise `ConfigError` for a batch of nothing."""
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, not {batch_size}")


def _answers(
    predictor: ListingPredictor, items: Iterator[Item], images: Images, batch_size: int
) -> Iterator[tuple[Item, Prediction | Failure]]:
    """Answer the items in order."""
    with DecodePool(worker_count(thread_count()), memory=memory_for(CATALOGUE.max_pixels)) as workers:

        def decode(data: bytes) -> DecodedImage:
            return workers.decode(data, CATALOGUE, predictor.resizing)

        def prepare(item: Item) -> Any:
            return prepare_shown(predictor, decode_item(item, images, decode))

        def predict(prepared: list[Any]) -> Sequence[Prediction]:
            return predictor.predict(predictor.collate(prepared))

        for batch in stream(items, prepare, predict, batch_size=batch_size):
            yield from batch.answers()
