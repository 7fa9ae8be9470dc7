"""The output of bulk labelling: rows in shards beside the file, merged at the end, as CSV or Parquet.

A run that is interrupted by Ctrl-C loses nothing, and one that is killed less than a shard; both continue where they
stopped when they are started again. Folders of parts, and outputs in object stores, are in `model.inference.parts`.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from model.catalogue.formulas import to_cell
from model.catalogue.tables import import_pyarrow
from model.checkpoint.folder import write_json
from model.errors import ConfigError, ModelError
from model.files import replace_durably

SHARD_ROWS = 2048
"""Rows in a full shard: what a run that is killed loses at most."""

MERGED_SHARDS = 32
"""Full shards that share a Parquet row group: 65,536 rows, so that readers can skip and compress well."""

SETTINGS, LOCK = "settings.json", "lock"

OutputRow = tuple[str | float | bool | None, ...]

ATTRIBUTE_COLUMNS = ("", "_confidence", "_accepted", "_abstention", "_image_weight")
"""What is appended to an attribute's name for each of its columns."""


# --- rows --------------------------------------------------------------------------------------------------


def joined(cells: Iterable[str | float | bool | None], separator: str) -> str:
    """Return the cells of a multi-valued attribute's labels as one."""
    return separator.join(_text(cell) for cell in cells)


def _text(cell: str | float | bool | None) -> str:
    if cell is None:
        return ""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the output's columns for these attributes."""
    return ("id", *[f"{name}{suffix}" for name in names for suffix in ATTRIBUTE_COLUMNS], "familiarity", "error")


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows, encoded; `failed` of them have an error. Blocks travel from the workers of a cluster."""

    rows: int
    failed: int
    data: bytes


class OutputFormat(Protocol):
    """How rows are encoded, blocks of them written to a shard, and shards merged. All files are open, and binary."""

    suffix: str

    def encode(self, rows: Sequence[OutputRow]) -> Block:
        """Return some rows as a block."""
        ...

    def write(self, file: IO[bytes], blocks: Sequence[Block]) -> None:
        """Write some blocks to a new shard."""
        ...

    def count(self, file: IO[bytes]) -> int:
        """Return how many rows a shard holds."""
        ...

    def merge(self, shards: Iterable[IO[bytes]], file: IO[bytes]) -> None:
        """Write the whole output, shard by shard."""
        ...


def output_format(suffix: str, names: Sequence[str], multi_valued: Collection[str] = ()) -> OutputFormat:
    """Choose by the suffix of the output; raises `ConfigError` for one that is neither CSV nor Parquet.

    multi_valued: those of the attributes `names` whose cells are joined labels, confidences and so on: all texts.
    """
    match suffix.lower():
        case ".csv":
            return CsvFormat(names)
        case ".parquet" | ".pq":
            return ParquetFormat(names, multi_valued)
    raise ConfigError(f"the output must end in .csv or .parquet, not in {suffix!r}")


def _block(rows: Sequence[OutputRow], data: bytes) -> Block:
    return Block(len(rows), sum(bool(row[-1]) for row in rows), data)


class CsvFormat:
    """CSV as RFC 4180 has it, in UTF-8: the shards have no header, and follow it as they are."""

    suffix = ".csv"

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = columns_of(names)

    def encode(self, rows: Sequence[OutputRow]) -> Block:
        """Return some rows as a block."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([_csv_cell(cell) for cell in row] for row in rows)
        return _block(rows, text.getvalue().encode())

    def write(self, file: IO[bytes], blocks: Sequence[Block]) -> None:
        """Write some blocks to a new shard."""
        for block in blocks:
            file.write(block.data)

    def count(self, file: IO[bytes]) -> int:
        """Return how many rows a shard holds."""
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            return sum(1 for _ in csv.reader(text))
        finally:
            text.detach()  # the file is its opener's to close

    def merge(self, shards: Iterable[IO[bytes]], file: IO[bytes]) -> None:
        """Write the header and copy the shards."""
        header = io.StringIO(newline="")
        csv.writer(header).writerow(map(to_cell, self.columns))
        file.write(header.getvalue().encode())
        for shard in shards:
            shutil.copyfileobj(shard, file)


def _csv_cell(cell: str | float | bool | None) -> str | float | None:
    if isinstance(cell, bool):
        return str(cell).lower()
    return to_cell(cell) if isinstance(cell, str) else cell


