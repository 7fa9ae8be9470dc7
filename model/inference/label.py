"""Labels a whole catalogue: one row of the output for each row of the table, in order and in constant memory.

The next batch is read and decoded by a few threads while the current one computes (`model.inference.stream`). Finished
rows go to shards in a folder beside the output; after the last one they are merged into the output, which appears at
once. So an interrupted run continues where it stopped when it is started again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import FetchedImages, Images, open_images
from model.catalogue.listings import BadRow, Listing, MissingImages, ReadReport, has_images, iter_listings
from model.catalogue.tables import estimate_rows
from model.errors import CatalogueError, ConfigError, ModelError
from model.inference.output import OutputRow, Shards, columns_of, joined, output_format
from model.inference.predictions import (
    AttributePrediction,
    LabelPrediction,
    ListingPredictor,
    Prediction,
    check_target_precision,
)
from model.inference.predictor import Predictor
from model.inference.stream import Failure, prepare_listing, stream
from model.inputs.decode import decode_image
from model.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """The result of a run: `failed` of the `rows` have an error; `resumed` are from an earlier, interrupted run."""

    rows: int
    failed: int
    resumed: int
    report: ReadReport


class LabellingInterrupted(KeyboardInterrupt):
    """A run was interrupted by Ctrl-C: `rows` of about `total` are finished, and kept in `folder`."""

    def __init__(self, rows: int, total: int, folder: Path) -> None:
        super().__init__(f"{rows:,} of about {total:,} rows are finished")
        self.rows, self.total, self.folder = rows, total, folder


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
    device: str = "auto",
    dtype: str = "auto",
) -> Labelling:
    """Label a whole catalogue, named by its TOML file, with a checkpoint folder: `label_catalogue` does the work.

        label("weights/fashion", "shop.toml", "labels.parquet", target_precision=0.9)

    Raises as that function and `Predictor.load` do.
    """
    predictor = Predictor.load(checkpoint, device=device, dtype=dtype)
    return label_catalogue(
        predictor,
        Path(catalogue),
        Path(out),
        target_precision=target_precision,
        batch_size=batch_size,
        attributes=attributes,
        fetch=fetch,
        allow_missing_images=allow_missing_images,
    )


def label_catalogue(
    predictor: ListingPredictor,
    toml: Path,
    out: Path,
    *,
    target_precision: float,
    batch_size: int,
    attributes: Sequence[str] | None = None,
    fetch: Callable[[str], bytes] | None = None,
    allow_missing_images: bool = False,
    progress: bool = True,
) -> Labelling:
    """Label the catalogue that `toml` describes into `out`, CSV or Parquet by its suffix.

    Columns: `id`; for each of `attributes` (None: all of the checkpoint) the label, `_confidence`, `_accepted`,
    `_abstention` (why it is not accepted, else empty) and `_image_weight`; `familiarity` (empty without a scope gate);
    `error`. The cells of a multi-valued attribute hold all accepted labels, or the likeliest where none is, joined by
    its separator; the three columns after it are joined in the same order. A listing that fails, if only for its image,
    has an error and no labels. `fetch` returns the bytes behind an image's URL, or raises `ModelError`; several threads
    call it. Without it a URL is an error. A listing whose image is not there is labelled by its title alone where only
    its id names the image and others are there, or with `allow_missing_images`. `progress` shows a bar on standard
    error, where that is a terminal.

    Raises `ConfigError` for an unknown attribute, a target precision that was not calibrated, an output that
    exists, that another run is writing, or that was begun with other settings; `CatalogueError` for an unusable
    catalogue, and where a column names images of which none is there, unless they may be missing;
    `LabellingInterrupted` on Ctrl-C, with every finished row kept; `ModelError` where the output cannot be written,
    because the disk is full for example.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, not {batch_size}")
    names = _check_attributes(predictor, attributes)
    check_target_precision(predictor.info, target_precision)
    config = CatalogueConfig.load(toml).without_labels()
    images: Images = open_images(config.images)
    if fetch is not None:
        images = FetchedImages(images, fetch)
    report = ReadReport(config.table.name)
    missing = MissingImages.ALLOWED if allow_missing_images else _missing_images(config, images)
    total = estimate_rows(config.table)
    console = Console(stderr=True, force_terminal=None if progress else False)
    separators = {task.name: task.separator for task in predictor.tasks if task.separator is not None}
    output = output_format(out, names, separators)
    settings = _settings(predictor, config, names, target_precision)
    settings["missing images"] = allow_missing_images
    try:
        with Shards.open(out, output, settings) as shards, progress_bar(console, unit="listings") as bar:
            resumed = shards.rows
            items = iter_listings(config, images, report, missing=missing)
            listings = islice(items, resumed, None)
            step = bar.add_task("labelling", total=max(total, resumed), completed=resumed)
            try:
                for item, answer in _answers(predictor, listings, images, batch_size):
                    shards.add(_output_row(item, answer, names, separators, target_precision))
                    bar.advance(step)
                shards.finish()
            except KeyboardInterrupt:
                raise LabellingInterrupted(shards.rows_taken, total, shards.folder) from None
            bar.update(step, total=shards.rows, completed=shards.rows)
    except OSError as error:  # reading raises CatalogueError, so this is the output's disk
        raise ModelError(f"cannot write {out}: {error.strerror or error}; what was finished is kept") from error
    return Labelling(rows=shards.rows, failed=shards.failed, resumed=resumed, report=report)


