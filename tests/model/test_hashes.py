"""Keys of tables of any length: which were seen before, and which are in several parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.catalogue import hashes
from model.catalogue.hashes import HashSet, TaggedKeys, hash64

Keys = st.integers(0, 40).map(lambda n: n << 8)


@given(blocks=st.lists(st.lists(Keys, max_size=12), max_size=12))
def test_what_was_seen_before_is_known_and_nothing_else(blocks: list[list[int]]) -> None:
    kept, seen = HashSet(), set[int]()
    for block in blocks:
        expected = []
        for key in block:
            expected.append(key in seen)
            seen.add(key)
        assert kept.add(np.array(block, np.uint64)).tolist() == expected
    lengths = [len(run) for run in kept._runs]
    assert sum(lengths) == len(seen)
    assert all(longer >= 2 * shorter for longer, shorter in pairwise(lengths))  # so there are few of them


@given(rows=st.lists(st.tuples(Keys, st.integers(0, 3)), max_size=60), chunk=st.integers(1, 8))
def test_what_is_in_several_parts_is_counted(rows: list[tuple[int, int]], chunk: int) -> None:
    keys = TaggedKeys()
    for number, (key, tag) in enumerate(rows):
        keys.add_named(key, tag, f"title {key}", str(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "_CHUNK", chunk)
        shared = keys.shared()
        sizes = sorted(size for found in keys.sizes((1, 3)) for size in found.tolist())
    tags = {key: [tag for other, tag in rows if other == key] for key, _ in rows}
    apart = [key for key, found in tags.items() if len(set(found)) > 1]
    assert (shared.keys, shared.apart) == (len(tags), len(apart))
    assert shared.rows == sum(len(tags[key]) for key in apart)
    assert shared.most == max(map(len, tags.values()), default=0)
    assert len(shared.examples) == min(len(apart), hashes.SHOWN)
    assert {text for text, _ in shared.examples} <= {f"title {key}" for key in apart}
    odd = [sum(tag in (1, 3) for tag in found) for found in tags.values()]
    assert sizes == sorted(count for count in odd if count)


def test_examples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_REMEMBERED", 2)
    keys = TaggedKeys()
    for number in range(12):
        keys.add_named(hash64(b"%d" % (number // 2)), number % 2, f"title {number // 2}", str(number))
    shared = keys.shared()
    assert (shared.apart, shared.rows) == (6, 12)
    assert sorted(shared.examples) == [("title 0", ("0", "1")), ("title 1", ("2", "3"))]


def test_hashes_are_the_same_in_every_process() -> None:
    assert hash64(b"sku-1") == 0xCDA98029402774E6
