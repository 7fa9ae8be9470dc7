"""Labels a whole catalogue: one row of the output for each row of the table, in order and in constant memory.

The next batch is read and decoded by a few threads while the current one computes. Finished rows go to shards in
a folder beside the output; when the last one is there they are merged into the output, which appears at once. So
an interrupted run loses less than a shard, and goes on where it stopped when it is started again.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import Images, open_images
from model.catalogue.listings import BadRow, Listing, ReadReport, iter_listings
from model.catalogue.tables import estimate_rows
from model.errors import CatalogueError, ConfigError, ModelError
from model.inference.output import OutputRow, Shards, columns_of, output_format
from model.inference.predictions import Prediction, Predictor
from model.inputs.decode import decode_image


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What came of a run: `failed` of the `rows` have an error; `resumed` were there from an earlier run."""

    rows: int
    failed: int
    resumed: int
    report: ReadReport


def label_catalogue(
    predictor: Predictor,
    toml: Path,
    out: Path,
    *,
    target_precision: float,
    batch_size: int,
    attributes: Sequence[str] | None = None,
    progress: bool = True,
) -> Labelling:
    """Label the catalogue that `toml` describes into `out`, CSV or Parquet by its suffix.

    Columns: `id`; for each of `attributes` (None: all of the checkpoint) the label, `_confidence`, `_accepted` and
    `_image_weight`; `error`. A listing that fails, be it for its picture alone, has an error and no labels.

    Raises `ConfigError` for an unknown attribute, a target precision that was not calibrated, an output that
    exists, or one that was begun with other settings; `CatalogueError` for an unusable catalogue; `ModelError`
    where the output cannot be written, a full disk for one.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, not {batch_size}")
    names = _check_attributes(predictor, attributes)
    _check_target(predictor, target_precision)
    config = CatalogueConfig.load(toml).without_labels()
    images = open_images(config.images)
    report = ReadReport(config.table.name)
    shards = Shards.open(out, output_format(out, names), _settings(predictor, config, names, target_precision))
    resumed = shards.rows
    listings = islice(iter_listings(config, images, report), resumed, None)
    try:
        with _progress_bar(disable=not progress) as bar:
            step = bar.add_task("labelling", total=max(estimate_rows(config.table), resumed), completed=resumed)
            for item, answer in _answers(predictor, listings, images, batch_size):
                shards.add(_output_row(item, answer, names, target_precision))
                bar.advance(step)
            shards.finish()
            bar.update(step, total=shards.rows, completed=shards.rows)
    except OSError as error:  # reading raises CatalogueError, so this is the disk that is written to
        raise ModelError(f"cannot write {out}: {error.strerror or error}; what was finished is kept") from error
    return Labelling(rows=shards.rows, failed=shards.failed, resumed=resumed, report=report)


def _check_attributes(predictor: Predictor, attributes: Sequence[str] | None) -> tuple[str, ...]:
    known = [task.name for task in predictor.tasks]
    names = tuple(known if attributes is None else attributes)
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown attribute {unknown[0]!r}; the checkpoint reads {', '.join(known)}")
    if twice := [name for name, count in Counter(columns_of(names)).items() if count > 1]:
        raise ConfigError(f"the output would have two columns called {twice[0]!r}")
    return names


def _check_target(predictor: Predictor, target_precision: float) -> None:
    calibrated = predictor.info.target_precisions
    if not calibrated:
        raise ConfigError(f"checkpoint {predictor.info.name} is not calibrated; run `cma-clip calibrate` first")
    if target_precision not in calibrated:
        raise ConfigError(
            f"target precision {target_precision} was not calibrated; there are {', '.join(map(str, calibrated))}"
        )


def _settings(
    predictor: Predictor, config: CatalogueConfig, names: Sequence[str], target_precision: float
) -> dict[str, Any]:
    """Return all that the output depends on; rows of different settings must not meet in one file."""
    images = config.images
    try:
        with config.table.open("rb") as file:
            table = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CatalogueError(f"cannot read {config.table}: {error.strerror}") from error
    return {
        "checkpoint": predictor.info.version,
        "calibration": predictor.info.calibration,
        "number format": predictor.info.dtype,
        "target precision": target_precision,
        "attributes": list(names),
        "table": table,
        "columns": [config.id, config.title, config.image],
        "images": [images.name, images.stat().st_size if images.is_file() else None] if images else None,
    }


# --- answering ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a listing has no labels."""

    reason: str


def _answers(
    predictor: Predictor, items: Iterator[Listing | BadRow], images: Images, batch_size: int
) -> Iterator[tuple[Listing | BadRow, Prediction | Failure]]:
    """Answer the items in order; while a batch computes, the next one is read and decoded."""

    def prepare(item: Listing | BadRow) -> Any:
        return _prepare(predictor, images, item)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        waiting: deque[tuple[list[Listing | BadRow], list[Future[Any]]]] = deque()
        while batch := list(islice(items, batch_size)):
            waiting.append((batch, [pool.submit(prepare, item) for item in batch]))
            if len(waiting) > 1:
                yield from _answer_batch(predictor, *waiting.popleft())
        while waiting:
            yield from _answer_batch(predictor, *waiting.popleft())


def _prepare(predictor: Predictor, images: Images, item: Listing | BadRow) -> Any:
    """Return the predictor's `Prepared`, or a `Failure`."""
    if isinstance(item, BadRow):
        return Failure(f"line {item.line}: {item.reason}")
    try:
        image = decode_image(images.read(item.image), predictor.info.image_size) if item.image else None
        return predictor.prepare(item.title, image)
    except ModelError as error:
        return Failure(str(error))
    except Exception as error:  # one listing, however odd, must not stop a million others
        return Failure(f"{type(error).__name__}: {error}")


def _answer_batch(
    predictor: Predictor, items: Sequence[Listing | BadRow], futures: Sequence[Future[Any]]
) -> Iterator[tuple[Listing | BadRow, Prediction | Failure]]:
    results = [future.result() for future in futures]
    prepared = [result for result in results if not isinstance(result, Failure)]
    predictions = iter(predictor.predict(predictor.collate(prepared)) if prepared else ())
    for item, result in zip(items, results, strict=True):
        yield item, result if isinstance(result, Failure) else next(predictions)


def _output_row(
    item: Listing | BadRow, answer: Prediction | Failure, names: Sequence[str], target_precision: float
) -> OutputRow:
    if isinstance(answer, Failure):
        return (item.id, *[None] * (4 * len(names)), " ".join(answer.reason.split()))
    cells: list[str | float | bool] = []
    for name in names:
        reading = answer.read(name, target_precision=target_precision, top_k=1)
        weight = reading.modality_attention["image"]
        cells += [reading.label, round(reading.confidence, 6), reading.accepted, round(weight, 6)]
    return (item.id, *cells, "")


# --- progress ----------------------------------------------------------------------------------------------


class _Rate(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:,.0f} listings/s" if task.speed else "")


def _progress_bar(*, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
