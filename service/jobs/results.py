"""Results: a shard's rows as they are kept, and a whole job's in the form that is asked for, in its table's order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from model.inference.output import OutputFormat, OutputRow, columns_of, output_format
from service.store.files import Files

MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}


def packed(rows: Iterable[OutputRow]) -> bytes:
    """Return a shard's rows as they are kept: a JSON list a line."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode(errors="replace")


def unpacked(data: bytes) -> list[OutputRow]:
    """Return the rows of a kept shard."""
    return [tuple(json.loads(line)) for line in data.split(b"\n") if line]


def write(
    files: Files,
    paths: Sequence[str],
    out: Path,
    form: str,
    *,
    attributes: Sequence[str],
    separators: Mapping[str, str],
) -> None:
    """Write a job's rows to the file `out`, with the columns of `cma-clip label`; blocks.

    Raises `ConfigError` where the form is Parquet, and what writes it isn't installed; `OSError`.
    """
    shards = (unpacked(files.read_bytes(path)) for path in paths)
    if form == "jsonl":
        with out.open("wb") as file:
            file.writelines(_json_lines(shards, columns_of(attributes)))
        return
    output = output_format(f".{form}", attributes, separators)
    with out.open("wb") as file:
        output.merge(_encoded(shards, output, out.parent), file)


def _json_lines(shards: Iterable[list[OutputRow]], columns: Sequence[str]) -> Iterator[bytes]:
    for rows in shards:
        for row in rows:
            yield json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False).encode() + b"\n"


def _encoded(shards: Iterable[list[OutputRow]], output: OutputFormat, folder: Path) -> Iterator[IO[bytes]]:
    for rows in shards:
        part = folder / f"part{output.suffix}"
        with part.open("w+b") as file:
            output.write(file, [output.encode(rows)])
            file.seek(0)
            yield file
