"""Labels a whole catalogue: one row of the output for each row of the table, in order and in constant memory.

The next batch is read and decoded by a few threads while the current one computes. Finished rows go to shards in
a folder beside the output; when the last one is there they are merged into the output, which appears at once. So
an interrupted run loses less than a shard, and goes on where it stopped when it is started again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from model.catalogue import BadRow, CatalogueConfig, Listing, ReadReport, iter_listings
from model.checkpoint import write_json
from model.errors import CatalogueError, ConfigError, ModelError
from model.image_store import Images, open_images
from model.preprocess import decode_image
from model.readings import Prediction, Predictor
from model.tables import estimate_rows, import_pyarrow

SHARD_ROWS = 2048
"""Rows in each shard but the last: what an interruption costs at most."""

MERGED_SHARDS = 32
"""Shards that share a Parquet row group: 65,536 rows, so that readers can skip and compress well."""

SETTINGS = "settings.json"

OutputRow = tuple[str | float | bool | None, ...]


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


# --- rows --------------------------------------------------------------------------------------------------


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the output's columns for these attributes."""
    cells = [f"{name}{suffix}" for name in names for suffix in ("", "_confidence", "_accepted", "_image_weight")]
    return ("id", *cells, "error")


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


class OutputFormat(Protocol):
    """How rows are written to a shard, and shards merged."""

    suffix: str

    def write(self, path: Path, rows: Sequence[OutputRow]) -> None:
        """Write some rows to a new shard."""
        ...

    def merge(self, shards: Sequence[Path], path: Path) -> None:
        """Write the whole output, shard by shard."""
        ...


def output_format(out: Path, names: Sequence[str]) -> OutputFormat:
    """Choose by the suffix of `out`; raises `ConfigError` for one that is neither CSV nor Parquet."""
    match out.suffix.lower():
        case ".csv":
            return CsvFormat(names)
        case ".parquet" | ".pq":
            return ParquetFormat(names)
    raise ConfigError(f"the output must end in .csv or .parquet, not in {out.suffix!r}")


class CsvFormat:
    """CSV as RFC 4180 has it, in UTF-8: the shards have no header, and follow it as they are."""

    suffix = ".csv"

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = columns_of(names)

    def write(self, path: Path, rows: Sequence[OutputRow]) -> None:
        """Write some rows to a new shard."""
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([_csv_cell(cell) for cell in row] for row in rows)

    def merge(self, shards: Sequence[Path], path: Path) -> None:
        """Write the header and copy the shards."""
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(self.columns)
        with path.open("ab") as merged:
            for shard in shards:
                with shard.open("rb") as file:
                    shutil.copyfileobj(file, merged)


def _csv_cell(cell: str | float | bool | None) -> str | float | None:
    return str(cell).lower() if isinstance(cell, bool) else cell


class ParquetFormat:
    """Parquet: labels and errors as strings, confidences and weights as doubles, accepted as a boolean."""

    suffix = ".parquet"

    def __init__(self, names: Sequence[str]) -> None:
        self.pyarrow = pa = import_pyarrow()
        types = [pa.string(), *[pa.string(), pa.float64(), pa.bool_(), pa.float64()] * len(names), pa.string()]
        self.schema = pa.schema(list(zip(columns_of(names), types, strict=True)))

    def write(self, path: Path, rows: Sequence[OutputRow]) -> None:
        """Write some rows to a new shard."""
        columns = [
            self.pyarrow.array(column, field.type)
            for column, field in zip(zip(*rows, strict=True), self.schema, strict=True)
        ]
        table = self.pyarrow.Table.from_arrays(columns, schema=self.schema)
        self.pyarrow.parquet.write_table(table, path)

    def merge(self, shards: Sequence[Path], path: Path) -> None:
        """Write `MERGED_SHARDS` shards at a time as one row group."""
        parquet = self.pyarrow.parquet
        with parquet.ParquetWriter(path, self.schema) as writer:
            for start in range(0, len(shards), MERGED_SHARDS):
                tables = [parquet.read_table(shard) for shard in shards[start : start + MERGED_SHARDS]]
                writer.write_table(self.pyarrow.concat_tables(tables))


# --- shards ------------------------------------------------------------------------------------------------


class Shards:
    """Finished rows of an output that isn't complete yet, in the folder `{output}.partial` beside it.

    Shard `i` holds the rows from `i × SHARD_ROWS` on. Its name says how many rows it has and how many failed:
    `00000003-2048-17.csv`. It gets that name once it is wholly on the disk.
    """

    def __init__(self, out: Path, output: OutputFormat, settings: Mapping[str, Any]) -> None:
        self.out, self.output, self.settings = out, output, settings
        self.folder = out.with_name(out.name + ".partial")
        self.paths: list[Path] = []
        self.rows = self.failed = 0
        self._open: list[OutputRow] = []

    @classmethod
    def open(cls, out: Path, output: OutputFormat, settings: Mapping[str, Any]) -> Shards:
        """Begin the output `out`, or go on with it; raises `ConfigError` where that can't be done."""
        if out.exists():
            raise ConfigError(f"{out} exists already; move it away, or name another file")
        if not os.access(out.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write to the folder {out.parent}")
        shards = cls(out, output, settings)
        if shards.folder.exists():
            shards._find()
        if shards.paths:
            shards._check_settings()
        return shards

    def _check_settings(self) -> None:
        try:
            earlier = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.folder} has no readable {SETTINGS}; delete it to start afresh") from error
        if changed := [key for key, value in self.settings.items() if earlier.get(key) != value]:
            raise ConfigError(
                f"{self.folder} was begun with another {' and another '.join(changed)}; "
                "delete it to start afresh, or name another output"
            )

    def _find(self) -> None:
        for path in sorted(self.folder.iterdir()):
            name = re.fullmatch(r"(\d{8})-(\d+)-(\d+)" + re.escape(self.output.suffix), path.name)
            if name is None:
                continue  # the settings, or what an interrupted run left half-written
            index, rows, failed = map(int, name.groups())
            if index != len(self.paths) or self.rows != index * SHARD_ROWS:
                raise ConfigError(f"{self.folder} lacks rows before {path.name}; delete it to start afresh")
            self.paths.append(path)
            self.rows += rows
            self.failed += failed

    def _begin(self) -> None:
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / SETTINGS, self.settings)

    def add(self, row: OutputRow) -> None:
        """Add the next row; a full shard goes to the disk."""
        self._open.append(row)
        if len(self._open) == SHARD_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self.paths:
            self._begin()
        failed = sum(bool(row[-1]) for row in self._open)
        name = f"{len(self.paths):08d}-{len(self._open)}-{failed}{self.output.suffix}"
        temporary = self.folder / f"half-written{self.output.suffix}"
        self.output.write(temporary, self._open)
        self.paths.append(_move_durably(temporary, self.folder / name))
        self.rows += len(self._open)
        self.failed += failed
        self._open.clear()

    def finish(self) -> None:
        """Write the last rows, merge all shards into the output and remove them."""
        if self._open:
            self._flush()
        if not self.paths:
            self._begin()
        temporary = self.folder / f"merged{self.output.suffix}"
        self.output.merge(self.paths, temporary)
        _move_durably(temporary, self.out)
        shutil.rmtree(self.folder)


def _move_durably(temporary: Path, path: Path) -> Path:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
    return temporary.replace(path)


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
