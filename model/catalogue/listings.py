"""A catalogue on disk to listings: rows repaired and counted, images read in place, parts assigned.

`Catalogue` holds all of it for training; `iter_listings` streams it for labelling. Nothing is dropped silently: every
row ends as a listing or in the `ReadReport`, and so does every title, label or image that is not taken as it stands.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.catalogue.cells import ImageAt
from model.catalogue.config import CatalogueConfig, template_columns
from model.catalogue.hashes import HashSet, hash64
from model.catalogue.image_names import FoundImages, ImageFinder
from model.catalogue.image_store import CopiedImages, Images, ShardImages, is_url, open_images
from model.catalogue.listing_store import ListingWriter, StoredListings
from model.catalogue.splits import Part, part_of
from model.catalogue.tables import Row, Table, open_table
from model.catalogue.words import Placeholders, SpellingCounts, as_list, plain_label
from model.errors import CatalogueError
from model.stores import Place, is_remote

if TYPE_CHECKING:
    from model.catalogue.corrections import Corrections

_LINES_SHOWN = 5

_LABELS_REMEMBERED = 100_000

_BLOCK = 64
"""Rows whose ids are looked up at once; few, since images that they hold are in memory until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One product: at least one of `title` and `image` is there.

    `image` is a name inside the folder or zip, or a URL; None where there is no such image. Where it cannot be read,
    `further_images` can be tried in turn. `embedded` is the image itself, where the row of a stream holds it.
    `labels` maps single-valued attributes to the labels of the table, `label_sets` multi-valued ones to the labels that
    the listing has, each once; an attribute without a label is absent. Listings of one `group` are in one part.
    """

    id: str
    title: str | None
    image: str | None
    labels: Mapping[str, str]
    group: str
    part: Part
    further_images: tuple[str, ...] = ()
    embedded: bytes | None = None
    label_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def has_label(self, attribute: str) -> bool:
        """Whether the table has a label for an attribute."""
        return attribute in self.labels or attribute in self.label_sets

    @property
    def every_label(self) -> tuple[str, ...]:
        """The labels of all attributes."""
        return (*self.labels.values(), *(label for labels in self.label_sets.values() for label in labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that is no usable listing: `id` as far as it could be read, and why. Its `str()` says all of it.

    `example` is what the reason is about in this row, such as the path of an image.
    """

    id: str
    line: int
    reason: str
    example: str | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" + (f": {self.example}" if self.example else "")


@dataclass
class Seen:
    """How often something was seen in a table, and where first; bounded, so that a report does not grow."""

    count: int = 0
    lines: list[int] = field(default_factory=list)
    example: str | None = None

    def add(self, line: int, example: str | None = None) -> None:
        """Count one more."""
        if not self.count:
            self.example = example
        self.count += 1
        _remember(self.lines, line)

    def __str__(self) -> str:
        example = f", such as {self.example}" if self.example else ""
        return f"{self.count:,}{example}{_shown(self.lines, self.count)}"


MISSING_SHARE = 0.05
"""From this share of missing images on, something is probably wrong with the template or the folder."""


@dataclass
class ImageCount:
    """How many rows name or hold an image, how many of these are there, and the first paths that are not; bounded."""

    named: int = 0
    found: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def not_found(self) -> int:
        """How many rows name an image that is not there."""
        return self.named - self.found

    @property
    def warning(self) -> str | None:
        """What to say where many are missing (`MISSING_SHARE`)."""
        if not self.not_found or self.not_found < MISSING_SHARE * self.named:
            return None
        share = f"{self.not_found / self.named:.0%}"
        return (
            f"{self.not_found:,} of the {self.named:,} images that the table names ({share}) were not found, "
            f"such as {self.missing[0]}"
        )

    def add(self, missing: str | None) -> None:
        """Count a row that names an image: `missing` is the first path tried where it is not there."""
        self.named += 1
        if missing is None:
            self.found += 1
        elif len(self.missing) < _LINES_SHOWN:
            self.missing.append(missing)


