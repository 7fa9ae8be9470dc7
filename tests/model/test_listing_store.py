"""Listings in a file are those in memory: every one, in every part, in every process."""

from __future__ import annotations

import errno
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.catalogue import listing_store
from model.catalogue.listing_store import ListingWriter, StoredListings
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import CatalogueError
from tests.model.clothes import write_clothes


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, Catalogue]:
    """The same catalogue in memory and in a file; with spellings to join, duplicates and bad rows."""
    toml = write_clothes(tmp_path_factory.mktemp("clothes"), 300)
    table = toml.with_name("clothes.csv")
    table.write_text(table.read_text() + "c-1,Again,Shirt,,\n,No id,Shirt,,\nc-x,Ärmel,SHIRT,wool|LINEN,long\n")
    here = Catalogue.open(toml)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing_store, "IN_MEMORY", 3)
        return here, Catalogue.open(toml)


def test_both_say_the_same(catalogues: tuple[Catalogue, Catalogue]) -> None:
    here, stored = catalogues
    assert isinstance(here.listings, tuple)
    assert isinstance(stored.listings, StoredListings)
    assert list(stored.listings) == list(here.listings)
    assert stored.listings[-1].labels == {"kind": "Shirt", "sleeve": "Long"}
    assert stored.listings[-1].label_sets == {"material": ("Wool", "Linen")}
    assert str(stored.report) == str(here.report)
    assert stored.digest == here.digest


@pytest.mark.parametrize("part", Part)
def test_parts_are_the_same(catalogues: tuple[Catalogue, Catalogue], part: Part) -> None:
    here, stored = (each.part(part) for each in catalogues)
    assert len(stored) == len(here) > 0
    assert list(stored) == list(here)
    assert stored[len(here) - 1] == here[-1] == stored[-1]
    assert list(stored[2:9:3]) == list(here[2:9:3])


def test_places_that_are_not_there_are_refused(catalogues: tuple[Catalogue, Catalogue]) -> None:
    listings = catalogues[1].listings
    for place in (len(listings), -len(listings) - 1):
        with pytest.raises(IndexError, match="there are 301 listings"):
            listings[place]


def test_they_are_read_in_any_order_by_threads_and_after_pickling(catalogues: tuple[Catalogue, Catalogue]) -> None:
    here, stored = catalogues
    sent = pickle.dumps(stored.part(Part.TRAIN))
    assert len(sent) < 4 * len(stored.part(Part.TRAIN)) + 1000  # a place each, and no listing
    copy = pickle.loads(sent)  # noqa: S301 - our own
    whole = pickle.loads(pickle.dumps(stored)).part(Part.TEST)  # noqa: S301
    assert list(whole) == list(here.part(Part.TEST))
    places = random.Random(0).sample(range(len(copy)), 50)
    expected = here.part(Part.TRAIN)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(copy.__getitem__, places)) == [expected[place] for place in places]


def test_the_file_is_removed_with_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_store, "IN_MEMORY", 3)
    catalogue = Catalogue.open(write_clothes(tmp_path, 20))
    assert isinstance(catalogue.listings, StoredListings)
    folder = catalogue.listings._folder.path
    train = catalogue.part(Part.TRAIN)
    assert train[0].title
    del catalogue
    assert folder.exists(), "a part is still in use"
    del train
    assert not folder.exists()


def test_a_file_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_store, "IN_MEMORY", 3)
    catalogue = Catalogue.open(write_clothes(tmp_path, 20))
    assert isinstance(catalogue.listings, StoredListings)
    (catalogue.listings._folder.path / "records").unlink()
    with pytest.raises(CatalogueError, match=r"cannot read listings of .*: No such file"):
        catalogue.listings[0]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self: Any, name: str) -> Full:
        return Full()

    monkeypatch.setattr(listing_store, "IN_MEMORY", 3)
    monkeypatch.setattr(listing_store._Written, "_open", full)
    with pytest.raises(CatalogueError, match=r"cannot keep the listings in .*: No space left on device"):
        Catalogue.open(write_clothes(tmp_path, 20))


TEXT = st.text(min_size=1, max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Listing,
            id=TEXT,
            title=st.none() | TEXT,
            image=st.none() | TEXT,
            labels=st.dictionaries(TEXT, TEXT, max_size=3),
            group=TEXT,
            part=st.sampled_from(Part),
            further_images=st.lists(TEXT, max_size=2).map(tuple),
            label_sets=st.dictionaries(TEXT, st.lists(TEXT, min_size=1, max_size=3).map(tuple), max_size=2),
        ),
        min_size=3,
        max_size=12,
    )
)
def test_whatever_they_say_it_is_read_back(monkeypatch: pytest.MonkeyPatch, listings: list[Listing]) -> None:
    monkeypatch.setattr(listing_store, "IN_MEMORY", 2)
    writer = ListingWriter()
    for listing in listings:
        writer.add(listing)
    stored = writer.finish({})
    assert isinstance(stored, StoredListings)
    assert list(stored) == listings
    assert [stored[place] for place in range(len(listings))] == listings
