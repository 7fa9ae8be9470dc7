"""What the store knows of reviews: reads and writes, each in its own transaction. Blocking: not for the event loop.

Several replicas and reviewers share the tables. Who works on a pair leases it for a while, by an update that takes only
what is free, so that no two are asked about the same one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from model.situations import Situation
from service.errors import AlreadyReviewed, NotFound
from service.reviews.pairs import (
    LEASE_SECONDS,
    MAX_ABSTAINED,
    MAX_ACCEPTED_ROWS,
    MAX_RANDOM,
    UNDO_SECONDS,
    UNDONE,
    AcceptedListing,
    Batch,
    CapturedItem,
    CapturedListing,
    Count,
    Decided,
    JudgedPair,
    Kind,
    LabelFound,
    Model,
    Promise,
    Verdict,
    WaitingItem,
    monday,
)
from service.store.database import Database
from service.store.tables import review_accepted as accepted
from service.store.tables import review_decisions as decisions
from service.store.tables import review_items as items
from service.store.tables import review_listings as listings
from service.store.tables import review_starts as starts
from service.store.tables import review_withdrawals as withdrawals

ROWS_AT_ONCE = 500
"""Rows that are read or deleted in one statement."""

Result = TypeVar("Result")


class Records:
    """The tables of reviews behind one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Run what reads or writes these tables in a thread that closing the database waits for."""
        return await self._database.in_thread(work)

    # ── what is captured ────────────────────────────────────────────────────────────────────────────────────

    def start(self, model: Model, now: float) -> int:
        """Return the number of the start that a model's answers of this week belong to, counted from 1 in the store."""
        key = {
            "version": model.version,
            "engine": model.engine,
            "calibration": model.calibration,
            "week": monday(now),
        }
        wanted = select(starts.c.number).where(*(starts.c[name] == value for name, value in key.items()))
        while True:
            with self._database.snapshot() as connection:
                found: int | None = connection.scalar(wanted)
            if found is not None:
                return found
            number = select(func.coalesce(func.max(starts.c.number), 0) + 1).scalar_subquery()
            try:
                with self._database.transaction() as connection:
                    connection.execute(insert(starts).values(number=number, **key))
            except IntegrityError:
                continue  # another replica was first, with this start or with its number

    def add(self, batch: Batch, model: Model, now: float) -> None:
        """Keep what was captured; a pair that is known is not asked again of the same model."""
        start = self.start(model, now)
        with self._database.transaction() as connection:
            fresh = _fresh(connection, batch.items, str(model))
            known = {item.listing for item in fresh}
            _add_listings(connection, [each for key, each in batch.listings.items() if key in known], now)
            if fresh:
                rows = [_item_row(each, start, model, now) for each in fresh]
                connection.execute(insert(items), rows)
            if batch.accepted:
                connection.execute(insert(accepted), [_accepted_row(each, model, now) for each in batch.accepted])

    def trim(self) -> None:
        """Let go of the pairs that wait beyond the bounds, and of what was accepted too long ago."""
        free = and_(items.c.verdict.is_(None), items.c.leased_to.is_(None))
        with self._database.transaction() as connection:
            _keep(connection, and_(free, items.c.kind == Kind.RANDOM), MAX_RANDOM)
            abstained = and_(free, items.c.kind == Kind.ABSTAINED)
            for attribute in connection.scalars(select(items.c.attribute).where(abstained).distinct()).all():
                _keep(connection, and_(abstained, items.c.attribute == attribute), MAX_ABSTAINED)
            newest = connection.scalar(select(func.max(accepted.c.number)))
            if newest is not None and newest > MAX_ACCEPTED_ROWS:
                connection.execute(delete(accepted).where(accepted.c.number <= newest - MAX_ACCEPTED_ROWS))

    def bars(self) -> dict[str, float]:
        """Return how much an abstention must teach to be worth keeping, of attributes whose queue is full."""
        waiting = select(items.c.attribute, func.count(), func.max(items.c.place)).where(
            items.c.verdict.is_(None), items.c.kind == Kind.ABSTAINED
        )
        with self._database.snapshot() as connection:
            rows = connection.execute(waiting.group_by(items.c.attribute)).all()
        return {attribute: 1 - place for attribute, count, place in rows if count >= MAX_ABSTAINED}

    # ── what people decide ──────────────────────────────────────────────────────────────────────────────────

    def lease(self, reviewer: str, now: float, *, kind: Kind | None, count: int) -> list[WaitingItem]:
        """Return up to `count` pairs for a reviewer, theirs alone for a while: those they already have first.

        The random share comes first, the newest start ahead of older ones, in the order of the draw.
        """
        kinds = list(Kind) if kind is None else [kind]
        waiting = and_(items.c.verdict.is_(None), items.c.kind.in_(kinds))
        own = and_(items.c.leased_to == reviewer, items.c.leased_until >= now)
        free = or_(items.c.leased_until.is_(None), items.c.leased_until < now)
        order = (
            case((own, 0), else_=1),
            items.c.kind.desc(),  # "random" before "abstained"
            items.c.start.desc(),
            items.c.place,
        )
        taken: list[int] = []
        with self._database.transaction() as connection:
            while len(taken) < count:
                wanted = select(items.c.item).where(waiting, or_(own, free), items.c.item.not_in(taken))
                found = connection.scalar(wanted.order_by(*order).limit(1))
                if found is None:
                    break
                lease = update(items).where(items.c.item == found, waiting, or_(own, free))
                changed = connection.execute(lease.values(leased_to=reviewer, leased_until=now + LEASE_SECONDS))
                if changed.rowcount:
                    taken.append(found)
            return [_waiting_item(connection, item) for item in taken]

    def attribute(self, item: int) -> str:
        """Return the attribute of a pair. Raises `NotFound`."""
        with self._database.snapshot() as connection:
            return str(_item(connection, item).attribute)

    def decide(self, item: int, reviewer: str, now: float, labels: Sequence[str] | None) -> Decided:
        """Keep a decision: the labels that fit, or None where it was skipped.

        The same decision sent again is one. Raises `NotFound`, or `AlreadyReviewed` where another reviewer has decided
        it, or was given it when this one's time was over.
        """
        with self._database.transaction() as connection:
            row = _item(connection, item)
            decision = None if labels is None else list(labels)
            verdict = _verdict(row, decision)
            own = and_(items.c.verdict.is_(None), items.c.leased_to == reviewer)
            changed = connection.execute(
                update(items)
                .where(items.c.item == item, own)
                .values(verdict=verdict, decision=decision, decided=now, decided_by=reviewer)
            )
            is_new = changed.rowcount > 0
            if is_new:
                _log(connection, item, reviewer, now, (verdict, decision))
            elif (row.decided_by, row.verdict, row.decision) != (reviewer, verdict, decision):
                raise AlreadyReviewed("another reviewer has this item, or has decided it")
            return Decided(
                kind=Kind(row.kind),
                attribute=row.attribute,
                situation=Situation(row.situation),
                found=_found(row, verdict, decision),
                verdict=verdict,
                is_new=is_new,
            )

    def undo(self, item: int, reviewer: str, now: float) -> WaitingItem:
        """Take back a decision of the reviewer's own, and lease the pair to them again.

        Raises `NotFound`, or `AlreadyReviewed` where it is not theirs or too old.
        """
        with self._database.transaction() as connection:
            _item(connection, item)
            own = and_(items.c.decided_by == reviewer, items.c.decided >= now - UNDO_SECONDS)
            changed = connection.execute(
                update(items)
                .where(items.c.item == item, items.c.verdict.is_not(None), own)
                .values(
                    verdict=None,
                    decision=None,
                    decided=None,
                    decided_by=None,
                    leased_to=reviewer,
                    leased_until=now + LEASE_SECONDS,
                )
            )
            if not changed.rowcount:
                raise AlreadyReviewed("only a decision of one's own can be undone, within an hour")
            _log(connection, item, reviewer, now, (UNDONE, None))
            return _waiting_item(connection, item)

    # ── what was found ──────────────────────────────────────────────────────────────────────────────────────

    def waiting(self, now: float) -> dict[Kind, int]:
        """Return how many pairs wait that no one works on."""
        free = or_(items.c.leased_until.is_(None), items.c.leased_until < now)
        wanted = select(items.c.kind, func.count()).where(items.c.verdict.is_(None), free).group_by(items.c.kind)
        with self._database.snapshot() as connection:
            found = {Kind(kind): count for kind, count in connection.execute(wanted)}
        return {kind: found.get(kind, 0) for kind in Kind}

    def counts(self, start: int) -> list[Count]:
        """Count the judged pairs of the random share that were accepted at some target."""
        judged = and_(
            items.c.kind == Kind.RANDOM,
            items.c.start == start,
            items.c.verdict.is_not(None),
            items.c.accepted_at.is_not(None),
        )
        columns = (items.c.attribute, items.c.situation, items.c.accepted_at, items.c.verdict)
        single = select(*columns, func.count()).where(judged, items.c.separator.is_(None)).group_by(*columns)
        several = select(items).where(judged, items.c.separator.is_not(None))
        with self._database.snapshot() as connection:
            counted, rows = connection.execute(single).all(), connection.execute(several).all()
        found: Counter[tuple[str, str, tuple[LabelFound, ...]]] = Counter()
        for attribute, situation, at, verdict, count in counted:
            found[attribute, situation, ((at, Verdict(verdict)),)] += count
        for row in rows:
            found[row.attribute, row.situation, _found(row, Verdict(row.verdict), row.decision)] += 1
        return [
            Count(attribute, Situation(situation), labels, count)
            for (attribute, situation, labels), count in found.items()
        ]

    def withdraw(self, promises: Iterable[Promise], model: Model, now: float) -> None:
        """Note that promises were found broken; for ever, for this model."""
        for promise in promises:
            row = {
                "model": str(model),
                "attribute": promise.attribute,
                "situation": promise.situation,
                "target": promise.target,
                "at": now,
            }
            try:
                with self._database.transaction() as connection:
                    connection.execute(insert(withdrawals).values(row))
            except IntegrityError:
                pass  # it is noted already

    def withdrawn(self, model: Model) -> frozenset[Promise]:
        """Return the promises of a model that were found broken."""
        columns = (withdrawals.c.attribute, withdrawals.c.situation, withdrawals.c.target)
        with self._database.snapshot() as connection:
            rows = connection.execute(select(*columns).where(withdrawals.c.model == str(model))).all()
        return frozenset(Promise(attribute, Situation(situation), target) for attribute, situation, target in rows)

    # ── what leaves the store ───────────────────────────────────────────────────────────────────────────────

    def judged(self, kind: Kind) -> Iterator[JudgedPair]:
        """Yield the decided pairs of a kind, by listing; one that was judged for several models, as judged last."""
        columns = (
            items.c.listing,
            items.c.attribute,
            items.c.separator,
            items.c.verdict,
            items.c.decision,
            items.c.label,
            items.c.confidence,
            items.c.decided,
            items.c.decided_by,
            listings.c.id,
            listings.c.title,
            listings.c.image.is_not(None).label("has_image"),
        )
        wanted = select(*columns).join(listings, items.c.listing == listings.c.listing)
        wanted = wanted.where(items.c.kind == kind, items.c.verdict.is_not(None))
        with self._database.snapshot() as connection:
            rows = connection.execute(wanted.order_by(items.c.listing, items.c.attribute, items.c.decided)).all()
        for _, same in itertools.groupby(rows, key=lambda row: (row.listing, row.attribute)):
            *_, last = same
            decision = None if last.decision is None else tuple(last.decision)
            yield JudgedPair(**{**last._mapping, "verdict": Verdict(last.verdict), "decision": decision})

    def image(self, listing: str) -> bytes | None:
        """Return the image of a listing; None where it has none, or is not there."""
        with self._database.snapshot() as connection:
            found: bytes | None = connection.scalar(select(listings.c.image).where(listings.c.listing == listing))
        return found

    def accepted(self, *, since: float, attribute: str | None) -> Iterator[Row[Any]]:
        """Yield what was accepted since a moment, oldest first: of listings of which the attribute, or any, was."""
        after = 0
        while True:
            wanted = select(accepted).where(accepted.c.number > after, accepted.c.at >= since)
            with self._database.snapshot() as connection:
                rows = connection.execute(wanted.order_by(accepted.c.number).limit(ROWS_AT_ONCE)).all()
            yield from (row for row in rows if attribute is None or attribute in row.labels)
            if len(rows) < ROWS_AT_ONCE:
                return
            after = rows[-1].number

    def purge(self, before: float) -> dict[str, int]:
        """Delete what was captured or decided before a moment; return how many rows of each table went.

        The counts of a sequence that is shown still stand on its judged pairs: they go once both moments have passed.
        """
        old = and_(items.c.captured < before, or_(items.c.decided.is_(None), items.c.decided < before))
        with self._database.transaction() as connection:
            gone = select(items.c.item).where(old)
            connection.execute(delete(decisions).where(decisions.c.item.in_(gone)))
            removed = {
                "items": connection.execute(delete(items).where(old)).rowcount,
                "accepted": connection.execute(delete(accepted).where(accepted.c.at < before)).rowcount,
                "listings": _drop_listings(connection, listings.c.captured < before),
            }
        return removed