@dataclass
class ReadReport:
    """What became of the rows of a table; the commands print its `str()`.

    `form` says how the table was read, and `notes` what was not taken as it stands, though its row was.
    """

    table: str
    rows: int = 0
    listings: int = 0
    repaired: int = 0
    repaired_lines: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    left_out_lines: dict[str, list[int]] = field(default_factory=dict)
    left_out_examples: dict[str, str] = field(default_factory=dict)
    images: ImageCount = field(default_factory=ImageCount)
    without_image: int = 0
    without_title: int = 0
    unlabelled: Counter[str] = field(default_factory=Counter)
    form: str | None = None
    notes: dict[str, Seen] = field(default_factory=dict)
    spellings: dict[str, dict[str, str]] = field(default_factory=dict)

    def add_row(self, line: int, *, repaired: bool) -> None:
        """Count one row of the table."""
        self.rows += 1
        if repaired:
            self.repaired += 1
            _remember(self.repaired_lines, line)

    def add_listing(self, listing: Listing, attributes: Iterable[str]) -> None:
        """Count a row that became a listing."""
        self.listings += 1
        self.without_image += listing.image is None and listing.embedded is None
        self.without_title += listing.title is None
        self.unlabelled.update(a for a in attributes if not listing.has_label(a))

    def leave_out(self, row: BadRow) -> None:
        """Count a row that is left out."""
        self.left_out[row.reason] += 1
        _remember(self.left_out_lines.setdefault(row.reason, []), row.line)
        if row.example:
            self.left_out_examples.setdefault(row.reason, row.example)

    def note(self, what: str, line: int, example: str | None = None) -> None:
        """Count something of a row that is not taken as it stands."""
        self.notes.setdefault(what, Seen()).add(line, example)

    def __str__(self) -> str:
        lines = [f"{self.table}: {self.rows:,} rows, {self.listings:,} listings"]
        if self.form:
            lines.append(f"  read as {self.form}")
        lines += [
            f"  repaired: {self.repaired:,}{_shown(self.repaired_lines, self.repaired)}",
            f"  left out: {self.left_out.total():,}",
        ]
        for reason, count in self.left_out.most_common():
            example = f", such as {self.left_out_examples[reason]}" if reason in self.left_out_examples else ""
            lines.append(f"    {reason}: {count:,}{example}{_shown(self.left_out_lines[reason], count)}")
        lines.append(f"  without image: {self.without_image:,}, without title: {self.without_title:,}")
        if self.unlabelled:
            unlabelled = ", ".join(f"{attribute} {n:,}" for attribute, n in self.unlabelled.items())
            lines.append(f"  without label: {unlabelled}")
        lines += [f"  {what}: {seen}" for what, seen in self.notes.items()]
        for attribute, joined in self.spellings.items():
            shown = ", ".join(f"{spelling!r} is {label!r}" for spelling, label in list(joined.items())[:_LINES_SHOWN])
            more = ", …" if len(joined) > _LINES_SHOWN else ""
            lines.append(f"  spellings of {attribute} joined: {len(joined):,} ({shown}{more})")
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
    """A whole catalogue, read but for its images; a large one lies in a temporary file. May be pickled and forked."""

    config: CatalogueConfig
    listings: Sequence[Listing]
    report: ReadReport
    images: Images
    corrections: Corrections | None = None
    """What decisions of people have changed of its labels (`model.catalogue.corrections`)."""

    @classmethod
    def open(cls, toml: str | Path) -> Catalogue:
        """Read the catalogue that `toml` describes; of rows that share an id the first is kept.

            catalogue = Catalogue.open("shop.toml")
            print(catalogue.report)

        Raises `ConfigError` for a mistake in the TOML file, `CatalogueError` for an unusable table or images.
        """
        config = CatalogueConfig.load(Path(toml))
        images: Images = open_images(config.images)
        report = ReadReport(config.table.name)
        reader = CatalogueReader(config, images, report, in_place=True)
        copied: CopiedImages | None = None
        written, spellings = ListingWriter(), SpellingCounts()
        for item in _each_once(reader.items()):
            if isinstance(item, BadRow):
                report.leave_out(item)
                continue
            report.add_listing(item, config.attributes)
            spellings.add(item.labels, item.label_sets)
            if item.embedded is None:
                written.add(item)
            else:
                copied = copied or CopiedImages(images)
                written.add(replace(item, image=copied.add(item.id, item.embedded), embedded=None))
        reader.check_found()
        if not written:
            raise CatalogueError(f"{config.table} holds no usable listing:\n{report}")
        report.spellings = spellings.joined()
        if copied is not None:
            report.form = (
                f"{report.form}; the images in it ({copied.size / 2**20:,.0f} MiB) were copied to {copied.path}"
            )
        images = copied or images
        if reader.images_in:
            images = ShardImages(reader.images_in, images)
        return cls(config, written.finish(report.spellings), report, images)

    def part(self, part: Part) -> Sequence[Listing]:
        """Return the listings of one part, in the table's order."""
        if isinstance(self.listings, StoredListings):
            return self.listings.part(part)
        return [listing for listing in self.listings if listing.part is part]

    @property
    def digest(self) -> str:
        """A hash of all that the table says: of two tables that differ anywhere, it differs."""
        found = hashlib.sha256()
        for each in self.listings:
            found.update(repr((each.id, each.title, each.image, sorted(each.labels.items()), each.part)).encode())
            if each.label_sets:
                found.update(repr(sorted(each.label_sets.items())).encode())
        return found.hexdigest()

    def image_bytes(self, name: str) -> bytes:
        """Return the file behind `Listing.image`; safe in threads and forks. Raises `CatalogueError`."""
        return self.images.read(name)


