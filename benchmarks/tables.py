"""How fast tables are read, and in how much memory: rows per second and peak memory by form.

    python -m benchmarks.tables [--rows 5000000] [--forms csv,parquet] [--out benchmarks/results/tables.json]

A table is made up for each form (ids, titles of which a third are repeated, three attributes; with `zip`, a zip file of
as many images; with `titles`, a folder of Parquet files without attributes), in a temporary folder. Each task runs in a
process of its own, and its peak is what the system says: `read`, what `cma-clip label` does before the model; `check`,
`cma-clip check`; and `open`, what `cma-clip train` does before it trains: it reads all, and then some thousand listings
of the train part, anywhere. Rows per second are of CPU time, so that what else runs on the machine does not count.
`label` runs `cma-clip label` with a model that costs nothing.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

COLUMNS = ("id", "title", "gender", "articleType", "colour")

GENDERS = ("Men", "Women", "Boys", "Girls", "Unisex")
TYPES = tuple(f"Type {n}" for n in range(140))
COLOURS = tuple(f"Colour {n}" for n in range(46))
BRANDS = tuple(f"Brand {n}" for n in range(2000))

Rows = Iterator[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One task on one table. `start_mebibytes` is the process's memory before it reads the first row."""

    form: str
    task: str
    rows: int
    file_mebibytes: float
    cpu_seconds: float
    rows_per_second: int
    start_mebibytes: int
    peak_mebibytes: int


# --- tables that are made up -------------------------------------------------------------------------------


def made_up(count: int) -> Rows:
    """Yield rows, always the same ones."""
    rng = random.Random(0)  # noqa: S311 - a table, no secret
    for number in range(count):
        brand, colour, kind = rng.choice(BRANDS), rng.choice(COLOURS), rng.choice(TYPES)
        gender = rng.choice(GENDERS)
        series = "" if rng.random() < 1 / 3 else f" Style {number}"
        yield f"sku-{number}", f"{brand} {gender} {colour} {kind}{series}", gender, kind, colour


