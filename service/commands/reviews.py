"""`cma-clip reviews`: what people have judged, written out and purged; and what `calibrate --reviews` reads of it."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import ConfigError
from service.reviews.pairs import JudgedPair, Kind, Verdict
from service.settings import DAY

if TYPE_CHECKING:
    from model.catalogue.corrections import JudgedRow
    from model.catalogue.listings import Catalogue
    from service.reviews.records import Records

ACCEPTED_COLUMNS = ("time", "id", "attribute", "label", "confidence", "target_precision", "situation", "model")

StoreUrl = Annotated[
    str, typer.Argument(help="sqlite:///FILE or postgresql://…, as CMA_CLIP_STORE", show_default=False)
]


def reviews(
    store: StoreUrl,
    *,
    corrections: Annotated[
        Path | None,
        typer.Option(help="write decisions for --corrections of train (.csv or .parquet)", show_default=False),
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="its TOML file: only decisions on its listings are written", show_default=False)
    ] = None,
    accepted: Annotated[
        Path | None, typer.Option(help="write the labels that were accepted (.csv)", show_default=False)
    ] = None,
    attribute: Annotated[str | None, typer.Option(help="only of this attribute", show_default=False)] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="only from then on, in UTC", show_default=False),
    ] = None,
    purge_days: Annotated[
        float | None, typer.Option(min=0, help="delete what is older than so many days", show_default=False)
    ] = None,
) -> None:
    """Show what people have judged; write their decisions, or the labels that were accepted; delete what is old."""
    from model.catalogue.corrections import write_judged, write_rows  # noqa: PLC0415

    for path in (corrections, accepted):
        if path and not path.parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} to write {path.name} into")
    if corrections and corrections.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{corrections} has to end in .csv or .parquet")
    start = since.replace(tzinfo=UTC).timestamp() if since else 0.0
    with opened(store) as records:
        _describe(records)
        if corrections:
            rows = list(_corrections(records, attribute, start))
            kept = _usable(rows, catalogue)
            write_judged(kept, corrections)
            print(f"{corrections}: {len(kept):,} of {len(rows):,} decisions")
            if len(kept) < len(rows):
                print("  the others are on listings without an id, outside the catalogue, or on a label judged again")
        if accepted:
            count = write_rows(ACCEPTED_COLUMNS, _accepted(records, attribute, start), accepted)
            print(f"{accepted}: {count:,} accepted labels")
        if purge_days is not None:
            gone = records.purge(time.time() - purge_days * DAY)
            print(f"purged: {', '.join(f'{count:,} {what}' for what, count in gone.items())}")


@contextmanager
def opened(url: str) -> Iterator[Records]:
    """Open the tables of reviews in a store. Raises `ConfigError`, or `ServiceError` where it cannot be reached."""
    from service.reviews.records import Records  # noqa: PLC0415
    from service.store.database import Database  # noqa: PLC0415
    from service.store.migrate import migrate  # noqa: PLC0415

    database = Database(url)
    try:
        migrate(database)
        yield Records(database)
    finally:
        database.close()


def reviewed(records: Records, attributes: list[str], trained_on: Catalogue | None) -> Catalogue:
    """Return the judged pairs of the random share as a catalogue to calibrate on; `records` must stay open.

    trained_on: the model's own catalogue, whose train and validation listings are left out
    """
    from model.catalogue.reviewed import (  # noqa: PLC0415
        NONE_FITS,
        SKIPPED,
        ReviewedImages,
        ReviewedListing,
        reviewed_catalogue,
    )
    from model.catalogue.splits import Part  # noqa: PLC0415

    def labels(pair: JudgedPair) -> tuple[str, ...]:
        return (SKIPPED,) if pair.decision is None else pair.decision or (NONE_FITS,)

    def listings() -> Iterator[ReviewedListing]:
        for name, same in itertools.groupby(records.judged(Kind.RANDOM), key=lambda pair: pair.listing):
            pairs = list(same)
            yield ReviewedListing(
                name=name,
                id=pairs[0].id,
                title=pairs[0].title,
                has_image=pairs[0].has_image,
                labels={pair.attribute: labels(pair)[0] for pair in pairs if pair.separator is None},
                label_sets={pair.attribute: labels(pair) for pair in pairs if pair.separator is not None},
            )

    seen = trained_on.listings if trained_on else ()
    return reviewed_catalogue(
        listings(),
        attributes,
        ReviewedImages(records.image),
        seen={each.id for each in seen if each.part in (Part.TRAIN, Part.VALIDATION)},
    )


def _describe(records: Records) -> None:
    waiting = records.waiting(time.time())
    for kind in Kind:
        verdicts = Counter(pair.verdict for pair in records.judged(kind))
        judged = ", ".join(f"{verdicts[verdict]:,} {verdict}" for verdict in Verdict)
        print(f"{kind}: {verdicts.total():,} judged ({judged}), {waiting[kind]:,} waiting")


def _corrections(records: Records, attribute: str | None, since: float) -> Iterator[JudgedRow]:
    """Yield the decisions in the form that `model.catalogue.corrections` reads; a skipped pair is none.

    On the random share they were made without the model's answer, and its answer is not shown in the file either.
    """
    from model.catalogue.corrections import RANDOM, UNCLEAR, JudgedRow  # noqa: PLC0415

    for kind in Kind:
        unseen = kind is Kind.RANDOM
        for pair in records.judged(kind):
            if pair.verdict is Verdict.SKIPPED or pair.decided < since or attribute not in (None, pair.attribute):
                continue
            yield JudgedRow(
                id=pair.id or "",
                attribute=pair.attribute,
                label="",
                suggestion="" if unseen else pair.label,
                score="" if unseen else f"{pair.confidence:.4f}",
                decision=(pair.separator or "").join(pair.decision or ()) or UNCLEAR,
                sample=RANDOM if unseen else "",
                reviewer=pair.decided_by,
                time=_time(pair.decided),
            )


def _usable(rows: Iterable[JudgedRow], catalogue: Path | None) -> list[JudgedRow]:
    """Return the decisions that training can use: on listings with an id, and in the catalogue where one is named.

    Of several on a label one counts: on the random share rather than on an abstention, and the latest.
    """
    from model.catalogue.listings import Catalogue  # noqa: PLC0415

    known = None if catalogue is None else {listing.id for listing in Catalogue.open(catalogue).listings}
    usable: dict[tuple[str, str], JudgedRow] = {}
    for row in sorted(rows, key=lambda each: (each.sample, each.time)):
        if row.id and (known is None or row.id in known):
            usable[row.id, row.attribute] = row
    return list(usable.values())


def _accepted(records: Records, attribute: str | None, since: float) -> Iterator[tuple[str | float, ...]]:
    """Yield a row of `ACCEPTED_COLUMNS` for each label."""
    for row in records.accepted(since=since, attribute=attribute):
        for name, labels in row.labels.items():
            if attribute not in (None, name):
                continue
            for label, confidence in labels:
                cells = (_time(row.at), row.id or "", name, label)
                yield (*cells, f"{confidence:.4f}", row.target, row.situation, row.model)


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
