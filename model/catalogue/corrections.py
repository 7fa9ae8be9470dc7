"""Labels that people have judged: read from a file and laid over a catalogue's own. The table is never changed.

Memory grows with the decisions, not with the catalogue.

The file has the columns of `cma-clip audit`, then `decision`, which a person fills in, and `sample`: `random` in the
rows of a sample that was drawn at random and judged without a model's answer (`cma-clip audit --random`). Other
columns, such as who judged and when, are passed over.

In the train part every decision counts. In the held-out parts only those on a random sample do: to correct labels where
a model disagrees with them would make the model right by its own judgement.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import astuple, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from model.catalogue.cells import Row, Wanted
from model.catalogue.formulas import to_cell
from model.catalogue.listing_store import replaced
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.catalogue.tables import import_pyarrow, open_table
from model.catalogue.words import plain_label
from model.errors import CatalogueError
from model.files import replace_durably
from model.tasks import fold_label

RIGHT = "right"
"""The decision that the label is the right one."""

UNCLEAR = "unclear"
"""The decision that nobody can tell: the train part loses the label, a held-out part keeps it."""

RANDOM = "random"
"""What `sample` says of a row that was drawn at random and judged without a model's answer."""

SAMPLED = (Part.CALIBRATION, Part.TEST)
"""The parts that a random sample is drawn from."""

_SAMPLE = "sample"
_READ = ("id", "attribute", "label", "suggestion", "score", "decision")


class Outcome(StrEnum):
    """What became of a decision."""

    CONFIRMED = "confirmed"
    """The label is the table's."""
    CHANGED = "changed"
    """The listing has another label now, or one for the first time."""
    REMOVED = "removed"
    """Unclear, in the train part: the listing has no label of this attribute any more."""
    KEPT = "unclear, kept"
    """Unclear, in a held-out part: no row is dropped there."""
    PASSED_OVER = "passed over"
    """On a label of a held-out part that is not of a random sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """One row of the file: a label of the catalogue, and what a person decided. All are texts, empty where missing.

    `label`, `suggestion` and `decision` of a multi-valued attribute are label sets, joined by its separator. `decision`
    is the label that the listing should have, `right` or `unclear`; empty where nobody has judged yet. `reviewer` and
    `time` are for people, and not read.
    """

    id: str
    attribute: str
    label: str
    suggestion: str = ""
    score: str = ""
    rank: str = ""
    decision: str = ""
    sample: str = ""
    reviewer: str = ""
    time: str = ""


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """What decisions of people have changed in a catalogue."""

    file: str
    counts: Mapping[tuple[Part, str, Outcome], int]
    """How many decisions, by part, attribute and outcome."""
    as_in_table: Mapping[str, Listing]
    """The listings whose labels were changed, as the table has them, by id."""

    def undone(self, listings: Iterable[Listing]) -> tuple[Listing, ...]:
        """Return listings with the labels that the table has."""
        return tuple(self.as_in_table.get(each.id, each) for each in listings)

    def to_json(self) -> dict[str, object]:
        """Return the file's name and, by part and attribute, how many decisions came to what, in JSON types."""
        parts: dict[str, dict[str, dict[str, int]]] = {}
        for (part, attribute, outcome), count in self.counts.items():
            parts.setdefault(part, {}).setdefault(attribute, {})[outcome] = count
        return {"file": self.file, "decisions": parts}

    def __str__(self) -> str:
        lines = [f"{self.file}: {sum(self.counts.values()):,} decisions; the table is not changed"]
        for part in Part:
            found = Counter[Outcome]()
            for (of, _, outcome), count in self.counts.items():
                found[outcome] += count if of is part else 0
            if said := [f"{outcome} {found[outcome]:,}" for outcome in Outcome if found[outcome]]:
                lines.append(f"  {part}: {', '.join(said)}")
        if any(outcome is Outcome.PASSED_OVER for _, _, outcome in self.counts):
            lines.append("  (passed over: labels of held-out parts change only by decisions on a random sample)")
        return "\n".join(lines)


def correct(catalogue: Catalogue, file: Path | None) -> Catalogue:
    """Return the catalogue with the labels that the decisions in `file` give it, and `corrections`; as it is for None.

        catalogue = correct(Catalogue.open("shop.toml"), Path("judged.csv"))
        print(catalogue.corrections)

    Raises `CatalogueError` that names the line of the first decision that cannot be followed: on a listing, an
    attribute or a label that the catalogue does not have, on a label that is no longer the table's, against another
    decision on the same label, or marked as random beside a model's answer.
    """
    if file is None:
        return catalogue
    rows = list(_rows(file))
    reader = _Decisions(catalogue, {row.values["id"] for row in rows})
    for row in rows:
        reader.take(row)
    if not reader.problems and not reader.found:
        raise CatalogueError(f"{file} holds no decision: its column 'decision' is empty")
    if reader.problems:
        more = f" (and {len(reader.problems) - 1:,} more such lines)" if len(reader.problems) > 1 else ""
        raise CatalogueError(f"{file}, {reader.problems[0]}{more}")
    return _apply(catalogue, file.name, reader.found.values())


