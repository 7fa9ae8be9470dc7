"""`cma-clip reviews`, and calibrating on what it holds: from a store to files that training and calibration read."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model.catalogue import reviewed as reviewed_module
from model.catalogue.corrections import correct
from model.catalogue.listings import Catalogue
from model.catalogue.reviewed import NONE_FITS, SKIPPED
from model.catalogue.splits import Part
from model.situations import Situation
from service.cli import app
from service.commands.reviews import opened, reviewed
from service.reviews.pairs import AcceptedListing, Batch, CapturedItem, CapturedListing, Kind, Model
from service.reviews.records import Records
from service.store.store import Store

MODEL = Model("0123456789ab", "torch", "ba9876543210")
NOW = time.time() - 3600


def captured(number: int, kind: Kind, attribute: str = "colour", id: str | None = "sku") -> tuple[Any, Any]:
    listing = f"{number:064d}"
    name = None if id is None else f"{id}-{number}"
    item = CapturedItem(
        listing=listing,
        attribute=attribute,
        kind=kind,
        place=number / 100,
        situation=Situation.IMAGE_AND_TITLE,
        label="Blue",
        confidence=0.75,
        abstention=None,
        accepted_at=0.95,
        candidates=[("Blue", 0.75)],
    )
    return CapturedListing(listing=listing, id=name, title=f"Shirt {number}", image=b"png"), item


def keep(records: Records, *found: tuple[Any, Any], accepted: Sequence[AcceptedListing] = (), now: float = NOW) -> None:
    listings = {listing.listing: listing for listing, _ in found}
    records.add(Batch(listings=listings, items=[item for _, item in found], accepted=accepted), MODEL, now)


def judge(records: Records, *labels: str | None, now: float = NOW) -> None:
    for label in labels:
        (item,) = records.lease("anna", now, kind=None, count=1)
        records.decide(item.item, "anna", now, None if label == "skip" else [] if label is None else [label])


@pytest.fixture
def records(store: Store) -> Records:
    """Four pairs of the random share, one of a listing without an id; two abstentions, one on a label judged before."""
    records = Records(store.database)
    keep(records, *(captured(number, Kind.RANDOM) for number in (1, 2, 3)), captured(4, Kind.RANDOM, id=None))
    judge(records, "Red", None, "skip", "Black")
    keep(records, captured(1, Kind.ABSTAINED), captured(5, Kind.ABSTAINED))
    judge(records, "Green", "Black", now=NOW + 60)
    return records


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_decisions_are_written_as_corrections_and_those_on_the_random_share_show_no_answer(
    records: Records, store_url: str, tmp_path: Path
) -> None:
    out = tmp_path / "judged.csv"
    output = run("reviews", store_url, "--corrections", out)
    assert "random: 4 judged (0 right, 3 wrong, 1 skipped), 0 waiting" in output
    found = {row["id"]: row for row in rows(out)}
    assert {name: (row["decision"], row["sample"], row["suggestion"], row["score"]) for name, row in found.items()} == {
        "sku-1": ("Red", "random", "", ""),  # not the abstention's, though that was decided later
        "sku-2": ("unclear", "random", "", ""),
        "sku-5": ("Black", "", "Blue", "0.7500"),
    }
    assert {row["reviewer"] for row in found.values()} == {"anna"}


def test_several_labels_of_a_listing_are_joined_for_training_and_a_set_to_calibrate_on(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    records = Records(store.database)
    for number, labels in enumerate((["Blue", "Red"], [], None)):
        listing, item = captured(number, Kind.RANDOM)
        keep(records, (listing, replace(item, separator="|", labels=[("Blue", 0.95)])))
        (leased,) = records.lease("anna", NOW, kind=None, count=1)
        records.decide(leased.item, "anna", NOW, labels)
    out = tmp_path / "judged.csv"
    run("reviews", store_url, "--corrections", out)
    assert [row["decision"] for row in rows(out)] == ["Blue|Red", "unclear"]
    with opened(store_url) as reading:
        found = reviewed(reading, ["colour"], None)
    assert [each.label_sets["colour"] for each in found.listings] == [("Blue", "Red"), (NONE_FITS,), (SKIPPED,)]
    assert not any(each.labels for each in found.listings)


def test_corrections_of_reviews_are_read_by_training(
    records: Records, store_url: str, tmp_path: Path, catalogue_toml: Path
) -> None:
    out = tmp_path / "judged.csv"
    catalogue = Catalogue.open(catalogue_toml)
    run("reviews", store_url, "--corrections", out, "--catalogue", catalogue_toml)
    corrected = correct(catalogue, out)
    labels = {listing.id: listing.labels.get("colour") for listing in corrected.listings}
    parts = {listing.id: listing.part for listing in catalogue.listings}
    table = {listing.id: listing.labels["colour"] for listing in catalogue.listings}
    assert labels["sku-1"] == "Red"  # in whichever part: it is of a random sample
    assert labels["sku-2"] == (None if parts["sku-2"] is Part.TRAIN else table["sku-2"])
    assert labels["sku-5"] == ("Black" if parts["sku-5"] is Part.TRAIN else table["sku-5"])


def test_only_what_is_asked_for_is_written(records: Records, store_url: str, tmp_path: Path) -> None:
    out = tmp_path / "judged.csv"
    run("reviews", store_url, "--corrections", out, "--attribute", "shape")
    assert rows(out) == []
    run("reviews", store_url, "--corrections", out, "--since", "2999-01-01")
    assert rows(out) == []


def test_accepted_labels_are_listed(records: Records, store_url: str, tmp_path: Path) -> None:
    labels = {"colour": [("=Blue", 0.9)], "shape": [("Circle", 0.8)]}
    accepted = AcceptedListing(listing="a", id="sku-1", situation=Situation.IMAGE, target=0.95, labels=labels)
    keep(records, accepted=[accepted])
    out = tmp_path / "accepted.csv"
    assert "1 accepted labels" in run("reviews", store_url, "--accepted", out, "--attribute", "colour")
    (row,) = rows(out)
    assert (row["id"], row["attribute"], row["target_precision"]) == ("sku-1", "colour", "0.95")
    assert row["label"] == "'=Blue"  # no formula
    run("reviews", store_url, "--accepted", out)
    assert {row["attribute"] for row in rows(out)} == {"colour", "shape"}


def test_purging_deletes_what_is_old(records: Records, store_url: str) -> None:
    assert "purged: 0 items" in run("reviews", store_url, "--purge-days", "1")
    assert "purged: 6 items, 0 accepted, 5 listings" in run("reviews", store_url, "--purge-days", "0")
    assert list(records.judged(Kind.RANDOM)) == []


def test_the_random_share_is_a_catalogue_to_calibrate_on(
    records: Records, store_url: str, catalogue_toml: Path
) -> None:
    with opened(store_url) as reading:
        found = reviewed(reading, ["colour"], None)
        assert [listing.labels["colour"] for listing in found.listings] == ["Red", NONE_FITS, SKIPPED, "Black"]
        assert found.image_bytes(f"{1:064d}") == b"png"
        trained_on = Catalogue.open(catalogue_toml)
        left = reviewed(reading, ["colour"], trained_on)
    parts = {listing.id: listing.part for listing in trained_on.listings}
    kept = {"Shirt 4"} | {f"Shirt {n}" for n in (1, 2, 3) if parts[f"sku-{n}"] not in (Part.TRAIN, Part.VALIDATION)}
    assert {listing.title for listing in left.listings} == kept


def test_calibrating_says_first_what_the_reviews_can_certify(
    records: Records, store_url: str, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviewed_module, "SCOPE_SHARES", {})
    output = run("calibrate", checkpoint_folder, "--reviews", store_url)
    assert "What the reviews can certify" in output
    assert "90 pairs are needed" in output
    assert "abstains" in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["calibrate", "checkpoint"], "--reviews"),
        (["calibrate", "checkpoint", "--reviews", "sqlite:///a.db", "--corrections", "a.csv"], "--corrections"),
        (["reviews", "sqlite:///a.db", "--corrections", "a.txt"], ".csv or .parquet"),
        (["reviews", "sqlite:///a.db", "--accepted", "nowhere/a.csv"], "no folder"),
        (["reviews", "mysql://a"], "sqlite:///"),
    ],
)
def test_mistakes_are_named(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert named in str(result.exception)
