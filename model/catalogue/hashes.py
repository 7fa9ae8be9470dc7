"""Ids, titles and images of a table of any length at 8 bytes a row: sorted 64-bit hashes instead of texts.

Of 5 million different texts, two share a hash with a probability below one in a million.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHOWN = 3
"""Examples that are kept of what is shared, and ids of each."""

_TAG_BITS = 2

_REMEMBERED = 20_000
"""Different keys whose texts are kept: examples are among them."""

_CHUNK = 1 << 18


def hash64(data: bytes) -> int:
    """Return a 64-bit hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


class HashSet:
    """Hashes that were seen, as a few sorted arrays, each at least twice as long as the next one."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def add(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Add some hashes [n]; return which of them were there already, or stand here before [n]."""
        known = np.ones(len(hashes), np.bool_)
        known[np.unique(hashes, return_index=True)[1]] = False
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            known |= run[places] == hashes
        run = np.sort(hashes[~known])
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # which merges what is sorted already
        if len(run):
            self._runs.append(run)
        return known


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What rows share: of `keys` different titles, or images, that are in several parts there are `apart`.

    `rows` is on how many rows these are; `examples` names some of them, each with some ids. `most` rows bear the
    commonest one, whose name is `commonest` where it is known.
    """

    keys: int = 0
    apart: int = 0
    rows: int = 0
    most: int = 0
    commonest: str | None = None
    examples: Sequence[tuple[str, Sequence[str]]] = ()


@dataclass
class _Known:
    text: str
    ids: list[str] = field(default_factory=list)


class TaggedKeys:
    """Keys with a tag from 0 to 3 each, such as the part of their row: 8 bytes a row, of which 62 bits are the key."""

    def __init__(self) -> None:
        self._values = array("Q")
        self._known: dict[int, _Known] = {}

    def __len__(self) -> int:
        return len(self._values)

    def add(self, key: int, tag: int) -> None:
        """Add a row."""
        self._values.append(key >> _TAG_BITS << _TAG_BITS | tag)

    def add_named(self, key: int, tag: int, text: str, listing_id: str) -> None:
        """Add a row, and remember its text and id as an example while there is room."""
        self.add(key, tag)
        known = self._known.get(key >> _TAG_BITS)
        if known is None and len(self._known) < _REMEMBERED:
            known = self._known[key >> _TAG_BITS] = _Known(text)
        if known is not None and len(known.ids) < SHOWN:
            known.ids.append(listing_id)

    def sizes(self, tags: Sequence[int]) -> Iterator[NDArray[np.int64]]:
        """Yield how many rows with one of these tags each key has, where it has any: some keys at a time."""
        for keys, found in self._sorted():
            chosen = keys[np.isin(found, tags)]
            if len(chosen):
                yield np.unique(chosen, return_counts=True)[1]

    def shared(self) -> Shared:
        """Return what stands in rows of several tags."""
        keys = apart = rows = most = 0
        commonest: int | None = None
        examples: list[tuple[str, Sequence[str]]] = []
        for sorted_keys, tags in self._sorted():
            different, first, counts = np.unique(sorted_keys, return_index=True, return_counts=True)
            split = tags[first] != tags[first + counts - 1]  # a key's tags are sorted, too
            keys, apart, rows = keys + len(different), apart + int(split.sum()), rows + int(counts[split].sum())
            if counts.max() > most:
                most, commonest = int(counts.max()), int(different[counts.argmax()])
            if len(examples) < SHOWN:
                named = (self._known[key] for key in different[split].tolist() if key in self._known)
                examples += [(known.text, tuple(known.ids)) for known in named][: SHOWN - len(examples)]
        known = self._known.get(commonest) if commonest is not None else None
        return Shared(
            keys=keys,
            apart=apart,
            rows=rows,
            most=most,
            commonest=known.text if known else None,
            examples=tuple(examples),
        )

    def _sorted(self) -> Iterator[tuple[Hashes, Hashes]]:
        """Yield keys and tags in the keys' order, in chunks that keep a key's rows together."""
        if not self._values:
            return
        values = np.frombuffer(self._values, np.uint64)
        values.sort()
        begin = 0
        while begin < len(values):
            last = values[min(begin + _CHUNK, len(values)) - 1]
            end = int(np.searchsorted(values, last | np.uint64(3), side="right"))
            yield values[begin:end] >> np.uint64(_TAG_BITS), values[begin:end] & np.uint64(3)
            begin = end
