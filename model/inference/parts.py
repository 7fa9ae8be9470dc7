"""Outputs that are folders of parts, and outputs in object stores; `open_output` opens these and files alike.

A part holds `PART_ROWS` rows, the last one the rest. Its name says how many rows come before it, how many it has and
how many of those failed: `part-0000065536-65536-17.parquet`. A run that was interrupted or killed goes on after the
last part. A folder of parts gets `_SUCCESS` when it is complete. A file in an object store is merged from parts, which
lie in the folder `{output}.partial` beside it until then.

Two runs that write the same parts to an object store, where nothing locks, write the same bytes under the same names.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from model.errors import ConfigError, ModelError
from model.files import replace_durably
from model.inference.output import (
    SHARD_ROWS,
    Block,
    OutputFormat,
    OutputRow,
    Shards,
    Sink,
    check_settings,
    finished_pieces,
    locked,
    output_format,
    piece_name,
)
from model.stores import is_remote, open_store

PART_ROWS = 65_536
"""Rows of a part, and of a Parquet row group: what a run that is killed loses at most."""

PREFIX = "part-"
"""What the names of parts begin with."""

SETTINGS, SUCCESS, LOCK = "_settings.json", "_SUCCESS", "_lock"
"""Files beside the parts: who reads a folder as one table passes over names that begin with an underscore."""


@contextmanager
def open_output(
    out: str | Path,
    names: tuple[str, ...],
    multi_valued: Collection[str],
    settings: Mapping[str, Any],
    part_format: str | None,
) -> Iterator[tuple[OutputFormat, Sink]]:
    """Begin an output, or go on with it; names, multi_valued: as `output_format` has them.

    out: a file; a folder, where it ends in a slash; or the URL of either in an object store. part_format: csv or
    parquet (None), of the parts in a folder. Raises `ConfigError` where the output can't be written.
    """
    text = os.fspath(out).removeprefix("file://")
    folder = text.endswith("/")
    if part_format is not None and not folder:
        raise ConfigError(f"only parts in a folder have a format of their own: {text}/, with a slash at its end")
    suffix = f".{part_format or 'parquet'}" if folder else PurePosixPath(text).suffix
    output = output_format(suffix, names, multi_valued)
    if is_remote(text):
        remote = RemoteFolder.open(text if folder else f"{text}.partial/")
        if not folder and remote.exists(text):
            raise ConfigError(f"{text} exists already; move it away, or name another file")
        yield output, Parts(remote, output, settings, merged_into=None if folder else text)
    elif folder:
        with LocalFolder.open(Path(text)) as local:
            yield output, Parts(local, output, settings)
    else:
        with Shards.open(Path(text), output, settings) as shards:
            yield output, shards


class Parts:
    """Finished rows in a folder, part by part. Implements `model.inference.output.Sink`."""

    def __init__(
        self, folder: Folder, output: OutputFormat, settings: Mapping[str, Any], *, merged_into: str | None = None
    ) -> None:
        """merged_into: the file, in the folder's store, that the parts become in the end; None: they stay."""
        self._folder, self._output, self._settings = folder, output, settings
        self._merged_into = merged_into
        self.rows = self.failed = 0
        self._names: list[str] = []
        self._open: list[OutputRow] = []
        self._blocks: list[Block] = []
        self._find()

    @property
    def rows_taken(self) -> int:
        """Rows of all parts: what is not in one yet would be computed again."""
        return self.rows

    @property
    def place(self) -> str:
        """The folder of the parts."""
        return self._folder.place

    def _find(self) -> None:
        there = sorted(self._folder.names())
        if SUCCESS in there:
            raise ConfigError(f"{self.place} is complete already; move it away, or name another folder")
        found = finished_pieces(there, PREFIX, self._output.suffix, self.place)
        self._names, self.rows, self.failed = found.names, found.rows, found.failed
        if others := [each for each in there if each not in self._names and each[:1] != "_"]:
            raise ConfigError(f"{self.place} holds {others[0]}, which is no part of this output; name another folder")
        if self._names:
            self._check_settings()

    def _check_settings(self) -> None:
        try:
            earlier = json.loads(self._folder.read(SETTINGS))
        except (ModelError, ValueError) as error:
            raise ConfigError(f"{self.place} has no readable {SETTINGS}; delete it to start afresh") from error
        check_settings(earlier, json.loads(json.dumps(self._settings)), self.place)

    def add(self, row: OutputRow) -> None:
        """Add the next row; a full part is written."""
        self._open.append(row)
        # Encoded bit by bit: rows as objects take ten times the memory.
        if len(self._open) == min(SHARD_ROWS, PART_ROWS):
            self._encode()

    def add_block(self, block: Block) -> None:
        """Add the next rows; a full part is written."""
        self._blocks.append(block)
        if sum(each.rows for each in self._blocks) >= PART_ROWS:
            self._flush()

    def _encode(self) -> None:
        rows = list(self._open)
        self._open.clear()
        self.add_block(self._output.encode(rows))

    def _flush(self) -> None:
        if not self._blocks:
            return
        if not self._names:
            self._folder.write(SETTINGS, json.dumps(self._settings, indent=2).encode())
        rows, failed = sum(block.rows for block in self._blocks), sum(block.failed for block in self._blocks)
        name = piece_name(PREFIX, self.rows, rows, failed, self._output.suffix)
        part = io.BytesIO()
        self._output.write(part, self._blocks)
        self._folder.write(name, self._whole(part) if self._merged_into is None else part.getvalue())
        self._names.append(name)
        self.rows += rows
        self.failed += failed
        self._blocks.clear()

    def _whole(self, part: io.BytesIO) -> bytes:
        """Return a part as a file that stands alone."""
        part.seek(0)
        file = io.BytesIO()
        self._output.merge([part], file)
        return file.getvalue()

    def finish(self) -> None:
        """Write the last rows, and the file that all parts become, where they do."""
        if self._open:
            self._encode()
        self._flush()
        if self._merged_into is not None:
            self._folder.merge(self._names, self._output, self._merged_into)
            return
        if not self._names:  # else an empty table would leave a folder without columns
            self._folder.write(piece_name(PREFIX, 0, 0, 0, self._output.suffix), self._nothing())
        self._folder.write(SUCCESS, json.dumps({"rows": self.rows, "failed": self.failed}).encode())

    def _nothing(self) -> bytes:
        file = io.BytesIO()
        self._output.merge([], file)
        return file.getvalue()