def _fresh(connection: Connection, found: Sequence[CapturedItem], model: str) -> list[CapturedItem]:
    """Return the items that are not known, each once."""
    names = {item.listing for item in found}
    columns = (items.c.listing, items.c.attribute, items.c.kind)
    wanted = select(*columns).where(items.c.listing.in_(names), items.c.model == model)
    known = {tuple(row) for row in connection.execute(wanted)}
    fresh = {(item.listing, item.attribute, str(item.kind)): item for item in found}
    return [item for key, item in fresh.items() if key not in known]


def _add_listings(connection: Connection, found: Sequence[CapturedListing], now: float) -> None:
    names = [each.listing for each in found]
    known = set(connection.scalars(select(listings.c.listing).where(listings.c.listing.in_(names))))
    rows = [
        {"listing": each.listing, "id": each.id, "title": each.title, "image": each.image, "captured": now}
        for each in found
        if each.listing not in known
    ]
    if rows:
        connection.execute(insert(listings), rows)


def _item_row(item: CapturedItem, start: int, model: Model, now: float) -> dict[str, Any]:
    row = {field.name: getattr(item, field.name) for field in fields(item)}
    pairs = {name: [list(each) for each in row[name]] for name in ("candidates", "labels")}
    return row | pairs | _of(start, model, now)


