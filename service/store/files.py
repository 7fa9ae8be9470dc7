"""The store's files, by paths below one root: a folder, or whatever fsspec reaches by a URL, such as S3.

A file is there whole or not at all. On a disk it is written beside its place, flushed, and moved there; object stores
show an object once it has been written.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from model.errors import ConfigError
from model.files import replace_durably

SCRATCH = "scratch-"

ABANDONED_SECONDS = 24 * 3600.0
"""Who uploads or fetches is sent, or sends, something all the time."""


class Files:
    """Reads, writes and removes files. Its methods block: they are for threads."""

    def __init__(self, root: str) -> None:
        """root: a folder, or a URL that fsspec knows. Raises `ConfigError`."""
        try:
            # Other replicas write and remove files too: what was listed once is not true for long.
            self._system, self._root = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"CMA_CLIP_STORE_FILES: {error}") from None
        self.is_local = isinstance(self._system, LocalFileSystem)
        try:
            self._system.makedirs(self._root, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"CMA_CLIP_STORE_FILES: cannot use {root}: {error.strerror or error}") from None

    @contextmanager
    def write(self, path: str) -> Iterator[IO[bytes]]:
        """Write a file, which is there once the context ends, and is not where something raises. Raises `OSError`."""
        if self.is_local:
            with _written_durably(Path(self._path(path))) as file:
                yield file
            return
        file = self._system.open(self._path(path), "wb")
        try:
            yield file
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()
                file.closed = True  # else it is written after all when it is collected
            raise
        file.close()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file at once. Raises `OSError`."""
        with self.write(path) as file:
            file.write(data)

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading. Raises `OSError`."""
        opened: IO[bytes] = self._system.open(self._path(path), "rb")
        return opened

    def read_bytes(self, path: str) -> bytes:
        """Return a whole file. Raises `OSError`."""
        with self.open(path) as file:
            return file.read()

    def remove(self, folder: str) -> None:
        """Remove a folder and all files below it, if it is there. Raises `OSError`."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm(self._path(folder), recursive=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of this machine for what arrives and is made here, removed at the end.

        It is on the disk of the files where that is one: large enough then, and in a container writable.
        """
        parent: Any = self._root if self.is_local else None
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def sweep_scratch(self) -> int:
        """Remove the scratch of processes that were killed: what nothing has been written to for long."""
        if not self.is_local:
            return 0
        gone = 0
        for folder in Path(self._root).glob(f"{SCRATCH}*"):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if newest < time.time() - ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
                    gone += 1
        return gone

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"


@contextmanager
def _written_durably(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
        replace_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