# --- reading -----------------------------------------------------------------------------------------------


def _rows(file: Path) -> Iterator[Row]:
    """Yield the rows that hold a decision; the column `sample` may be missing."""
    try:
        rows = list(open_table(file, Wanted(columns=(*_READ, _SAMPLE), id="id")).rows)
    except CatalogueError:
        rows = list(open_table(file, Wanted(columns=_READ, id="id")).rows)
    for row in rows:
        if row.error:
            raise CatalogueError(f"{file}, line {row.line}: {row.error}")
        if row.values["decision"]:
            yield row


@dataclass(frozen=True, slots=True)
class _Decision:
    """A decision that can be followed: `labels` are the listing's, None where nobody can tell."""

    line: int
    listing: Listing
    attribute: str
    labels: tuple[str, ...] | None
    random: bool


class _Decisions:
    """Collects decisions, and what is wrong with those that cannot be followed."""

    def __init__(self, catalogue: Catalogue, judged: Set[str]) -> None:
        """judged: the ids of listings that are decided on."""
        self._separators = catalogue.config.separator
        self._listings: dict[str, Listing] = {}
        self._labels: dict[str, dict[str, str]] = {attribute: {} for attribute in catalogue.config.attributes}
        """Of each attribute the labels that the catalogue has, by what their spellings share."""
        for listing in catalogue.listings:
            if listing.id in judged:
                self._listings[listing.id] = listing
            for attribute, known in self._labels.items():
                for label in labels_of(listing, attribute):
                    known[fold_label(label)] = label
        self.found: dict[tuple[str, str], _Decision] = {}
        self.problems: list[str] = []

    def take(self, row: Row) -> None:
        """Add a row's decision to `found`, or what is wrong with it to `problems`."""
        try:
            self._take(row)
        except ValueError as problem:
            self.problems.append(f"line {row.line}: {problem}")

    def _take(self, row: Row) -> None:
        name, attribute = row.values["id"], row.values["attribute"]
        listing, random = self._listings.get(name), _is_random(row)
        if listing is None:
            raise ValueError(f"the catalogue has no listing {name!r}")
        if attribute not in self._labels:
            raise ValueError(f"the catalogue has no attribute {attribute!r}; it has {', '.join(self._labels)}")
        given, now = self._split(attribute, row.values["label"]), labels_of(listing, attribute)
        if given and {*map(fold_label, given)} != {*map(fold_label, now)}:
            raise ValueError(
                f"the {attribute} of {name} is {' and '.join(now) or 'not there'} in the table, and was "
                f"{' and '.join(given)} when it was judged: judge it again"
            )
        decided = _Decision(row.line, listing, attribute, self._decided(attribute, row.values["decision"], now), random)
        self._enter(decided)

    def _enter(self, decided: _Decision) -> None:
        key = decided.listing.id, decided.attribute
        earlier = self.found.get(key)
        if earlier is not None and _as_set(earlier.labels) != _as_set(decided.labels):
            raise ValueError(
                f"the {decided.attribute} of {decided.listing.id} is decided otherwise in line {earlier.line}: "
                "leave one of the two"
            )
        if earlier is None or decided.random:
            self.found[key] = decided

    def _decided(self, attribute: str, text: str, now: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the labels that a decision stands for; a label comes before a word of the same spelling."""
        known, chosen = self._labels[attribute], self._split(attribute, text)
        if unknown := [label for label in chosen if fold_label(label) not in known]:
            word = fold_label(text)
            if word == UNCLEAR:
                return None
            if word == RIGHT:
                if not now:
                    raise ValueError(f"there is no label of {attribute} that could be right")
                return now
            near = difflib.get_close_matches(unknown[0], known.values(), n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(
                f"{unknown[0]!r} is no label of {attribute} that the catalogue has, nor {RIGHT} or {UNCLEAR}{hint}"
            )
        return tuple(dict.fromkeys(known[fold_label(label)] for label in chosen))

    def _split(self, attribute: str, text: str) -> tuple[str, ...]:
        separator = self._separators.get(attribute)
        parts = text.split(separator) if separator else [text]
        return tuple(plain_label(part) for part in parts if part.strip())


def _is_random(row: Row) -> bool:
    sample = fold_label(row.values.get(_SAMPLE, ""))
    if sample not in ("", RANDOM):
        raise ValueError(f"'sample' is {RANDOM} or empty, not {sample!r}")
    if sample and (row.values["suggestion"] or row.values["score"]):
        raise ValueError("a random sample is judged without a model's answer, and this row shows one")
    return sample == RANDOM


def labels_of(listing: Listing, attribute: str) -> tuple[str, ...]:
    """Return a listing's labels of an attribute: none, one, or those of a multi-valued one."""
    single = listing.labels.get(attribute)
    return (single,) if single is not None else listing.label_sets.get(attribute, ())


def _as_set(labels: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if labels is None else frozenset(labels)


# --- applying ----------------------------------------------------------------------------------------------


def _apply(catalogue: Catalogue, file: str, decisions: Iterable[_Decision]) -> Catalogue:
    counts, changed, table = Counter[tuple[Part, str, Outcome]](), dict[str, Listing](), dict[str, Listing]()
    for each in decisions:
        listing = changed.get(each.listing.id, each.listing)
        outcome, labels = _follow(each)
        counts[listing.part, each.attribute, outcome] += 1
        if labels != labels_of(listing, each.attribute):
            table[listing.id] = each.listing
            changed[listing.id] = _relabelled(listing, each.attribute, labels, catalogue.config.separator)
    return replace(
        catalogue,
        listings=replaced(catalogue.listings, changed),
        corrections=Corrections(file=file, counts=dict(counts), as_in_table=table),
    )


def _follow(decision: _Decision) -> tuple[Outcome, tuple[str, ...]]:
    """Return what becomes of a decision, and the labels that the listing has after it."""
    now, training = labels_of(decision.listing, decision.attribute), decision.listing.part is Part.TRAIN
    if not training and not decision.random:
        return Outcome.PASSED_OVER, now
    if decision.labels is None:
        return (Outcome.REMOVED, ()) if training else (Outcome.KEPT, now)
    if _as_set(decision.labels) == _as_set(now):
        return Outcome.CONFIRMED, now
    return Outcome.CHANGED, decision.labels


def _relabelled(listing: Listing, attribute: str, labels: tuple[str, ...], separators: Mapping[str, str]) -> Listing:
    single = {name: label for name, label in listing.labels.items() if name != attribute}
    sets = {name: found for name, found in listing.label_sets.items() if name != attribute}
    if labels and attribute in separators:
        sets[attribute] = labels
    elif labels:
        single[attribute] = labels[0]
    return replace(listing, labels=single, label_sets=sets)


# --- a random sample, and writing --------------------------------------------------------------------------


def random_sample(catalogue: Catalogue, count: int) -> list[Listing]:
    """Draw `count` listings of the calibration and test parts by a hash of their ids, or all where there are fewer.

    A larger sample holds the smaller one. Raises `CatalogueError` where these parts are empty.
    """
    held_out = (listing for part in SAMPLED for listing in catalogue.part(part))
    drawn = heapq.nsmallest(count, held_out, key=lambda each: hashlib.sha256(f"sample/{each.id}".encode()).digest())
    if not drawn and not any(len(catalogue.part(part)) for part in SAMPLED):
        raise CatalogueError("the calibration and test parts are empty: there is nothing to draw a sample from")
    return drawn


def rows_to_judge(listings: Sequence[Listing], separators: Mapping[str, str]) -> list[JudgedRow]:
    """Return a row for each label of a random sample, without a model's answer; separators: of multi-valued ones."""
    return [
        JudgedRow(id=listing.id, attribute=name, label=separators.get(name, "").join(labels), sample=RANDOM)
        for listing in listings
        for name, labels in {**{name: (label,) for name, label in listing.labels.items()}, **listing.label_sets}.items()
    ]


def write_judged(rows: Sequence[JudgedRow], out: Path) -> None:
    """Write rows to a .csv or .parquet file that `correct` reads; replaces the file at once when complete."""
    write_rows([field.name for field in fields(JudgedRow)], map(astuple, rows), out)


def write_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], out: Path) -> int:
    """Write a .parquet file, or a CSV file in which no cell is a formula; replaces the file at once when complete.

    Returns the number of rows.
    """
    temporary = out.with_name(f".{out.name}.partial")
    if out.suffix == ".parquet":
        pyarrow = import_pyarrow()
        values = list(zip(*rows, strict=True)) or [()] * len(columns)
        table = pyarrow.table({name: list(column) for name, column in zip(columns, values, strict=True)})
        pyarrow.parquet.write_table(table, temporary)
        count = len(table)
    else:
        count = 0
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in rows:
                writer.writerow([to_cell(cell) if isinstance(cell, str) else cell for cell in row])
                count += 1
    replace_durably(temporary, out)
    return count
