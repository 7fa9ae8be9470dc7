"""What one API key may take: on average so many listings a second, and a share of the queue."""

from __future__ import annotations

import time

import pytest

from service.errors import RateLimited
from service.pipeline.quota import Quota


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_average_holds_whatever_the_size_of_requests(clock: Clock) -> None:
    for size in (1, 7, 64):
        quota, sent = Quota(rate=10.0, places=100), 0
        for _ in range(6000):  # ten minutes, ten times a second
            try:
                quota.take(size)
                quota.give_back(size)
                sent += size
            except RateLimited:
                pass
            clock.now += 0.1
        assert 6000 - size <= sent <= 6000 + 10 + size


def test_a_refusal_says_when_to_come_back(clock: Clock) -> None:
    quota = Quota(rate=10.0, places=100)
    quota.take(30)  # with a second's balance, 20 too many
    with pytest.raises(RateLimited) as refused:
        quota.take(1)
    assert refused.value.retry_after == pytest.approx(2.0)
    clock.now += 2.1
    quota.take(1)


def test_a_rate_below_one_a_second_lets_one_in(clock: Clock) -> None:
    quota = Quota(rate=0.1, places=100)
    quota.take(1)
    with pytest.raises(RateLimited):
        quota.take(1)
    clock.now += 10.1
    quota.take(1)


def test_places_are_taken_all_or_none_and_given_back(clock: Clock) -> None:
    quota = Quota(rate=0, places=3)
    quota.take(2)
    with pytest.raises(RateLimited):
        quota.take(2)
    quota.take(1)
    quota.give_back(3)
    quota.take(3)