def _of(start: int, model: Model, now: float) -> dict[str, Any]:
    return {"start": start, "model": str(model), "captured": now}


def _accepted_row(each: AcceptedListing, model: Model, now: float) -> dict[str, Any]:
    row = {field.name: getattr(each, field.name) for field in fields(each)}
    labels = {name: [list(label) for label in found] for name, found in each.labels.items()}
    return row | {"labels": labels, "model": str(model), "at": now}


def _keep(connection: Connection, waiting: ColumnElement[bool], most: int) -> None:
    """Let go of waiting pairs beyond `most`: of older starts first, then those that stand last."""
    order = (items.c.start.desc(), items.c.place)
    surplus = connection.execute(
        select(items.c.item, items.c.listing).where(waiting).order_by(*order).offset(most)
    ).all()
    for first in range(0, len(surplus), ROWS_AT_ONCE):
        few = surplus[first : first + ROWS_AT_ONCE]
        gone = [item for item, _ in few]
        connection.execute(delete(decisions).where(decisions.c.item.in_(gone)))
        connection.execute(delete(items).where(items.c.item.in_(gone)))
        _drop_listings(connection, listings.c.listing.in_({listing for _, listing in few}))


def _drop_listings(connection: Connection, which: ColumnElement[bool]) -> int:
    """Delete those listings of some that no pair needs any more."""
    needed = select(items.c.item).where(items.c.listing == listings.c.listing).exists()
    return connection.execute(delete(listings).where(which, ~needed)).rowcount