def _each_once(items: Iterator[tuple[int, Listing | BadRow]]) -> Iterator[Listing | BadRow]:
    """Yield the items, a listing whose id was there already as a `BadRow`; 8 bytes of memory for each listing."""
    seen = HashSet()
    while block := list(islice(items, _BLOCK)):
        ids = [hash64(item.id.encode(errors="surrogatepass")) for _, item in block if isinstance(item, Listing)]
        known = iter(seen.add(np.array(ids, dtype=np.uint64)).tolist())
        for line, item in block:
            if isinstance(item, Listing) and next(known):
                yield BadRow(id=item.id, line=line, reason="duplicate id")
            else:
                yield item


class MissingImages(Enum):
    """What becomes of a row whose image is named, and is not there."""

    BY_NAME = "by name"
    """It is left out, unless the name is made of the id: that is no claim, and many tables have listings without."""
    ALLOWED = "allowed"
    """It is a listing without an image."""
    REFUSED = "refused"
    """It is left out."""


def iter_listings(
    config: CatalogueConfig, images: Images, report: ReadReport, *, missing: MissingImages = MissingImages.BY_NAME
) -> Iterator[Listing | BadRow]:
    """Yield one item for each row, in order and in constant memory, counting them in `report`.

    Rows that repeat an id are yielded as well: finding them takes memory for every id.
    """
    for _, item in CatalogueReader(config, images, report, missing=missing).items():
        if isinstance(item, BadRow):
            report.leave_out(item)
        else:
            report.add_listing(item, config.attributes)
        yield item


def has_images(config: CatalogueConfig, images: Images) -> bool:
    """Return whether an image of the table is there, or none is named; reads the table until one is found.

    Raises `CatalogueError` where a column names images and none of them is there.
    """
    report = ReadReport(config.table.name)
    reader = CatalogueReader(config, images, report)
    for _ in reader.items():
        if report.images.found:
            return True
    if reader.needs_images:
        reader.check_found()
    return not report.images.named


