"""A shard's file: some rows of a table with the images that they name, so that nothing else is needed to answer them.

A zip file that is not compressed: `rows.jsonl` has a row a line, and each image is a member.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass

ROWS = "rows.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    """A row of a job's table.

    images: URLs, or names of members; the first that can be read counts
    error: why it is no listing; then it has no title and no image
    """

    id: str
    title: str | None = None
    images: tuple[str, ...] = ()
    error: str | None = None


class ShardWriter:
    """Gathers rows, and the images among them once each."""

    def __init__(self) -> None:
        self.rows: list[ShardRow] = []
        self.nbytes = 0
        self._images: dict[str, bytes] = {}

    def add(self, row: ShardRow, images: dict[str, bytes]) -> None:
        """Add a row; `images`: those of the files that it names."""
        self.rows.append(row)
        self.nbytes += len(row.title or "") + sum(
            len(data) for name, data in images.items() if name not in self._images
        )
        self._images |= images

    def file(self) -> bytes:
        """Return the shard's file."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
            lines = (json.dumps(asdict(row), ensure_ascii=False) for row in self.rows)
            packed.writestr(ROWS, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
            for name, data in self._images.items():
                packed.writestr(f"images/{name}", data)
        return buffer.getvalue()


class ShardReader:
    """A shard's file, opened."""

    def __init__(self, data: bytes) -> None:
        self._file = zipfile.ZipFile(io.BytesIO(data))

    def rows(self) -> Iterator[ShardRow]:
        """Yield the rows in order."""
        for line in self._file.read(ROWS).decode().splitlines():
            fields = json.loads(line)
            yield ShardRow(**{**fields, "images": tuple(fields["images"])})

    def size_of(self, name: str) -> int:
        """Return the bytes of an image that a row names."""
        return self._file.getinfo(f"images/{name}").file_size

    def image(self, name: str) -> bytes:
        """Return an image that a row names."""
        return self._file.read(f"images/{name}")