class ParquetFormat:
    """Parquet: labels, abstentions and errors as strings, accepted as a boolean, everything else as doubles.

    What is joined of several labels is a string too. A block is a stream of Arrow's own format.
    """

    suffix = ".parquet"

    def __init__(self, names: Sequence[str], multi_valued: Collection[str] = ()) -> None:
        self.pyarrow = pa = import_pyarrow()
        single = [pa.string(), pa.float64(), pa.bool_(), pa.string(), pa.float64()]
        several = [pa.string()] * 4 + [pa.float64()]
        attributes = [each for name in names for each in (several if name in multi_valued else single)]
        types = [pa.string(), *attributes, pa.float64(), pa.string()]
        self.schema = pa.schema(list(zip(columns_of(names), types, strict=True)))

    def encode(self, rows: Sequence[OutputRow]) -> Block:
        """Return some rows as a block."""
        columns = [
            self.pyarrow.array(column, field.type)
            for column, field in zip(zip(*rows, strict=True), self.schema, strict=True)
        ]
        sink = self.pyarrow.BufferOutputStream()
        with self.pyarrow.ipc.new_stream(sink, self.schema) as writer:
            writer.write_batch(self.pyarrow.RecordBatch.from_arrays(columns, schema=self.schema))
        return _block(rows, sink.getvalue().to_pybytes())

    def write(self, file: IO[bytes], blocks: Sequence[Block]) -> None:
        """Write some blocks to a new shard."""
        tables = [self.pyarrow.ipc.open_stream(block.data).read_all() for block in blocks]
        self.pyarrow.parquet.write_table(self.pyarrow.concat_tables(tables).combine_chunks(), file)

    def count(self, file: IO[bytes]) -> int:
        """Return how many rows a shard holds."""
        return int(self.pyarrow.parquet.read_metadata(file).num_rows)

    def merge(self, shards: Iterable[IO[bytes]], file: IO[bytes]) -> None:
        """Write row groups of `MERGED_SHARDS` full shards, wherever a run was interrupted."""
        parquet, size = self.pyarrow.parquet, MERGED_SHARDS * SHARD_ROWS
        with parquet.ParquetWriter(file, self.schema) as writer:
            rows = self.schema.empty_table()
            for shard in shards:
                rows = self.pyarrow.concat_tables([rows, parquet.read_table(shard)])
                while len(rows) >= size:
                    writer.write_table(rows.slice(0, size).combine_chunks())
                    rows = rows.slice(size)
            if len(rows):
                writer.write_table(rows.combine_chunks())


# --- shards ------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """Where finished rows go, in order: those of an earlier, interrupted run are there already."""

    rows: int
    """Rows that are kept, whatever happens now."""
    failed: int
    """How many of them have an error."""

    @property
    def rows_taken(self) -> int:
        """Rows that were added, and are kept unless the process is killed."""
        ...

    @property
    def place(self) -> str:
        """Where finished rows are kept until the output is complete."""
        ...

    def add(self, row: OutputRow) -> None:
        """Add the next row."""
        ...

    def add_block(self, block: Block) -> None:
        """Add the next rows, encoded by the sink's format."""
        ...

    def finish(self) -> None:
        """Complete the output."""
        ...