def _missing_images(config: CatalogueConfig, images: Images) -> MissingImages:
    """Return what becomes of rows whose image is not there: where not one image is, the template is wrong, and the
    titles' answers would hide it.
    """
    try:
        return MissingImages.BY_NAME if has_images(config, images) else MissingImages.REFUSED
    except CatalogueError as error:
        raise CatalogueError(f"{error}; allow missing images to label by the titles alone") from None


def _check_attributes(predictor: ListingPredictor, attributes: Sequence[str] | None) -> tuple[str, ...]:
    known = [task.name for task in predictor.tasks]
    names = tuple(known if attributes is None else attributes)
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown attribute {unknown[0]!r}; the checkpoint predicts {', '.join(known)}")
    if twice := [name for name, count in Counter(columns_of(names)).items() if count > 1]:
        raise ConfigError(f"the output would have two columns called {twice[0]!r}")
    return names


def _settings(
    predictor: ListingPredictor, config: CatalogueConfig, names: Sequence[str], target_precision: float
) -> dict[str, Any]:
    """Return all that the output depends on; rows of different settings must not meet in one file."""
    images = config.images
    try:
        with config.table.open("rb") as file:
            table = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CatalogueError(f"cannot read {config.table}: {error.strerror}") from error
    return {
        "layout of the output": list(columns_of(["attribute"])),  # which another release may have
        "checkpoint": predictor.info.version,
        "calibration": predictor.info.calibration,
        "scope gate": predictor.info.scope_gate,
        "engine": predictor.info.engine,
        "number format": predictor.info.dtype,
        "target precision": target_precision,
        "attributes": list(names),
        "table": table,
        "columns": [config.id, config.title, config.image],
        "reading": [config.delimiter, config.encoding, dict(config.separator), config.placeholders],
        "images": [images.name, images.stat().st_size if images.is_file() else None] if images else None,
    }


# --- answering ---------------------------------------------------------------------------------------------


def _answers(
    predictor: ListingPredictor, items: Iterator[Listing | BadRow], images: Images, batch_size: int
) -> Iterator[tuple[Listing | BadRow, Prediction | Failure]]:
    """Answer the items in order."""

    def prepare(item: Listing | BadRow) -> Any:
        return _prepare(predictor, images, item)

    def predict(prepared: list[Any]) -> Sequence[Prediction]:
        return predictor.predict(predictor.collate(prepared))

    for batch in stream(items, prepare, predict, batch_size=batch_size):
        yield from batch.answers()


def _prepare(predictor: ListingPredictor, images: Images, item: Listing | BadRow) -> Any:
    """Return the listing ready to be batched, or a `Failure`."""
    if isinstance(item, BadRow):
        return Failure(str(item))
    try:
        return _prepare_first(predictor, images, item)
    except ModelError as error:
        return Failure(str(error))
    except Exception as error:  # one listing, however odd, must not stop a million others
        return Failure(f"{type(error).__name__}: {error}")


def _prepare_first(predictor: ListingPredictor, images: Images, listing: Listing) -> Any:
    """Prepare the listing with the first of its images that can be read; raises the first one's `ModelError`."""
    if listing.embedded is not None:
        decoded = decode_image(listing.embedded, predictor.info.image_size)
        return predictor.prepare(listing.title, decoded.image, warnings=decoded.warnings)
    failure: ModelError | None = None
    for name in (listing.image, *listing.further_images):
        try:
            return prepare_listing(predictor, images, listing.title, name)
        except ModelError as error:
            failure = failure or error
    raise failure or ModelError("no image")


def _output_row(
    item: Listing | BadRow,
    answer: Prediction | Failure,
    names: Sequence[str],
    separators: Mapping[str, str],
    target_precision: float,
) -> OutputRow:
    if isinstance(answer, Failure):
        return (item.id, *[None] * (len(columns_of(names)) - 2), " ".join(answer.reason.split()))
    cells: list[str | float | bool | None] = []
    for name in names:
        prediction = answer.attribute(name, target_precision=target_precision, top_k=1)
        if name in separators:
            columns = zip(*(_verdict(each) for each in prediction.labels), strict=True)
            cells += [joined(column, separators[name]) for column in columns]
        else:
            cells += _verdict(prediction)
        cells.append(round(prediction.modality_attention["image"], 6))
    familiarity = answer.scope.familiarity
    return (item.id, *cells, None if familiarity is None else round(familiarity, 6), "")


def _verdict(found: AttributePrediction | LabelPrediction) -> tuple[str | float | bool | None, ...]:
    return found.label, round(found.confidence, 6), found.accepted, found.abstention
