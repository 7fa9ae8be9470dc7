"""What the store keeps of reviews: each pair once, in the order of the draw, for one reviewer at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from model.situations import Situation
from service.errors import AlreadyReviewed, NotFound
from service.reviews import records as module
from service.reviews.pairs import (
    LEASE_SECONDS,
    UNDO_SECONDS,
    AcceptedListing,
    Batch,
    CapturedItem,
    CapturedListing,
    Count,
    Kind,
    Model,
    Promise,
    Verdict,
)
from service.reviews.records import Records
from service.store.store import Store
from service.store.tables import review_decisions as decisions
from service.store.tables import review_items as items
from service.store.tables import review_listings as listings

MODEL = Model("0123456789ab", "torch", "ba9876543210")
NOW = 1_780_000_000.0
WEEK = 7 * 86_400.0


@pytest.fixture
def records(store: Store) -> Records:
    return Records(store.database)


def item(number: int, **changes: Any) -> CapturedItem:
    found = CapturedItem(
        listing=f"{number:064d}",
        attribute="baseColour",
        kind=Kind.RANDOM,
        place=number / 1000,
        situation=Situation.IMAGE_AND_TITLE,
        label="Blue",
        confidence=0.9,
        abstention=None,
        accepted_at=0.95,
        candidates=[("Blue", 0.9), ("Black", 0.05)],
    )
    return replace(found, **changes)


def add(records: Records, *found: CapturedItem, model: Model = MODEL, now: float = NOW) -> None:
    kept = {
        each.listing: CapturedListing(
            listing=each.listing, id=f"sku-{each.listing[-3:]}", title="A shirt", image=b"png"
        )
        for each in found
    }
    records.add(Batch(listings=kept, items=found, accepted=()), model, now)


def judge(records: Records, *labels: str | None, reviewer: str = "anna", now: float = NOW) -> None:
    for label in labels:
        (found,) = records.lease(reviewer, now, kind=None, count=1)
        records.decide(found.item, reviewer, now, None if label == "skip" else [] if label is None else [label])


def rows(store: Store, table: Any) -> int:
    with store.database.snapshot() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_the_random_share_comes_first_and_in_the_order_of_the_draw(records: Records) -> None:
    add(records, item(4), item(2), item(3, kind=Kind.ABSTAINED), item(1, kind=Kind.ABSTAINED), item(9))
    found = records.lease("anna", NOW, kind=None, count=10)
    assert [int(each.id[-1]) for each in found if each.id] == [2, 4, 9, 1, 3]
    assert [each.kind for each in found] == [Kind.RANDOM] * 3 + [Kind.ABSTAINED] * 2
    assert (found[0].title, found[0].image, found[0].candidates) == (
        "A shirt",
        b"png",
        [("Blue", 0.9), ("Black", 0.05)],
    )


def test_a_pair_is_asked_once_of_a_model_however_often_it_is_sent(records: Records, store: Store) -> None:
    add(records, item(1), item(1))
    add(records, item(1, place=0.5), now=NOW + WEEK)
    assert rows(store, items) == rows(store, listings) == 1
    add(records, item(1), model=replace(MODEL, engine="openvino-f32"))
    add(records, item(1, attribute="season"))
    assert (rows(store, items), rows(store, listings)) == (3, 1)


def test_two_reviewers_never_have_the_same_pair(records: Records) -> None:
    add(records, *(item(number) for number in range(6)))
    anna = {each.item for each in records.lease("anna", NOW, kind=None, count=3)}
    assert {each.item for each in records.lease("anna", NOW, kind=None, count=3)} == anna
    ben = {each.item for each in records.lease("ben", NOW, kind=None, count=6)}
    assert len(anna | ben) == 6
    assert not anna & ben


def test_reviewers_who_ask_at_once_share_the_pairs_out(records: Records) -> None:
    add(records, *(item(number) for number in range(40)))
    taken: list[int] = []

    def work(name: str) -> None:
        while found := records.lease(name, NOW, kind=None, count=2):
            for each in found:
                records.decide(each.item, name, NOW, ["Blue"])
                taken.append(each.item)

    threads = [threading.Thread(target=work, args=(f"reviewer {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 40


def test_a_pair_that_was_left_open_goes_to_another_reviewer(records: Records) -> None:
    add(records, item(1))
    (left,) = records.lease("anna", NOW, kind=None, count=1)
    assert records.lease("ben", NOW + LEASE_SECONDS - 1, kind=None, count=1) == []
    (found,) = records.lease("ben", NOW + LEASE_SECONDS + 1, kind=None, count=1)
    assert found.item == left.item
    with pytest.raises(AlreadyReviewed):
        records.decide(left.item, "anna", NOW, ["Blue"])


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [(("Blue",), Verdict.RIGHT), (("Red",), Verdict.WRONG), ((), Verdict.WRONG), (None, Verdict.SKIPPED)],
)
def test_a_decision_is_kept_once(
    records: Records, store: Store, labels: tuple[str, ...] | None, verdict: Verdict
) -> None:
    add(records, item(1))
    (found,) = records.lease("anna", NOW, kind=None, count=1)
    first, again = (records.decide(found.item, "anna", NOW + later, labels) for later in (0.0, 1.0))
    assert (first.verdict, first.is_new, again.is_new) == (verdict, True, False)
    assert rows(store, decisions) == 1
    (pair,) = records.judged(Kind.RANDOM)
    assert (pair.decision, pair.verdict, pair.decided, pair.decided_by) == (labels, verdict, NOW, "anna")
    with pytest.raises(AlreadyReviewed):
        records.decide(found.item, "anna", NOW, ["Black"])


def test_who_made_a_decision_can_undo_it_for_an_hour(records: Records, store: Store) -> None:
    add(records, item(1))
    judge(records, "Red")
    (pair,) = records.judged(Kind.RANDOM)
    (known,) = _items(store)
    with pytest.raises(AlreadyReviewed):
        records.undo(known, "ben", NOW)
    with pytest.raises(AlreadyReviewed):
        records.undo(known, "anna", NOW + UNDO_SECONDS + 1)
    assert records.undo(known, "anna", NOW + 5).item == known
    assert list(records.judged(Kind.RANDOM)) == []
    assert records.lease("ben", NOW + 5, kind=None, count=1) == []
    judge(records, "Blue", now=NOW + 6)
    assert [each.decision for each in records.judged(Kind.RANDOM)] == [("Blue",)]
    with store.database.snapshot() as connection:
        log = connection.execute(select(decisions.c.verdict, decisions.c.decided_by).order_by(decisions.c.number)).all()
    assert [tuple(row) for row in log] == [("wrong", "anna"), ("undone", "anna"), ("right", "anna")]
    assert pair.decision == ("Red",)


def _items(store: Store) -> list[int]:
    with store.database.snapshot() as connection:
        return list(connection.scalars(select(items.c.item)))


def test_an_item_that_is_not_there_is_named(records: Records) -> None:
    for act in (lambda: records.undo(7, "anna", NOW), lambda: records.attribute(7)):
        with pytest.raises(NotFound, match="item"):
            act()


def test_sequences_start_anew_with_the_model_and_each_week(records: Records) -> None:
    later = NOW + WEEK
    other = replace(MODEL, calibration="aaaaaaaaaaaa")
    numbers = [
        records.start(*of) for of in ((MODEL, NOW), (MODEL, later), (other, later), (MODEL, NOW), (other, later))
    ]
    assert numbers == [1, 2, 3, 1, 3]


def test_counts_are_of_accepted_pairs_of_the_random_share_in_one_start(records: Records) -> None:
    add(
        records,
        item(1),
        item(2, accepted_at=0.99),
        item(3, accepted_at=None),
        item(4, kind=Kind.ABSTAINED),
        item(5, situation=Situation.TITLE),
    )
    add(records, item(6), now=NOW + WEEK)
    judge(records, "Blue", "Red", "skip", "Blue", "Blue", "Blue")
    assert set(records.counts(records.start(MODEL, NOW))) == {
        Count("baseColour", Situation.IMAGE_AND_TITLE, ((0.95, Verdict.WRONG),), 1),
        Count("baseColour", Situation.IMAGE_AND_TITLE, ((0.99, Verdict.SKIPPED),), 1),
        Count("baseColour", Situation.TITLE, ((0.95, Verdict.RIGHT),), 1),
    }
    (next_week,) = records.counts(records.start(MODEL, NOW + WEEK))
    assert (next_week.found, next_week.count) == (((0.95, Verdict.RIGHT),), 1)


SET: dict[str, Any] = {"separator": "|", "labels": [("Blue", 0.99), ("Red", 0.9)], "accepted_at": 0.99}


@pytest.mark.parametrize(
    ("labels", "verdict", "found"),
    [
        (["Black", "Blue", "Red"], Verdict.RIGHT, [Verdict.RIGHT, Verdict.RIGHT]),  # completeness is not promised
        (["Blue"], Verdict.WRONG, [Verdict.RIGHT, Verdict.WRONG]),
        ([], Verdict.WRONG, [Verdict.WRONG, Verdict.WRONG]),
        (None, Verdict.SKIPPED, [Verdict.SKIPPED, Verdict.SKIPPED]),
    ],
)
def test_each_accepted_label_of_several_is_judged_by_itself(
    records: Records, labels: list[str] | None, verdict: Verdict, found: list[Verdict]
) -> None:
    add(records, item(1, **SET), item(2, accepted_at=None, separator="|"))
    for each in records.lease("anna", NOW, kind=None, count=2):
        assert each.multi_valued
        decided = records.decide(each.item, "anna", NOW, labels)
    assert decided.found == ()  # nothing of the second was accepted
    expected = tuple(zip((0.99, 0.9), found, strict=True))
    assert records.counts(1) == [Count("baseColour", Situation.IMAGE_AND_TITLE, expected, 1)]
    pair, _ = records.judged(Kind.RANDOM)
    assert (pair.verdict, pair.separator) == (verdict, "|")
    assert pair.decision == (None if labels is None else tuple(labels))


def test_queues_are_bounded_and_what_stands_last_goes_first(
    records: Records, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RANDOM", 3)
    monkeypatch.setattr(module, "MAX_ABSTAINED", 2)
    add(records, *(item(number) for number in range(6)))
    add(records, *(item(number, kind=Kind.ABSTAINED) for number in range(10, 15)))
    add(records, item(20, kind=Kind.ABSTAINED, attribute="season"))
    judge(records, "Blue")
    records.trim()
    waiting = records.lease("ben", NOW, kind=None, count=20)
    assert [each.id for each in waiting] == ["sku-001", "sku-002", "sku-003", "sku-010", "sku-011", "sku-020"]
    assert rows(store, listings) == 7
    assert records.bars() == {"baseColour": pytest.approx(1 - 0.011)}


def test_broken_promises_stay_withdrawn_from_that_model(records: Records) -> None:
    promise = Promise("baseColour", Situation.IMAGE, 0.95)
    records.withdraw([promise], MODEL, NOW)
    records.withdraw([promise], MODEL, NOW + 1)
    assert records.withdrawn(MODEL) == {promise}
    assert records.withdrawn(replace(MODEL, calibration="aaaaaaaaaaaa")) == frozenset()


def test_what_was_accepted_can_be_listed(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    for number, attribute in enumerate(("baseColour", "season", "baseColour", "baseColour", "baseColour")):
        accepted = AcceptedListing(
            listing=f"{number:064d}",
            id=f"sku-{number}",
            situation=Situation.IMAGE,
            target=0.95,
            labels={attribute: [("Blue", 0.9)]},
        )
        records.add(Batch(listings={}, items=(), accepted=[accepted]), MODEL, NOW + number)
    found = list(records.accepted(since=NOW + 1, attribute="baseColour"))
    assert [row.id for row in found] == ["sku-2", "sku-3", "sku-4"]
    assert found[0].labels == {"baseColour": [["Blue", 0.9]]}
    assert len(list(records.accepted(since=NOW, attribute=None))) == 5


def test_what_is_old_is_purged_with_its_listing(records: Records, store: Store) -> None:
    add(records, item(1), item(2))
    judge(records, "Blue", now=NOW + 100)
    add(records, item(3), now=NOW + 200)
    assert records.image(f"{2:064d}") == b"png"
    assert records.purge(NOW + 50)["items"] == 1  # the one that waits; the other was judged later
    assert records.image(f"{2:064d}") is None
    assert records.purge(NOW + 150) == {"items": 1, "accepted": 0, "listings": 1}
    assert (rows(store, items), rows(store, listings), rows(store, decisions)) == (1, 1, 0)
