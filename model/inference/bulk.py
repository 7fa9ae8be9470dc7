"""What labelling a whole catalogue consists of, on one machine (`model.inference.label`) and on a cluster
(`model.inference.cluster`): what is read, how an image is decoded, what becomes of an answer, and where the rows go.

Both must write the same bytes, so all that decides them is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import Images
from model.catalogue.listings import BadRow, Listing, MissingImages, ReadReport, has_images, iter_listings
from model.catalogue.tables import estimate_rows, hash_table
from model.errors import CatalogueError, ConfigError, DecodingStoppedError, ModelError
from model.inference.output import OutputFormat, OutputRow, Sink, columns_of, joined
from model.inference.parts import open_output
from model.inference.predictions import (
    AttributePrediction,
    BatchingPredictor,
    LabelPrediction,
    ModelInfo,
    Prediction,
    check_target_precision,
)
from model.inference.stream import Failure
from model.inputs.pool import DecodedImage
from model.progress import progress_bar
from model.stores import Place, RemotePath
from model.tasks import Task

Item = Listing | BadRow

Decode = Callable[[bytes], DecodedImage]
"""Makes the model's pixels of an image file; raises `ModelError`."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """The result of a run: `failed` of the `rows` have an error; `resumed` are from an earlier, interrupted run."""

    rows: int
    failed: int
    resumed: int
    report: ReadReport


class LabellingInterrupted(KeyboardInterrupt):
    """A run was interrupted by Ctrl-C: `rows` of about `total` are finished, and kept at `place`."""

    def __init__(self, rows: int, total: int, place: str) -> None:
        super().__init__(f"{rows:,} of about {total:,} rows are finished")
        self.rows, self.total, self.place = rows, total, place


# --- a row's way -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A listing whose image, where it has one, has been decoded."""

    title: str | None
    image: DecodedImage | None


def decode_item(item: Item, images: Images, decode: Decode) -> Shown | Failure:
    """Decode the first image of a listing that can be read. Raises `DecodingStoppedError`, no listing's fault."""
    if isinstance(item, BadRow):
        return Failure(str(item))
    return _or_failure(lambda: Shown(item.title, _first_image(item, images, decode)))


def prepare_shown(predictor: BatchingPredictor, shown: Shown | Failure) -> Any:
    """Return the listing ready to be batched, or a `Failure`."""
    if isinstance(shown, Failure):
        return shown
    if shown.image is None:
        return _or_failure(lambda: predictor.prepare(shown.title, None))
    image = shown.image
    return _or_failure(lambda: predictor.prepare(shown.title, image.image, warnings=image.warnings))


def _or_failure(step: Callable[[], Result]) -> Result | Failure:
    try:
        return step()
    except DecodingStoppedError:
        raise
    except ModelError as error:
        return Failure(str(error))
    except Exception as error:  # one listing, however odd, must not stop a million others
        return Failure(f"{type(error).__name__}: {error}")


