"""What is in a catalogue before anything is trained on it: facts about its table, images, labels and parts.

`check_catalogue` reads the table as training would, in memory that hardly grows with it: about 30 bytes a row.
`check_listings` says the same of a catalogue that has been read. Neither needs torch. What to do about what was found
is in `CatalogueCheck.findings`; a finding of severity `error` is what training refuses.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path

import numpy as np

from model.catalogue.applicability import BorneCounts
from model.catalogue.config import CatalogueConfig
from model.catalogue.hashes import HashSet, Shared, TaggedKeys, hash64
from model.catalogue.image_store import Images, ZipImages, is_url, open_images
from model.catalogue.listings import BadRow, Catalogue, CatalogueReader, Listing, ReadReport
from model.catalogue.splits import Part
from model.catalogue.words import join_spellings
from model.errors import CatalogueError
from model.situations import Situation
from model.trust.applicability import Applicability
from model.trust.certificates import TARGET_PRECISIONS, fewest_right

IMAGES_READ = 100_000
"""Image files that are read to find equal ones. In a zip file all are compared, by size and checksum."""

MAX_LABELS = 50_000
"""Different labels of an attribute that are counted: a column with more of them holds texts."""

_BLOCK = 8192
"""Rows whose ids are looked up at once."""

_PLACEHOLDER_SHARE, _PLACEHOLDER_ROWS = 0.01, 20
"""An image on such a share of the listings, and on so many, probably stands for an absent one."""

_SHOWN = 5

_PARTS = tuple(Part)

_HAS_IMAGE, _HAS_TITLE = 1, 2

_ASKS_FOR = {
    Situation.IMAGE_AND_TITLE: (_HAS_IMAGE | _HAS_TITLE,),
    Situation.IMAGE: (_HAS_IMAGE, _HAS_IMAGE | _HAS_TITLE),
    Situation.TITLE: (_HAS_TITLE, _HAS_IMAGE | _HAS_TITLE),
}
"""What a listing must have to be answered in a situation."""


# --- what is found -----------------------------------------------------------------------------------------


class Severity(StrEnum):
    """How much a finding matters. Training refuses an `error`."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to know about a catalogue, and what to do about it (empty where there is nothing to do)."""

    severity: Severity
    text: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The calibration listings that have a label, in one situation: `rows` of them, worth `independent` ones.

    Of a multi-valued attribute the rows are (listing, label) pairs. Rows of one group, or without groups of one title,
    repeat each other: n rows in groups of m_g are worth n² / Σ m_g² independent ones where all answers are right
    (`model.trust.binomial.design_effects`).
    """

    rows: int = 0
    independent: float = 0.0

    def certifiable(self, needed: Mapping[float, int]) -> float | None:
        """Return the highest target precision for which there can be enough right answers; None where there is none."""
        return max((target for target, count in needed.items() if self.independent >= count), default=None)


@dataclass(frozen=True, kw_only=True)
class AttributeFacts:
    """An attribute's labels, spellings joined.

    labels: all of them with their counts in the whole table, the commonest first. rare: those with fewer than
    `min_label_count` training listings, with these counts; they are not learned. spellings: what was replaced by what.
    multi_valued: a listing may have several of them. too_many: there are more than `MAX_LABELS`, and the further ones
    are not counted.
    """

    name: str
    labelled: int
    labels: Mapping[str, int]
    rare: Mapping[str, int]
    spellings: Mapping[str, str]
    evidence: Mapping[Situation, Evidence]
    multi_valued: bool
    too_many: bool

    @property
    def learned(self) -> tuple[str, ...]:
        """The labels that training learns."""
        return tuple(sorted(label for label in self.labels if label not in self.rare))


@dataclass(frozen=True, kw_only=True)
class CatalogueCheck:
    """What was found in a catalogue. `needed`: the right answers that a certificate takes, per target precision.

    titles, images: what rows of different parts share. images_compared: how many images were compared. applicability:
    which product types never bear which attributes; None where the catalogue names no `product_type`.
    """

    config: CatalogueConfig
    report: ReadReport
    parts: Mapping[Part, int]
    attributes: tuple[AttributeFacts, ...]
    titles: Shared
    images: Shared
    images_compared: int
    needed: Mapping[float, int]
    applicability: Applicability | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What training refuses."""
        return tuple(each for each in self.findings if each.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What training takes, though it should be looked at."""
        return tuple(each for each in self.findings if each.severity is Severity.WARNING)


def check_catalogue(toml: Path, *, advance: Callable[[int], None] = lambda _rows: None) -> CatalogueCheck:
    """Check the catalogue that `toml` describes. `advance` is called with the number of rows just read.

    Raises `ConfigError` for a mistake in the TOML file, `CatalogueError` for a table or images that cannot be read.
    """
    config = CatalogueConfig.load(toml)
    images = open_images(config.images)
    report = ReadReport(config.table.name)
    facts = _Facts(config, images, images_read=IMAGES_READ)
    ids = HashSet()
    rows = _without_bytes(CatalogueReader(config, images, report).items())
    while block := list(islice(rows, _BLOCK)):
        listings = [item for _, item, _ in block if isinstance(item, Listing)]
        hashes = np.array([hash64(listing.id.encode()) for listing in listings], np.uint64)
        repeated = iter(ids.add(hashes).tolist())
        for line, item, image in block:
            if isinstance(item, BadRow):
                report.leave_out(item)
            elif next(repeated):
                report.leave_out(BadRow(id=item.id, line=line, reason="duplicate id"))
            else:
                report.add_listing(item, config.attributes)
                facts.add(item, image)
        advance(len(block))
    return facts.checked(report)


def check_listings(catalogue: Catalogue) -> CatalogueCheck:
    """Check a catalogue that has been read. Image files are not read for it: only those of a zip are compared."""
    facts = _Facts(catalogue.config, catalogue.images, images_read=0)
    for listing in catalogue.listings:
        facts.add(listing, None)
    return facts.checked(catalogue.report)


def _without_bytes(
    items: Iterator[tuple[int, Listing | BadRow]],
) -> Iterator[tuple[int, Listing | BadRow, int | None]]:
    """Yield line, item and the hash of the image that a row holds; the image itself would fill the memory."""
    for line, item in items:
        if isinstance(item, Listing) and item.embedded is not None:
            yield line, dataclasses.replace(item, image="in the table", embedded=None), hash64(item.embedded)
        else:
            yield line, item, None


# --- counting ----------------------------------------------------------------------------------------------


@dataclass
class _Labels:
    """Counts of one attribute; bounded."""

    all: Counter[str] = field(default_factory=Counter)
    training: Counter[str] = field(default_factory=Counter)
    evidence: TaggedKeys = field(default_factory=TaggedKeys)
    labelled: int = 0
    too_many: bool = False

    def add(self, label: str, part: Part) -> None:
        if label not in self.all and len(self.all) >= MAX_LABELS:
            self.too_many = True
            return
        self.all[label] += 1
        if part is Part.TRAIN:
            self.training[label] += 1


class _Facts:
    """Counts listings, one after the other."""

    def __init__(self, config: CatalogueConfig, images: Images, *, images_read: int) -> None:
        self._config, self._images, self._images_left = config, images, images_read
        self._labels = {attribute: _Labels() for attribute in config.attributes}
        self._parts = dict.fromkeys(_PARTS, 0)
        self._labelled_validation = 0
        self._titles, self._pixels = TaggedKeys(), TaggedKeys()
        self._borne = BorneCounts(config.product_type, config.attributes) if config.product_type else None

    def add(self, listing: Listing, image: int | None) -> None:
        """Count a listing; `image` is the hash of its image where that is known."""
        self._parts[listing.part] += 1
        part = _PARTS.index(listing.part)
        title = hash64(_plain(listing.title)) if listing.title else None
        if listing.title and title is not None:
            self._titles.add_named(title, part, listing.title, listing.id)
        if image is None and listing.image:
            image = self._fingerprint(listing.image)
        if image is not None:
            self._pixels.add_named(image, part, listing.image or listing.id, listing.id)
        if self._borne is not None and listing.part is Part.TRAIN:
            self._borne.add(listing)
        self._add_labels(listing, title)

    def _add_labels(self, listing: Listing, title: int | None) -> None:
        """Count the labels of a listing; `title` is the hash of its title."""
        labels = [*((name, (label,)) for name, label in listing.labels.items()), *listing.label_sets.items()]
        self._labelled_validation += bool(labels) and listing.part is Part.VALIDATION
        for attribute, several in labels:
            counted = self._labels[attribute]
            counted.labelled += 1
            for label in several:
                counted.add(label, listing.part)
        if listing.part is Part.CALIBRATION:
            key = hash64(listing.group.encode()) if title is None or self._config.group else title
            has = bool(listing.image) * _HAS_IMAGE | bool(listing.title) * _HAS_TITLE
            for attribute, several in labels:
                for _ in several:
                    self._labels[attribute].evidence.add(key, has)

    def _fingerprint(self, name: str) -> int | None:
        """Return a hash of an image's bytes, or of what a zip's directory says of them."""
        if isinstance(self._images, ZipImages):
            member = self._images.member(name)
            return hash64(member.crc.to_bytes(4) + member.size.to_bytes(8))
        if self._images_left <= 0 or is_url(name):
            return None
        self._images_left -= 1
        try:
            return hash64(self._images.read(name))
        except CatalogueError:  # which training says of it, too
            return None

    def checked(self, report: ReadReport) -> CatalogueCheck:
        """Return what was counted, and what it means."""
        attributes = tuple(self._attribute(name, report) for name in self._config.attributes)
        report.spellings = {each.name: dict(each.spellings) for each in attributes if each.spellings}
        check = CatalogueCheck(
            config=self._config,
            report=report,
            parts=self._parts,
            attributes=attributes,
            titles=self._titles.shared(),
            images=self._pixels.shared(),
            images_compared=len(self._pixels),
            needed={target: fewest_right(target) for target in TARGET_PRECISIONS},
            applicability=self._applicability(attributes),
        )
        found = [*_about_rows(check), *_about_images(check)]
        if report.listings:  # else what follows only repeats it
            found += [*self._about_parts(check), *_about_labels(check)]
        order = list(Severity)
        return dataclasses.replace(check, findings=tuple(sorted(found, key=lambda each: order.index(each.severity))))

    def _applicability(self, attributes: Sequence[AttributeFacts]) -> Applicability | None:
        if self._borne is None:
            return None
        known = next((facts.learned for facts in attributes if facts.name == self._config.product_type), ())
        return self._borne.learned(known)

    def _attribute(self, name: str, report: ReadReport) -> AttributeFacts:
        counted = self._labels[name]
        spellings = report.spellings.get(name) or join_spellings(counted.all)
        labels, training = (_joined(counts, spellings) for counts in (counted.all, counted.training))
        least = self._config.min_label_count
        return AttributeFacts(
            name=name,
            labelled=counted.labelled,
            labels=dict(labels.most_common()),
            rare={label: training[label] for label in sorted(labels) if training[label] < least},
            spellings=spellings,
            evidence={situation: _evidence(counted.evidence, tags) for situation, tags in _ASKS_FOR.items()},
            multi_valued=name in self._config.separator,
            too_many=counted.too_many,
        )

    def _about_parts(self, check: CatalogueCheck) -> Iterator[Finding]:
        attributes = check.config.attributes
        if not attributes:
            text = "the catalogue names no attributes: it can be labelled, and not trained on"
            yield Finding(severity=Severity.WARNING, text=text, advice="name the columns to learn by 'attributes'")
        elif not check.parts[Part.TRAIN] or not self._labelled_validation:
            part = Part.VALIDATION if check.parts[Part.TRAIN] else Part.TRAIN
            text = f"the {part} part holds no labelled listing: there are too few listings, or groups"
            advice = "add listings" + (
                ", or group by a column with more different values" if check.config.group else ""
            )
            yield Finding(severity=Severity.ERROR, text=text, advice=advice)
        yield from _about_shared(check)


def _plain(title: str) -> bytes:
    return " ".join(title.casefold().split()).encode()


def _joined(counts: Counter[str], spellings: Mapping[str, str]) -> Counter[str]:
    joined: Counter[str] = Counter()
    for label, count in counts.items():
        joined[spellings.get(label, label)] += count
    return joined


def _evidence(keys: TaggedKeys, tags: Sequence[int]) -> Evidence:
    rows = squares = 0
    for sizes in keys.sizes(tags):
        rows += int(sizes.sum())
        squares += int((sizes**2).sum())
    return Evidence(rows=rows, independent=rows**2 / squares if squares else 0.0)


# --- what it means -----------------------------------------------------------------------------------------


def _about_rows(check: CatalogueCheck) -> Iterator[Finding]:
    report = check.report
    if not report.listings:
        text = "the table holds no usable listing"
        yield Finding(severity=Severity.ERROR, text=text, advice="what was left out, and why, is listed below")
    elif left_out := report.left_out.total():
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in report.left_out.most_common(_SHOWN))
        text = f"{left_out:,} of {report.rows:,} rows are left out: {reasons}"
        yield Finding(severity=Severity.WARNING, text=text, advice="the first lines of each kind are listed below")
    for what, seen in report.notes.items():
        if what != "no such image":
            yield Finding(severity=Severity.NOTE, text=f"{what}: {seen}")


def _about_images(check: CatalogueCheck) -> Iterator[Finding]:
    counted, shared = check.report.images, check.images
    if counted.named and not counted.found:
        where = check.config.images or "the table, and 'images' names no folder or zip"
        text = f"not one of the {counted.named:,} images is in {where}; the first path tried is {counted.missing[0]}"
        advice = "compare this path with the files, and change 'images' or 'image'"
        if is_url(counted.missing[0]):
            advice = "`cma-clip label` fetches URLs; for training download them, and name their folder by 'images'"
        yield Finding(severity=Severity.ERROR, text=text, advice=advice)
    elif counted.warning:
        yield Finding(severity=Severity.WARNING, text=counted.warning, advice="compare this path with the files")
    if shared.most >= max(_PLACEHOLDER_ROWS, _PLACEHOLDER_SHARE * check.report.listings):
        text = f"one image is on {shared.most:,} listings" + (f": {shared.commonest}" if shared.commonest else "")
        advice = "if it stands for an absent image, leave those cells empty, or remove that file"
        yield Finding(severity=Severity.WARNING, text=text, advice=advice)


def _about_shared(check: CatalogueCheck) -> Iterator[Finding]:
    """Report duplicates on two sides of the split, which make every figure too good."""
    group = check.config.group
    for what, shared in (("title", check.titles), ("image", check.images)):
        if not shared.apart:
            continue
        text = f"{shared.rows:,} listings have the same {what} as a listing in another part ({shared.apart:,} {what}s)"
        if shared.examples:
            name, ids = shared.examples[0]
            text += f", such as {name[:80]!r} (ids {', '.join(ids)})"
        column = check.config.title if what == "title" else None
        name = f'group = "{column}"' if column and not group else "group"
        advice = f"accuracies would look too good: keep such listings in one part by {name}" + (
            "" if column and not group else ", a column whose values they share"
        )
        yield Finding(severity=Severity.WARNING, text=text, advice=advice)


def _about_labels(check: CatalogueCheck) -> Iterator[Finding]:
    least = check.config.min_label_count
    for facts in check.attributes:
        if facts.too_many:
            text = f"{facts.name} has more than {MAX_LABELS:,} different values: it looks like text, not like labels"
            yield Finding(severity=Severity.WARNING, text=text, advice="is it the right column?")
        if len(facts.learned) < 2:
            text = (
                f"{facts.name} has {len(facts.learned)} labels with at least {least} training listings; two are needed"
            )
            advice = "lower min_label_count, or leave the attribute out"
            yield Finding(severity=Severity.ERROR, text=text, advice=advice)
            continue
        if facts.rare:
            labels = "1 label has" if len(facts.rare) == 1 else f"{len(facts.rare):,} labels have"
            names = ", ".join(f"{label} ({count})" for label, count in islice(facts.rare.items(), _SHOWN))
            more = ", …" if len(facts.rare) > _SHOWN else ""
            text = f"{facts.name}: {labels} fewer than {least} training listings: {names}{more}"
            advice = "they are not learned; a listing that bears one counts as an error"
            yield Finding(severity=Severity.NOTE, text=text, advice=advice)
        if facts.spellings:
            spelt = ", ".join(f"{one!r} is {label!r}" for one, label in islice(facts.spellings.items(), _SHOWN))
            yield Finding(severity=Severity.NOTE, text=f"{facts.name}: spellings joined: {spelt}")
        yield from _about_evidence(facts, check.needed)


def _about_evidence(facts: AttributeFacts, needed: Mapping[float, int]) -> Iterator[Finding]:
    """Report the target precisions that cannot be certified, for the situation with the most evidence."""
    evidence = max(facts.evidence.values(), key=lambda each: each.independent)
    best = evidence.certifiable(needed)
    if best == max(needed):
        return
    lacking = [target for target in needed if best is None or target > best]
    wanted = ", ".join(f"{needed[target]} for {target:g}" for target in lacking)
    worth = (
        "" if round(evidence.independent) == evidence.rows else f", worth {evidence.independent:,.0f} different ones"
    )
    verdict = "cannot be certified" if best is None else f"can be certified at {best:g} at most"
    rows = f"the calibration part has {evidence.rows:,} labelled listings{worth}"
    yield Finding(
        severity=Severity.WARNING if best is None else Severity.NOTE,
        text=f"{facts.name} {verdict}: {rows}; needed, if all answers are right: {wanted}",
        advice="label more listings: a tenth of them falls into the calibration part",
    )
