"""Splits what was handed in, a table and maybe a zip of images, into shards; a program of its own.

The table is read by the very readers that `cma-clip label` uses, and it comes from anywhere: a few kilobytes may be
gigabytes once they are unpacked. So this runs in a process whose memory and time are bounded, and the service goes on
whatever becomes of it. It takes a `Task` as JSON on standard input, and answers with an `Outcome` on standard output.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.catalogue.cells import plain_name
from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import FetchedImages, Images, is_url, open_images
from model.catalogue.listings import BadRow, CatalogueReader, Listing, ReadReport
from model.errors import CatalogueError, ModelError
from service.jobs.shards import ShardRow, ShardWriter
from service.schemas import MAX_ID, MAX_TITLE
from service.store.files import Files

SHARD_ROWS, SHARD_BYTES = 256, 16 * 2**20
"""A shard ends with whichever is reached first: it is what a replica that is killed loses."""

MOST_ROWS = 1_000_000

MEMORY_BYTES = 3 * 2**30
"""Address space of the process."""

PROBLEMS_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be split.

    table, images: paths of this machine; the zip may be missing
    columns: of the id, and of the title and the image; those that the caller named must be there (`named`)
    """

    table: str
    images: str | None
    columns: dict[str, str]
    named: list[str]
    files: str
    folder: str
    max_bytes: int
    max_image_bytes: int


@dataclass(kw_only=True)
class Outcome:
    """The rows of each shard and what was found, or why the table cannot be used (`error`)."""

    shards: list[int] = field(default_factory=list)
    form: str = ""
    invalid: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    too_large: bool = False


class TooMuchError(CatalogueError):
    """More rows or bytes than a job may have."""


def split(task: Task) -> Outcome:
    """Write the shards `{folder}/{place:06}.zip` to the store's files."""
    outcome, files = Outcome(), Files(task.files)
    try:
        for place, shard in enumerate(_shards(task, outcome)):
            files.write_bytes(f"{task.folder}/{place:06}.zip", shard.file())
            outcome.shards.append(len(shard.rows))
        if not outcome.shards:
            raise CatalogueError("the table has no rows")
    except TooMuchError as error:
        return Outcome(error=str(error), too_large=True)
    except ModelError as error:
        return Outcome(error=_told(error, task))
    return outcome


def _told(error: ModelError | BadRow, task: Task) -> str:
    """Return what is wrong, without the paths of this machine."""
    names = {task.table: "the table"} | ({task.images: "the zip"} if task.images else {})
    text = str(error)
    for path, name in names.items():
        text = text.replace(path, name)
    return text


def _shards(task: Task, outcome: Outcome) -> Iterator[ShardWriter]:
    shard, nbytes = ShardWriter(), 0
    for number, (row, images) in enumerate(_rows(task, outcome), start=1):
        shard.add(row, images)
        if number > MOST_ROWS:
            raise TooMuchError(f"the table has more than {MOST_ROWS:,} rows")
        if nbytes + shard.nbytes > task.max_bytes:
            raise TooMuchError(f"table and images, unpacked, have more than {task.max_bytes:,} bytes")
        if len(shard.rows) == SHARD_ROWS or shard.nbytes >= SHARD_BYTES:
            yield shard
            nbytes += shard.nbytes
            shard = ShardWriter()
    if shard.rows:
        yield shard


def _rows(task: Task, outcome: Outcome) -> Iterator[tuple[ShardRow, dict[str, bytes]]]:
    images: Images = FetchedImages(open_images(Path(task.images) if task.images else None), _never)
    reader, report = _reader(task, images)
    for line, item in reader.items():
        outcome.form = report.form or ""
        row, found = _row(item, line, images, task)
        if row.error is not None:
            outcome.invalid += 1
            if len(outcome.problems) < PROBLEMS_SHOWN:
                outcome.problems.append({"line": line, "id": row.id[:256], "reason": row.error})
        yield row, found


def _reader(task: Task, images: Images) -> tuple[CatalogueReader, ReadReport]:
    """Open the table; a column that the caller has not named may be missing, if title or image is left."""
    columns, missing = dict(task.columns), CatalogueError("the table has neither a title nor an image column")
    while "title" in columns or "image" in columns:
        config = _config(task, columns)
        report = ReadReport("the table")
        try:
            next(CatalogueReader(config, images, ReadReport("the table")).items(), None)
            return CatalogueReader(config, images, report), report
        except CatalogueError as error:
            absent = [role for role in columns if f"has no column {columns[role]!r}" in str(error)]
            if not absent or absent[0] == "id" or absent[0] in task.named:
                raise
            missing = error
            del columns[absent[0]]
    raise missing


def _config(task: Task, columns: dict[str, str]) -> CatalogueConfig:
    image = columns.get("image")
    return CatalogueConfig(
        path=Path(task.table),
        table=Path(task.table),
        id=plain_name(columns["id"]),
        title=columns.get("title"),
        image=f"{{{image}}}" if image else None,
        images=Path(task.images) if task.images and image else None,
    )


def _row(item: Listing | BadRow, line: int, images: Images, task: Task) -> tuple[ShardRow, dict[str, bytes]]:
    if isinstance(item, BadRow):
        return ShardRow(id=item.id, error=_told(item, task)), {}
    for name, text, most in (("id", item.id, MAX_ID), ("title", item.title or "", MAX_TITLE)):
        if len(text) > most:
            error = f"line {line}: the {name} has {len(text):,} characters; at most {most:,} are accepted"
            return ShardRow(id=item.id, error=error), {}
    if item.embedded is not None:
        name = f"embedded-{line}"  # ids may occur twice
        return ShardRow(id=item.id, title=item.title, images=(name,)), {name: item.embedded}
    names = tuple(name for name in (item.image, *item.further_images) if name is not None)
    try:
        found = {name: _read(images, name, task.max_image_bytes) for name in names if not is_url(name)}
    except CatalogueError as error:
        return ShardRow(id=item.id, error=_told(error, task)), {}
    return ShardRow(id=item.id, title=item.title, images=names), found


def _read(images: Images, name: str, max_bytes: int) -> bytes:
    data = images.read(name)
    if len(data) > max_bytes:
        raise CatalogueError(f"image {name} has {len(data):,} bytes; at most {max_bytes:,} are accepted")
    return data


def _never(url: str) -> bytes:
    raise AssertionError("URLs are fetched when their shard is computed")


def main() -> None:
    """Split what standard input says."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    outcome = split(Task(**json.load(sys.stdin)))
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