def _first_image(listing: Listing, images: Images, decode: Decode) -> DecodedImage | None:
    """Decode the first image that can be read; raises the first one's `ModelError`."""
    if listing.embedded is not None:
        return decode(listing.embedded)
    if listing.image is None:
        return None
    failure: ModelError | None = None
    for name in (listing.image, *listing.further_images):
        try:
            return decode(images.read(name))
        except DecodingStoppedError:
            raise
        except ModelError as error:
            failure = failure or error
    raise failure or ModelError("no image")


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes rows of answers: of these attributes, accepted or not at this target precision.

    separators: what stands between the labels of multi-valued attributes.
    """

    names: tuple[str, ...]
    separators: Mapping[str, str]
    target_precision: float

    def row(self, listing_id: str, answer: Prediction | Failure) -> OutputRow:
        """Return the row of a listing."""
        if isinstance(answer, Failure):
            return (listing_id, *[None] * (len(columns_of(self.names)) - 2), " ".join(answer.reason.split()))
        cells: list[str | float | bool | None] = []
        for name in self.names:
            prediction = answer.attribute(name, target_precision=self.target_precision, top_k=1)
            if name in self.separators:
                columns = zip(*(_verdict(each) for each in prediction.labels), strict=True)
                cells += [joined(column, self.separators[name]) for column in columns]
            else:
                cells += _verdict(prediction)
            cells.append(round(prediction.modality_attention["image"], 6))
        familiarity = answer.scope.familiarity
        return (listing_id, *cells, None if familiarity is None else round(familiarity, 6), "")


def _verdict(found: AttributePrediction | LabelPrediction) -> tuple[str | float | bool | None, ...]:
    return found.label, round(found.confidence, 6), found.accepted, found.abstention


# --- a run -------------------------------------------------------------------------------------------------

Fill = Callable[[Iterator[Item], OutputFormat, Sink, Callable[[int], None]], None]
"""Answers the items, and adds a row for each to the sink, in order; tells the last argument how many were added."""


@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """A catalogue to be labelled by a checkpoint that has been loaded, here or elsewhere: see `open`."""

    config: CatalogueConfig
    images: Images
    rows: RowMaker
    missing: MissingImages
    settings: Mapping[str, Any] = field(repr=False)
    """All that the output depends on."""

    @classmethod
    def open(
        cls,
        info: ModelInfo,
        tasks: Sequence[Task],
        config: CatalogueConfig,
        images: Images,
        *,
        target_precision: float,
        attributes: Sequence[str] | None,
        allow_missing_images: bool,
    ) -> LabelJob:
        """Check what was asked for against the checkpoint; config: without labels; images: those that it names.

        Raises `ConfigError` for an unknown attribute or a target precision that was not calibrated, `CatalogueError`
        where a column names images of which none is there, unless they may be missing.
        """
        names = _check_attributes([task.name for task in tasks], attributes)
        check_target_precision(info, target_precision)
        separators = {task.name: task.separator for task in tasks if task.separator is not None}
        return cls(
            config=config,
            images=images,
            rows=RowMaker(names=names, separators=separators, target_precision=target_precision),
            missing=MissingImages.ALLOWED if allow_missing_images else _missing_images(config, images),
            settings={
                **_settings(info, config, names, target_precision),
                "missing images": allow_missing_images,
            },
        )

    def run(
        self,
        out: str | Path,
        fill: Fill,
        *,
        part_format: str | None = None,
        progress: bool = True,
        advance: Callable[[int], None] | None = None,
    ) -> Labelling:
        """Write the output `out`, or go on with one that was interrupted.

        part_format: csv or parquet (None), of the parts where `out` is a folder. advance: is called with the number of
        rows that were just added. Raises `ConfigError` for an output that can't be written, or was begun with other
        settings; `LabellingInterrupted` on Ctrl-C; `ModelError` where its disk is full, for example.
        """
        report = ReadReport(self.config.table.name)
        total = estimate_rows(self.config.table)
        console = Console(stderr=True, force_terminal=None if progress else False)
        try:
            with (
                open_output(out, self.rows.names, self.rows.separators, self.settings, part_format) as (output, sink),
                progress_bar(console, unit="listings") as bar,
            ):
                resumed = sink.rows
                items = iter_listings(self.config, self.images, report, missing=self.missing)
                step = bar.add_task("labelling", total=max(total, resumed), completed=resumed)

                def added(rows: int) -> None:
                    bar.advance(step, rows)
                    if advance is not None:
                        advance(rows)

                try:
                    fill(islice(items, resumed, None), output, sink, added)
                    sink.finish()
                except KeyboardInterrupt:
                    raise LabellingInterrupted(sink.rows_taken, total, sink.place) from None
                bar.update(step, total=sink.rows, completed=sink.rows)
        except OSError as error:  # reading raises CatalogueError, so this is the output's disk
            raise ModelError(f"cannot write {out}: {error.strerror or error}; what was finished is kept") from error
        return Labelling(rows=sink.rows, failed=sink.failed, resumed=resumed, report=report)


def _missing_images(config: CatalogueConfig, images: Images) -> MissingImages:
    """Return what becomes of rows whose image is not there: where not one image is, the template is wrong, and the
    titles' answers would hide it.
    """
    try:
        return MissingImages.BY_NAME if has_images(config, images) else MissingImages.REFUSED
    except CatalogueError as error:
        raise CatalogueError(f"{error}; allow missing images to label by the titles alone") from None


def _check_attributes(known: Sequence[str], attributes: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(known if attributes is None else attributes)
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown attribute {unknown[0]!r}; the checkpoint predicts {', '.join(known)}")
    if twice := [name for name, count in Counter(columns_of(names)).items() if count > 1]:
        raise ConfigError(f"the output would have two columns called {twice[0]!r}")
    return names


def _settings(
    info: ModelInfo, config: CatalogueConfig, names: Sequence[str], target_precision: float
) -> dict[str, Any]:
    """Return all that the output depends on; rows of different settings must not meet in one file."""
    placeholders = None if config.placeholders is None else list(config.placeholders)  # as JSON gives them back
    return {
        "layout of the output": list(columns_of(["attribute"])),  # which another release may have
        "checkpoint": info.version,
        "calibration": info.calibration,
        "scope gate": info.scope_gate,
        "engine": info.engine,
        "number format": info.dtype,
        "target precision": target_precision,
        "attributes": list(names),
        "table": hash_table(config.table),
        "columns": [config.id, config.title, config.image],
        "reading": [config.delimiter, config.encoding, dict(config.separator), placeholders],
        "images": _describe_images(config.images),
    }


def _describe_images(images: Place | None) -> list[Any] | None:
    if images is None:
        return None
    if isinstance(images, RemotePath):
        return [images.url, None]
    return [images.name, images.stat().st_size if images.is_file() else None]