class Shards:
    """Finished rows of an output that isn't complete yet, in the folder `{output}.partial` beside it.

    A shard's name says how many rows come before it, how many it has and how many of those failed:
    `0000006144-2048-17.csv`. It gets that name once it is wholly on the disk. A lock keeps a second run out.
    """

    def __init__(self, out: Path, output: OutputFormat, settings: Mapping[str, Any]) -> None:
        self.out, self.output, self.settings = out, output, settings
        self.folder = out.with_name(out.name + ".partial")
        self.paths: list[Path] = []
        self.rows = self.failed = 0
        self._open: list[OutputRow] = []
        self._blocks: list[Block] = []

    @classmethod
    @contextmanager
    def open(cls, out: Path, output: OutputFormat, settings: Mapping[str, Any]) -> Iterator[Shards]:
        """Begin the output `out`, or continue it, and keep other runs from it while the context lasts.

        Raises `ConfigError` where that can't be done. Nothing is left behind where no shard was finished.
        """
        if not os.access(out.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write to the folder {out.parent}")
        shards = cls(out, output, settings)
        _check_absent(out)
        with locked(shards.folder):
            shards._find()
            if shards.paths:
                shards._check_settings()
            try:
                _check_absent(out)  # or a run that has just finished would be overwritten
                yield shards
            except KeyboardInterrupt:
                shards._flush()
                raise
            finally:
                if not shards.paths:
                    shutil.rmtree(shards.folder, ignore_errors=True)

    @property
    def rows_taken(self) -> int:
        """Rows of all shards, and of the one that is not on the disk yet."""
        return self.rows + sum(block.rows for block in self._blocks) + len(self._open)

    @property
    def place(self) -> str:
        """The folder of the shards."""
        return str(self.folder)

    def _check_settings(self) -> None:
        try:
            earlier = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.folder} has no readable {SETTINGS}; delete it to start afresh") from error
        check_settings(earlier, self.settings, self.place)

    def _find(self) -> None:
        names = (path.name for path in self.folder.iterdir())
        found = finished_pieces(names, "", self.output.suffix, self.place)
        self.paths = [self.folder / name for name in found.names]
        self.rows, self.failed = found.rows, found.failed

    def add(self, row: OutputRow) -> None:
        """Add the next row; a full shard goes to the disk."""
        self._open.append(row)
        if len(self._open) == SHARD_ROWS:
            self._flush()

    def add_block(self, block: Block) -> None:
        """Add the next rows; a full shard goes to the disk."""
        self._blocks.append(block)
        if sum(each.rows for each in self._blocks) >= SHARD_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._open:
            self._blocks.append(self.output.encode(self._open))
            self._open.clear()
        if not self._blocks:
            return
        if not self.paths:
            write_json(self.folder / SETTINGS, self.settings)
        rows, failed = sum(block.rows for block in self._blocks), sum(block.failed for block in self._blocks)
        name = piece_name("", self.rows, rows, failed, self.output.suffix)
        temporary = self.folder / f"half-written{self.output.suffix}"
        with temporary.open("wb") as file:
            self.output.write(file, self._blocks)
        self.paths.append(replace_durably(temporary, self.folder / name))
        self.rows += rows
        self.failed += failed
        self._blocks.clear()

    def finish(self) -> None:
        """Write the last rows, merge all shards into the output and remove them."""
        self._flush()
        self._check_rows()
        temporary = self.folder / f"merged{self.output.suffix}"
        with temporary.open("wb") as file:
            self.output.merge(_opened(self.paths), file)
        replace_durably(temporary, self.out)
        shutil.rmtree(self.folder)

    def _check_rows(self) -> None:
        """Raise `ModelError` where a shard doesn't hold the rows that its name says."""
        for path in self.paths:
            expected = int(path.name.split("-")[1])
            with path.open("rb") as file:
                found = self.output.count(file)
            if found != expected:
                raise ModelError(f"{path} holds {found} rows, not {expected}; delete {self.folder} to start afresh")


@dataclass(frozen=True)
class Pieces:
    """The pieces of an output that are finished, in order, with the sums of what their names say."""

    names: list[str]
    rows: int
    failed: int


def piece_name(prefix: str, before: int, rows: int, failed: int, suffix: str) -> str:
    """Return the name of a piece of an output: how many rows come before it, how many it has, and how many failed."""
    return f"{prefix}{before:010d}-{rows}-{failed}{suffix}"


def finished_pieces(names: Iterable[str], prefix: str, suffix: str, place: str) -> Pieces:
    """Find the finished pieces among the names of files; others, such as half-written ones, are passed over.

    Raises `ConfigError` where one is missing in between.
    """
    found, total, errors = [], 0, 0
    for each in sorted(names):
        name = re.fullmatch(re.escape(prefix) + r"(\d{10})-(\d+)-(\d+)" + re.escape(suffix), each)
        if name is None:
            continue
        before, rows, failed = map(int, name.groups())
        if before != total:
            raise ConfigError(f"{place} lacks rows before {each}; delete it to start afresh")
        found.append(each)
        total += rows
        errors += failed
    return Pieces(found, total, errors)


def check_settings(earlier: Mapping[str, Any], settings: Mapping[str, Any], place: str) -> None:
    """Raise `ConfigError` where the rows at `place` are of other settings."""
    if changed := [key for key, value in settings.items() if earlier.get(key) != value]:
        raise ConfigError(
            f"{place} was begun with another {' and another '.join(changed)}; "
            "delete it to start afresh, or name another output"
        )


def _opened(paths: Iterable[Path]) -> Iterator[IO[bytes]]:
    for path in paths:
        with path.open("rb") as file:
            yield file


def _check_absent(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already; move it away, or name another file")


@contextmanager
def locked(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Keep `folder`, made where there is none, for this run alone, by the file `lock` in it.

    The lock ends with the process, however that ends. Raises `ConfigError` where another run has it.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            file = (folder / lock).open("ab")
        except FileNotFoundError:  # another run has just finished, and removed the folder
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another run is writing {folder}; wait for it, or name another output") from None
            if not _is_at(file.fileno(), folder / lock):
                continue
            yield
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