def write_csv(path: Path, rows: Rows) -> None:
    """Write the rows as CSV, compressed where the name ends so."""
    opening: Callable[..., IO[Any]] = gzip.open if path.suffix == ".gz" else open
    with opening(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(COLUMNS)
        csv.writer(file).writerows(rows)


def write_json_lines(path: Path, rows: Rows) -> None:
    """Write a JSON object for each row."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows)


def write_xml(path: Path, rows: Rows) -> None:
    """Write a feed as Google Merchant Center takes it."""
    with path.open("w", encoding="utf-8") as file:
        file.write('<rss xmlns:g="http://base.google.com/ns/1.0"><channel>\n')
        for row in rows:
            cells = "".join(f"<g:{name}>{cell}</g:{name}>" for name, cell in zip(COLUMNS, row, strict=True))
            file.write(f"<item>{cells}</item>\n")
        file.write("</channel></rss>\n")


def write_titles(path: Path, rows: Rows) -> None:
    """Write ids and titles alone, in files of 5 million rows."""
    path.mkdir()
    alone = (row[:2] for row in rows)
    for number, first in enumerate(alone):
        write_parquet(path / f"part-{number:03d}.parquet", chain([first], islice(alone, 5_000_000 - 1)), COLUMNS[:2])


def write_parquet(path: Path, rows: Rows, columns: Sequence[str] = COLUMNS) -> None:
    """Write row groups of 250,000 rows."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = pa.schema([(name, pa.string()) for name in columns])
    with pq.ParquetWriter(path, schema) as writer:
        while block := list(islice(rows, 250_000)):
            arrays = [pa.array(column, pa.string()) for column in zip(*block, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


WRITERS: Mapping[str, tuple[str, Callable[[Path, Rows], None]]] = {
    "csv": ("table.csv", write_csv),
    "csv.gz": ("table.csv.gz", write_csv),
    "jsonl": ("table.jsonl", write_json_lines),
    "xml": ("table.xml", write_xml),
    "parquet": ("table.parquet", write_parquet),
    "zip": ("table.csv", write_csv),
    "titles": ("export", write_titles),
}


def make(folder: Path, form: str, rows: int) -> Path:
    """Write a table, and images where the form is `zip`; return the TOML file that describes it."""
    name, write = WRITERS[form]
    write(folder / name, made_up(rows))
    images = ""
    if form == "zip":
        images = 'images = "images.zip"\nimage = "images/{id}.jpg"\n'
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for number in range(rows):
                archive.writestr(zipfile.ZipInfo(f"images/sku-{number}.jpg"), str(number))
    attributes = "" if form == "titles" else 'attributes = ["gender", "articleType", "colour"]\n'
    toml = folder / "catalogue.toml"
    toml.write_text(f'[catalogue]\ntable = "{name}"\n{images}id = "id"\ntitle = "title"\n{attributes}')
    return toml


# --- tasks, each in a process of its own -------------------------------------------------------------------


def read(toml: Path) -> int:
    """Read every row as `label` does; return how many there are."""
    from model.catalogue.config import CatalogueConfig  # noqa: PLC0415
    from model.catalogue.image_store import open_images  # noqa: PLC0415
    from model.catalogue.listings import ReadReport, iter_listings  # noqa: PLC0415

    config = CatalogueConfig.load(toml).without_labels()
    return sum(1 for _ in iter_listings(config, open_images(config.images), ReadReport(config.table.name)))


def check(toml: Path) -> int:
    """Check the catalogue; return how many rows it has."""
    from model.catalogue.check import check_catalogue  # noqa: PLC0415

    return check_catalogue(toml).report.rows


def label(toml: Path) -> int:
    """Label the catalogue with a model that costs nothing; return how many rows it has."""
    from benchmarks.free_predictor import FreePredictor  # noqa: PLC0415
    from model.inference.label import label_catalogue  # noqa: PLC0415

    out = toml.with_name("labels.csv")
    return label_catalogue(FreePredictor(), toml, out, target_precision=0.95, batch_size=256, progress=False).rows


def open_catalogue(toml: Path) -> int:
    """Open the catalogue as training does, and read listings anywhere; return how many rows it has."""
    from model.catalogue.listings import Catalogue  # noqa: PLC0415
    from model.catalogue.splits import Part  # noqa: PLC0415

    catalogue = Catalogue.open(toml)
    listings = catalogue.part(Part.TRAIN)
    for place in random.Random(0).choices(range(len(listings)), k=5000):  # noqa: S311 - a sample, no secret
        assert listings[place].part is Part.TRAIN
    return catalogue.report.rows


TASKS: Mapping[str, Callable[[Path], int]] = {"read": read, "check": check, "label": label, "open": open_catalogue}

_WARM_UP_ROWS = 2000
"""Rows of another table that are done first, so that what is imported and allocated once counts as the start."""


def _measure_here(task: str, warm_up: Path, toml: Path) -> dict[str, Any]:
    TASKS[task](warm_up)
    start = _peak_mebibytes()
    began = time.process_time()
    rows = TASKS[task](toml)
    seconds = time.process_time() - began
    return {
        "rows": rows,
        "cpu_seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "start_mebibytes": start,
        "peak_mebibytes": _peak_mebibytes(),
    }


def _peak_mebibytes() -> int:
    """Return this program's peak; what `getrusage` says begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) // 1024


def measure(form: str, tasks: Sequence[str], rows: int) -> Iterator[Measured]:
    """Make a table and carry out each task on it in a new process."""
    with tempfile.TemporaryDirectory(prefix="cma-clip-tables-") as folder:
        large, small = Path(folder, "large"), Path(folder, "small")
        for place, count in ((large, rows), (small, _WARM_UP_ROWS)):
            place.mkdir()
            make(place, form, count)
        table = large / WRITERS[form][0]
        size = round(sum(each.stat().st_size for each in (table, *table.rglob("*")) if each.is_file()) / 2**20, 1)
        for task in tasks:
            command = [sys.executable, "-m", "benchmarks.tables", "--here", task, str(small), str(large)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ourselves
            yield Measured(form=form, task=task, file_mebibytes=size, **json.loads(done.stdout))


def table_of(results: Sequence[Measured]) -> Table:
    """Return the results for the terminal."""
    table = Table(title="Tables: speed in CPU time, and peak memory")
    for heading in ("form", "task", "rows", "MiB on disk", "rows/s", "MiB at the start", "MiB at the peak"):
        table.add_column(heading, justify="left" if heading in ("form", "task") else "right")
    for each in results:
        figures = (each.rows_per_second, each.start_mebibytes, each.peak_mebibytes)
        table.add_row(each.form, each.task, f"{each.rows:,}", f"{each.file_mebibytes:,}", *(f"{n:,}" for n in figures))
    return table


def main(
    rows: Annotated[int, typer.Option(min=1, help="rows of each table")] = 5_000_000,
    forms: Annotated[str, typer.Option(help="with commas between them")] = ",".join(WRITERS),
    tasks: Annotated[str, typer.Option(help="read, check, label, open; with commas between them")] = "read,check",
    out: Annotated[Path | None, typer.Option(help="add the figures to this JSON file")] = None,
) -> None:
    """Measure reading, checking and labelling of made-up tables."""
    results: list[Measured] = []
    for form in forms.split(","):
        for found in measure(form, tasks.split(","), rows):
            results.append(found)
            if out:
                _add(out, found)
    Console(width=120).print(table_of(results))


def _add(out: Path, found: Measured) -> None:
    """Put one result among those of the file, in the place of an earlier one of the same task, form and size."""
    earlier = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    key = (found.form, found.task, found.rows)
    kept = [each for each in earlier if (each["form"], each["task"], each["rows"]) != key]
    out.write_text(json.dumps([*kept, asdict(found)], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        task, small, large = sys.argv[2:]
        print(json.dumps(_measure_here(task, Path(small, "catalogue.toml"), Path(large, "catalogue.toml"))))
    else:
        typer.run(main)