class CatalogueReader:
    """Reads the rows of a catalogue one by one, in constant memory, and counts in the report what it finds in them.

    Whether a row is left out, or becomes a listing, is for its caller to count (`ReadReport.leave_out`, `add_listing`).
    """

    def __init__(
        self,
        config: CatalogueConfig,
        images: Images,
        report: ReadReport,
        *,
        missing: MissingImages = MissingImages.BY_NAME,
        in_place: bool = False,
    ) -> None:
        """in_place: an image that lies as it is in the table is told by its place, as `ShardImages` has it."""
        self._config, self._report = config, report
        self._in_place = in_place
        self._files: Sequence[Place] = ()
        self.images_in: Sequence[Place] = ()
        """The table's files, where the place of an image in them was told."""
        self._placeholders = Placeholders(config.placeholders)
        self._finder = None
        self.needs_images = missing is MissingImages.REFUSED
        if config.image is not None:
            self._finder = ImageFinder(images, config.image, config.separator, self._placeholders)
            if missing is MissingImages.BY_NAME:
                self.needs_images = config.id not in template_columns(config.image)
        self._known_labels: dict[tuple[str | None, str], tuple[tuple[str, ...], str | None]] = {}

    def items(self) -> Iterator[tuple[int, Listing | BadRow]]:
        """Yield the line and the item of each row."""
        table: Table = open_table(self._config.table, replace(self._config.wanted, in_place=self._in_place))
        self._report.form, self._files = table.form, tuple(table.files)
        for row in table.rows:
            self._report.add_row(row.line, repaired=row.repaired)
            yield row.line, self._listing_of(row)

    def check_found(self) -> None:
        """Raise `CatalogueError` where images are named and none of them is there."""
        images = self._report.images
        if images.found or not images.missing:
            return
        if is_url(images.missing[0]):
            raise CatalogueError(
                f"none of the {images.named:,} images is there: they are URLs, such as {images.missing[0]}, which "
                "only `cma-clip label` fetches; download them, and name their folder by 'images'"
            )
        place = self._config.images or "its cells, and 'images' names no folder"
        folder = f"{images.missing[0].rpartition('/')[0]}/"
        hint = f"; images = {folder!r} reads that folder of an object store" if is_remote(folder) else ""
        raise CatalogueError(
            f"none of the {images.named:,} images that {self._config.table} names is in {place}; "
            f"the first path tried is {images.missing[0]}{hint}"
        )

    def _listing_of(self, row: Row) -> Listing | BadRow:
        name = row.values.get(self._config.id, "")
        if row.error or not name:
            return BadRow(id=name, line=row.line, reason=row.error or "empty id")
        images, title = self._images(row), self._title(row)
        labels, label_sets = self._labels(row)
        if reason := self._trouble(images):
            return BadRow(id=name, line=row.line, reason=reason, example=images.missing)
        if title is None and not images.names and row.embedded is None:
            return BadRow(id=name, line=row.line, reason="neither title nor image")
        group = self._group(row.values)
        held = row.embedded
        image = images.names[0] if images.names else None
        if isinstance(held, ImageAt):
            self.images_in, image = self._files, ShardImages.name_of(held)
        return Listing(
            id=name,
            title=title,
            image=image,
            labels=labels,
            label_sets=label_sets,
            group=group,
            part=part_of(group),
            further_images=images.names[1:],
            embedded=held if isinstance(held, bytes) else None,
        )

    def _trouble(self, images: FoundImages) -> str | None:
        """Return why a row cannot be used whose image is named and not there."""
        if images.outside:
            return "image path leaves the folder"
        if images.missing is None or not self.needs_images:
            return None
        return "the image is a URL, which is not fetched here" if is_url(images.missing) else "no such image"

    def _images(self, row: Row) -> FoundImages:
        if row.embedded is not None:
            self._report.images.add(None)
            return FoundImages()
        if self._finder is None:
            return FoundImages()
        images = self._finder.find(row.values)
        if images.names or images.missing is not None:
            self._report.images.add(images.missing)
        if images.unseen:
            self._report.note("images taken to be there, looked for when they are read", row.line, images.names[0])
        if images.missing is not None and not self.needs_images and not images.outside:
            self._report.note("no such image", row.line, images.missing)
        return images

    def _title(self, row: Row) -> str | None:
        config = self._config
        title = row.values[config.title] if config.title else ""
        if not title:
            return None
        if self._placeholders.is_title(title, "" if config.title == config.id else row.values[config.id]):
            return title
        self._report.note("titles that say nothing, taken as missing", row.line, repr(title[:40]))
        return None

    def _labels(self, row: Row) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        """Return the labels of single-valued attributes, and the label sets of multi-valued ones."""
        labels, label_sets = {}, {}
        for attribute in self._config.attributes:
            cell = row.values[attribute]
            if not cell:
                continue
            separator = self._config.separator.get(attribute)
            found = self._known_labels.get((separator, cell))
            if found is None:
                found = _labels_of(cell, separator, self._placeholders)
                if len(self._known_labels) < _LABELS_REMEMBERED:
                    self._known_labels[separator, cell] = found
            several, trouble = found
            if several and separator is None:
                labels[attribute] = several[0]
            elif several:
                label_sets[attribute] = several
            elif trouble:
                self._report.note(f"{trouble} of {attribute}, taken as missing", row.line, cell[:80])
        return labels, label_sets

    def _group(self, values: Mapping[str, str]) -> str:
        cells = [values[column] for column in self._config.group]
        parts = ["" if cell in self._placeholders else " ".join(cell.casefold().split()) for cell in cells]
        # As NULL in SQL: an absent value equals nothing, so such a row is a group of its own. The separator is
        # white space to str.split, hence in no value.
        return "\x1f".join(parts) if parts and all(parts) else values[self._config.id]


def _labels_of(cell: str, separator: str | None, placeholders: Placeholders) -> tuple[tuple[str, ...], str | None]:
    """Return the labels that a cell holds, each once, or why it holds none; without a separator it holds one at most.

    The separator splits the texts of a list too: no label has it inside.
    """
    several = as_list(cell) or [cell]
    if separator is not None:
        several = [part for each in several for part in each.split(separator) if part.strip()]
    elif len(several) > 1:
        return (), "several labels"
    labels = dict.fromkeys(sys.intern(plain_label(each)) for each in several)
    kept = tuple(label for label in labels if label and label not in placeholders)
    return kept, "placeholders" if not kept and any(label in placeholders for label in labels) else None
