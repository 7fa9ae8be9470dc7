"""The stream of inference: in order, one batch ahead, and an item that fails alone."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.inference.predictions import BatchingPredictor
from model.inference.stream import Failure, prepare_listing, stream
from model.situations import ListingWarning


def prepare(item: int) -> int | Failure:
    return Failure(f"{item} is odd") if item % 2 else -item


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 6))
def test_every_item_is_answered_in_order_or_has_its_failure(items: list[int], batch_size: int) -> None:
    def compute(prepared: list[int]) -> list[str]:
        assert prepared
        return [f"{each}" for each in prepared]

    batches = list(stream(items, prepare, compute, batch_size=batch_size))
    assert [item for batch in batches for item in batch.items] == items
    assert {len(batch.items) for batch in batches[:-1]} <= {batch_size}
    answers = [pair for batch in batches for pair in batch.answers()]
    assert answers == [(item, Failure(f"{item} is odd") if item % 2 else f"{-item}") for item in items]
    assert [item for batch in batches for item in batch.computed] == [item for item in items if item % 2 == 0]


def test_a_batch_without_any_prepared_item_is_not_computed() -> None:
    def compute(prepared: list[int]) -> Sequence[str]:
        raise AssertionError("nothing to compute")

    (batch,) = stream([1, 3], prepare, compute, batch_size=2)
    assert batch.output is None
    assert list(batch.answers()) == [(1, Failure("1 is odd")), (3, Failure("3 is odd"))]


def test_at_most_two_batches_are_taken_ahead() -> None:
    taken, computed = 0, 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        for number in range(0, 200, 2):
            taken += 1
            assert taken - computed <= 10
            yield number

    def compute(prepared: list[int]) -> list[int]:
        nonlocal computed
        computed += len(prepared)
        return prepared

    for batch in stream(numbers(), prepare, compute, batch_size=5):
        assert taken - computed <= 5, len(batch.items)
    assert computed == 100


def test_the_next_batch_is_prepared_in_threads_while_one_computes() -> None:
    second, here = threading.Event(), threading.current_thread()

    def prepare(item: str) -> str:
        assert threading.current_thread() is not here
        if item == "second":
            second.set()
        return item

    def compute(prepared: list[str]) -> list[str]:
        assert threading.current_thread() is here
        assert second.wait(30)
        return prepared

    assert [batch.output for batch in stream(["first", "second"], prepare, compute, batch_size=1)] == [
        ["first"],
        ["second"],
    ]


@pytest.mark.parametrize("at", ["prepare", "compute"])
def test_an_exception_ends_the_stream(at: str) -> None:
    def fail(given: object) -> list[int]:
        raise ZeroDivisionError

    steps = stream([2, 4], fail if at == "prepare" else prepare, fail, batch_size=1)
    with pytest.raises(ZeroDivisionError):
        list(steps)


def test_a_listing_is_prepared_with_what_its_image_warns_of() -> None:
    predictor = Recorder()
    for image, warnings in (("plain", ()), ("odd", (ListingWarning.PROFILE_UNREADABLE,)), (None, ())):
        assert prepare_listing(cast(BatchingPredictor, predictor), predictor, "Shirt", image) == ("Shirt", warnings)


class Recorder:
    """Images of which one has an unreadable profile, and a predictor that returns what it is given."""

    info = SimpleNamespace(image_size=(8, 8))

    def __contains__(self, name: str) -> bool:
        return name in ("plain", "odd")

    def read(self, name: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG", icc_profile=b"no profile" if name == "odd" else None)
        return buffer.getvalue()

    def prepare(
        self, title: str, image: Image.Image | None, *, warnings: Sequence[ListingWarning] = ()
    ) -> tuple[str, Sequence[ListingWarning]]:
        return title, warnings
