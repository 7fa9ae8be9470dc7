"""Object stores by URL (`s3://`, `gs://` and whatever else fsspec knows), and paths in them that are read as files are.

The library of a store is imported when it is needed, and each process opens a store by itself: connections don't
survive a fork.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from model.errors import ConfigError, ModelError

AHEAD = 4 << 20
"""Bytes that are fetched ahead of one who reads a file from its begin to its end."""


def is_remote(text: str) -> bool:
    """Whether this is the URL of something in an object store."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def open_store(url: str) -> tuple[Any, str]:
    """Return the store behind a URL, as fsspec has it, and the path in it; opened once in each process.

    Raises `ConfigError` where no library knows its kind.
    """
    try:
        import fsspec  # noqa: PLC0415 - only where it is needed

        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = "; pip install 'cma-clip[s3]'" if url.lower().startswith(("s3:", "s3a:")) else ""
        raise ConfigError(f"{url} needs a library: {error}{extra}") from error
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from None
    return store, str(path)


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in an object store, used as a `Path` is. Methods raise `OSError`, or `ConfigError` as above."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """That without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return self._pure.suffix

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.url.partition("://")[2])

    def exists(self) -> bool:
        """Whether there is an object or a folder."""
        with self._errors():
            store, path = open_store(self.url)
            return bool(store.exists(path))

    def size(self) -> int:
        """Return the object's size in bytes."""
        with self._errors():
            store, path = open_store(self.url)
            return int(store.size(path))

    def fingerprint(self) -> str:
        """Return what changes with the object: made of what the store says of it, so nothing is downloaded."""
        with self._errors():
            store, path = open_store(self.url)
            store.invalidate_cache()
            return str(store.ukey(path))

    def open(self, mode: str = "rb", *, ahead: int = AHEAD) -> IO[bytes]:
        """Open the object for reading; ahead: bytes that are fetched beyond what is asked for; 0: none."""
        with self._errors():
            store, path = open_store(self.url)
            options = {"block_size": ahead} if ahead else {"cache_type": "none"}
            opened: IO[bytes] = store.open(path, mode, **options)
            return opened

    def read_bytes(self, at_most: int) -> bytes:
        """Return the object's bytes, as many as this at most, in one request."""
        with self._errors():
            store, path = open_store(self.url)
            return bytes(store.cat_file(path, start=0, end=at_most))

    def read_range(self, begin: int, size: int) -> bytes:
        """Return some bytes of the object, in one request."""
        with self._errors():
            store, path = open_store(self.url)
            return bytes(store.cat_file(path, start=begin, end=begin + size))

    def names(self) -> list[str]:
        """Return the names of the objects below this folder, folders among them, in any order."""
        with self._errors():
            store, path = open_store(self.url)
            return [str(each)[len(path.rstrip("/")) + 1 :] for each in store.find(path)]

    def matching(self) -> list[RemotePath]:
        """Return the objects that this pattern matches, in any order."""
        with self._errors():
            store, path = open_store(self.url)
            return [RemotePath(str(store.unstrip_protocol(each))) for each in store.glob(path)]

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Stores raise exceptions of their own libraries, besides `OSError`."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", self.url) from error
        except (OSError, ModelError):
            raise
        except Exception as error:
            raise OSError(f"{error or type(error).__name__}") from error


Place = Path | RemotePath
"""Where a file is: on this machine, or in an object store."""


def place_of(folder: Path, text: str) -> Place:
    """Return what a configuration names: a URL, or a path that is relative to `folder`."""
    return RemotePath(text) if is_remote(text) else folder / text