def _item(connection: Connection, item: int) -> Row[Any]:
    row = connection.execute(select(items).where(items.c.item == item)).one_or_none()
    if row is None:
        raise NotFound("there is no such item to review: it may have been purged")
    return row


def _verdict(row: Row[Any], decision: Sequence[str] | None) -> Verdict:
    """Return what a decision says about the model's label: about all that it accepted, where there are several."""
    if decision is None:
        return Verdict.SKIPPED
    said = [label for label, _ in row.labels] or [row.label]
    return Verdict.RIGHT if all(label in decision for label in said) else Verdict.WRONG


def _found(row: Row[Any], verdict: Verdict, decision: Sequence[str] | None) -> tuple[LabelFound, ...]:
    """Return what a decision says about each label that was accepted at any target."""
    if row.separator is None:
        return () if row.accepted_at is None else ((row.accepted_at, verdict),)
    if decision is None:
        return tuple((at, Verdict.SKIPPED) for _, at in row.labels)
    return tuple((at, Verdict.RIGHT if label in decision else Verdict.WRONG) for label, at in row.labels)


def _waiting_item(connection: Connection, item: int) -> WaitingItem:
    columns = [
        items.c[name] for name in ("item", "kind", "attribute", "label", "confidence", "abstention", "separator")
    ]
    wanted = select(*columns, items.c.candidates, listings.c.id, listings.c.title, listings.c.image)
    row = connection.execute(
        wanted.join(listings, items.c.listing == listings.c.listing).where(items.c.item == item)
    ).one()
    candidates = [(label, confidence) for label, confidence in row.candidates]
    fields_of = {**row._mapping, "kind": Kind(row.kind), "candidates": candidates}
    return WaitingItem(multi_valued=fields_of.pop("separator") is not None, **fields_of)


def _log(connection: Connection, item: int, reviewer: str, now: float, said: tuple[str, list[str] | None]) -> None:
    verdict, decision = said
    row = {"item": item, "decided": now, "decided_by": reviewer, "verdict": verdict, "decision": decision}
    connection.execute(insert(decisions).values(row))