# --- folders -----------------------------------------------------------------------------------------------


class Folder(Protocol):
    """Where parts are; files appear in it whole or not at all. All methods raise `OSError` or `ModelError`."""

    @property
    def place(self) -> str:
        """The folder, for people."""
        ...

    def names(self) -> list[str]:
        """Return the names of the files in it."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        ...

    def merge(self, names: list[str], output: OutputFormat, path: str) -> None:
        """Merge these files into one at `path`, and remove the folder."""
        ...


class LocalFolder:
    """A folder on this machine, which a lock keeps from other runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[LocalFolder]:
        """Keep the folder, made where there is none, for this run. Nothing is left behind where nothing was written."""
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write to the folder {path.parent}")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is no folder")
        is_new = not path.exists()
        folder = cls(path)
        with locked(path, LOCK):
            try:
                yield folder
            finally:
                if is_new and not folder.names():
                    shutil.rmtree(path)

    @property
    def place(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        """Return the names of the files in it, besides the lock and what is half-written."""
        return [each.name for each in self._path.iterdir() if each.name != LOCK and each.suffix != ".half-written"]

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            return (self._path / name).read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {self._path / name}: {error.strerror}") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which is on the disk when this returns."""
        temporary = self._path / f"{name}.half-written"
        temporary.write_bytes(data)
        replace_durably(temporary, self._path / name)

    def merge(self, names: list[str], output: OutputFormat, path: str) -> None:
        """Never asked for: a file on this machine is made of `Shards`."""
        raise NotImplementedError


class RemoteFolder:
    """A folder in any store that fsspec knows, whose objects appear whole or not at all."""

    def __init__(self, url: str, store: Any, root: str) -> None:
        self._url, self._store, self._root = url, store, root

    @classmethod
    def open(cls, url: str) -> RemoteFolder:
        """Open the folder at `url`; raises `ConfigError` where no library knows its kind."""
        store, root = open_store(url.rstrip("/"))
        return cls(url, store, root)

    @property
    def place(self) -> str:
        return self._url

    def names(self) -> list[str]:
        """Return the names of the objects in it."""
        with self._errors("read"):
            self._store.invalidate_cache()
            try:
                return [str(path).rpartition("/")[2] for path in self._store.ls(self._root, detail=False)]
            except FileNotFoundError:
                return []

    def exists(self, url: str) -> bool:
        """Whether there is an object at another URL of this store."""
        with self._errors("read"):
            return bool(self._store.exists(url))

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        with self._errors("read"):
            return bytes(self._store.cat_file(f"{self._root}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        with self._errors("write"):
            self._store.pipe_file(f"{self._root}/{name}", data)

    def merge(self, names: list[str], output: OutputFormat, path: str) -> None:
        """Merge the objects in one that gets its name at last: a stream that breaks off may leave a torn one."""
        merged = f"{self._root}/merged{output.suffix}"
        with self._errors("write"):
            with self._store.open(merged, "wb") as file:
                output.merge(self._opened(names), file)
            self._store.copy(merged, path)
            self._store.rm(self._root, recursive=True)

    def _opened(self, names: list[str]) -> Iterator[IO[bytes]]:
        for name in names:
            with self._store.open(f"{self._root}/{name}", "rb") as file:
                yield file

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Stores raise exceptions of their own libraries, beside `OSError`."""
        try:
            yield
        except (ConfigError, ModelError):
            raise
        except Exception as error:
            raise ModelError(f"cannot {what} {self._url}: {error or type(error).__name__}") from error
