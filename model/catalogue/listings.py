"""A catalogue on disk to listings: rows repaired and counted, images read in place, parts assigned.

`Catalogue` holds all of it for training; `iter_listings` streams it for labelling. Nothing is dropped silently: every
row ends as a listing or in the `ReadReport`.
"""

from __future__ import annotations

import hashlib
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from model.catalogue.config import CatalogueConfig, template_columns
from model.catalogue.image_store import Images, open_images
from model.catalogue.splits import Part, part_of
from model.catalogue.tables import Row, read_rows
from model.errors import CatalogueError

_LINES_SHOWN = 5


def _fill(template: str, values: Mapping[str, str]) -> str:
    # Not str.format: a column called "a.b" or "a[0]" would be looked up as an attribute or an index.
    return "".join(
        literal + (values[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(template)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One product: at least one of `title` and `image` is there.

    `image` is a name inside the folder or zip, None where there is no such image. `labels` maps attributes
    to the raw labels of the table; an attribute without a label is absent. Listings of one `group` are in one part.
    """

    id: str
    title: str | None
    image: str | None
    labels: Mapping[str, str]
    group: str
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that is no usable listing: `id` as far as it could be read, and why."""

    id: str
    line: int
    reason: str


@dataclass
class ReadReport:
    """What became of the rows of a table; the commands print its `str()`."""

    table: str
    rows: int = 0
    listings: int = 0
    repaired: int = 0
    repaired_lines: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    left_out_lines: dict[str, list[int]] = field(default_factory=dict)
    without_image: int = 0
    without_title: int = 0
    unlabelled: Counter[str] = field(default_factory=Counter)

    def add_row(self, line: int, *, repaired: bool) -> None:
        """Count one row of the table."""
        self.rows += 1
        if repaired:
            self.repaired += 1
            _remember(self.repaired_lines, line)

    def add_listing(self, listing: Listing, attributes: Iterable[str]) -> None:
        """Count a row that became a listing."""
        self.listings += 1
        self.without_image += listing.image is None
        self.without_title += listing.title is None
        self.unlabelled.update(a for a in attributes if a not in listing.labels)

    def leave_out(self, reason: str, line: int) -> None:
        """Count a row that is left out."""
        self.left_out[reason] += 1
        _remember(self.left_out_lines.setdefault(reason, []), line)

    def __str__(self) -> str:
        lines = [
            f"{self.table}: {self.rows:,} rows, {self.listings:,} listings",
            f"  repaired: {self.repaired:,}{_shown(self.repaired_lines, self.repaired)}",
            f"  left out: {self.left_out.total():,}",
        ]
        for reason, count in self.left_out.most_common():
            lines.append(f"    {reason}: {count:,}{_shown(self.left_out_lines[reason], count)}")
        lines.append(f"  without image: {self.without_image:,}, without title: {self.without_title:,}")
        if self.unlabelled:
            unlabelled = ", ".join(f"{attribute} {n:,}" for attribute, n in self.unlabelled.items())
            lines.append(f"  without label: {unlabelled}")
        return "\n".join(lines)


def _remember(lines: list[int], line: int) -> None:
    if len(lines) < _LINES_SHOWN:  # bounded: a report of a stream must not grow with it
        lines.append(line)


def _shown(lines: Sequence[int], count: int) -> str:
    if not lines:
        return ""
    more = ", …" if count > len(lines) else ""
    return f" (line {', '.join(map(str, lines))}{more})"


@dataclass(frozen=True)
class Catalogue:
    """A whole catalogue in memory but for its images, which are read on demand. May be pickled and forked."""

    config: CatalogueConfig
    listings: tuple[Listing, ...]
    report: ReadReport
    images: Images

    @classmethod
    def open(cls, toml: str | Path) -> Catalogue:
        """Read the catalogue that `toml` describes; of rows that share an id the first is kept.

            catalogue = Catalogue.open("shop.toml")
            print(catalogue.report)

        Raises `ConfigError` for a mistake in the TOML file, `CatalogueError` for an unusable table or images.
        """
        config = CatalogueConfig.load(Path(toml))
        images = open_images(config.images)
        report = ReadReport(config.table.name)
        listings: dict[str, Listing] = {}
        for line, item in _read_items(config, images, report):
            if isinstance(item, BadRow):
                report.leave_out(item.reason, line)
            elif item.id in listings:
                report.leave_out("duplicate id", line)
            else:
                listings[item.id] = item
                report.add_listing(item, config.attributes)
        if not listings:
            raise CatalogueError(f"{config.table} holds no usable listing:\n{report}")
        return cls(config, tuple(listings.values()), report, images)

    def part(self, part: Part) -> list[Listing]:
        """Return the listings of one part, in the table's order."""
        return [listing for listing in self.listings if listing.part is part]

    @property
    def digest(self) -> str:
        """A hash of all that the table says: of two tables that differ anywhere, it differs."""
        found = hashlib.sha256()
        for each in self.listings:
            found.update(repr((each.id, each.title, each.image, sorted(each.labels.items()), each.part)).encode())
        return found.hexdigest()

    def image_bytes(self, name: str) -> bytes:
        """Return the file behind `Listing.image`; safe in threads and forks. Raises `CatalogueError`."""
        return self.images.read(name)


def iter_listings(config: CatalogueConfig, images: Images, report: ReadReport) -> Iterator[Listing | BadRow]:
    """Yield one item for each row, in order and in constant memory, counting them in `report`.

    Rows that repeat an id are yielded as well: finding them takes memory for every id.
    """
    for line, item in _read_items(config, images, report):
        if isinstance(item, BadRow):
            report.leave_out(item.reason, line)
        else:
            report.add_listing(item, config.attributes)
        yield item


def _read_items(config: CatalogueConfig, images: Images, report: ReadReport) -> Iterator[tuple[int, Listing | BadRow]]:
    for row in read_rows(config.table, config.columns, title=config.title):
        report.add_row(row.line, repaired=row.repaired)
        yield row.line, _listing_of(row, config, images)


def _listing_of(row: Row, config: CatalogueConfig, images: Images) -> Listing | BadRow:
    values = row.values
    name = values.get(config.id, "")

    def bad(reason: str) -> BadRow:
        return BadRow(id=name, line=row.line, reason=reason)

    if row.error:
        return bad(row.error)
    if not name:
        return bad("empty id")
    title = values[config.title] or None if config.title else None
    image = None
    if config.image and all(values[column] for column in template_columns(config.image)):
        image = _fill(config.image, values)
        if not _stays_inside(image):
            return bad("image path leaves the folder")
        if image not in images:
            image = None
    if title is None and image is None:
        return bad("neither title nor image")
    group = _group(values, config)
    return Listing(
        id=name,
        title=title,
        image=image,
        labels={a: sys.intern(values[a]) for a in config.attributes if values[a]},
        group=group,
        part=part_of(group),
    )


def _group(values: Mapping[str, str], config: CatalogueConfig) -> str:
    parts = [" ".join(values[column].casefold().split()) for column in config.group]
    # As NULL in SQL: an absent value equals nothing, so such a row is a group of its own. The separator is
    # white space to str.split, hence in no value.
    return "\x1f".join(parts) if parts and all(parts) else values[config.id]


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name
