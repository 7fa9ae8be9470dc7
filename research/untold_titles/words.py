"""Which words of a title tell a label, learned from training titles alone, and titles without them.

May import numpy, scipy and `model`; knows nothing of networks.

Shapes: n titles, W words (stems), C labels of all attributes together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from model.catalogue.listings import Listing
from model.inputs.corruptions import stem

Label = tuple[str, str]
"""An attribute and one of its labels."""


NOTHING_LEFT = "Product"
"""What stands for a title all of whose words tell."""


class Scope(StrEnum):
    """Which words are taken out of a title."""

    OWN = "own"
    """Those that name or predict one of the listing's own labels."""
    ALL = "all"
    """Those that name or predict any label of any attribute."""
    INFORMATION = "information"
    """Those that name any label, and those that share information with any."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How much titles lose.

    bound: from which value on a word counts as telling; of `TellingWords.prediction` for the first two scopes, of
    `TellingWords.information`, in bits, for the third. shares: by attribute, the share of titles that lose the words
    that tell it; of an attribute that is not there, all do.
    """

    scope: Scope
    bound: float
    shares: Mapping[str, float] = field(default_factory=dict)

    def takes(self, attribute: str, listing: Listing) -> bool:
        """Whether the title of a listing loses the words that tell an attribute: the same for listings of one group."""
        drawn = hashlib.sha256(f"untold/{attribute}/{listing.group}".encode()).digest()
        return int.from_bytes(drawn[:8]) < self.shares.get(attribute, 1.0) * 2**64


class TellingWords:
    """What each word of the training titles tells of each label.

    words: the stems that occur, sorted. labels: the labels that occur, sorted.
    names: `[W, C]` bool, whether a word is one of those that a label is written with.
    prediction: `[W, C]`, which share of the uncertainty about a label a word removes: (p - q) / (1 - q), for its
    frequency q among all titles and p among those with the word. p is estimated as if the word had occurred once
    more, with the label at its frequency q, so that words that occur once or twice predict little.
    information: `[W, C]`, the mutual information in bits of "the title has the word" and "the listing has the label".
    """

    def __init__(self, listings: Sequence[Listing]) -> None:
        titled = [listing for listing in listings if listing.title]
        each = [_stems(listing.title or "") for listing in titled]
        self.words = sorted({word for words in each for word in words})
        self.labels: list[Label] = sorted({label for listing in titled for label in listing.labels.items()})
        self._index = {word: row for row, word in enumerate(self.words)}
        self._column = {label: column for column, label in enumerate(self.labels)}
        together, word, label, known = self._counts(titled, each)
        share = label / np.maximum(known, 1)  # [W, C]: the label's frequency among the titles that have its attribute
        among = (together + share) / (word + 1)
        self.prediction = np.where(share < 1, (among - share) / np.maximum(1 - share, 1e-12), 0.0)
        self.information = mutual_information(together, word, label, known)
        written = [{stem(part) for part in name.split()} for _, name in self.labels]
        self.names = np.array([[word in parts for parts in written] for word in self.words]).reshape(share.shape)

    def _counts(
        self, titled: Sequence[Listing], each: Sequence[frozenset[str]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Count titles, `[W, C]`: with word and label; with the word; with the label; and all of them.

        All are among the titles whose listing has a label of the same attribute.
        """
        attributes = sorted({attribute for attribute, _ in self.labels})
        of = [attributes.index(attribute) for attribute, _ in self.labels]
        has_word = _indicators([[self._index[word] for word in words] for words in each], len(self.words))
        has_label = _indicators(
            [[self._column[label] for label in listing.labels.items()] for listing in titled], len(self.labels)
        )
        is_known = _indicators(
            [[attributes.index(attribute) for attribute in listing.labels] for listing in titled], len(attributes)
        )
        together = (has_word.T @ has_label).toarray()
        word = (has_word.T @ is_known).toarray()[:, of]
        label = np.asarray(has_label.sum(axis=0)).reshape(1, -1) + np.zeros_like(together)
        known = np.asarray(is_known.sum(axis=0)).reshape(1, -1)[:, of] + np.zeros_like(together)
        return together, word, label, known

    def telling(self, strength: Strength) -> NDArray[np.bool_]:
        """Return whether a word counts as telling a label, `[W, C]`."""
        tells = self.information if strength.scope is Scope.INFORMATION else self.prediction
        return self.names | (tells >= strength.bound)

    def untold(self, strength: Strength) -> UntoldTitles:
        """Return what takes the telling words out of titles."""
        return UntoldTitles(self, strength)

    def rows(self, words: Sequence[str]) -> list[int | None]:
        """Return the place of each stem, None for one that no training title has."""
        return [self._index.get(word) for word in words]

    def columns(self, labels: Mapping[str, str]) -> list[int]:
        """Return the places of a listing's labels that occur in the train part."""
        return [self._column[label] for label in labels.items() if label in self._column]


class UntoldTitles:
    """Takes the words that tell out of titles, by a strength; a word that no training title has is kept.

    Where nothing is left, the title is `NOTHING_LEFT`, so that every listing that had a title has one.
    """

    def __init__(self, learned: TellingWords, strength: Strength) -> None:
        self.learned, self.strength = learned, strength
        self.telling = learned.telling(strength)
        self.attributes = sorted({attribute for attribute, _ in learned.labels})
        of = np.array([attribute for attribute, _ in learned.labels])
        self.any_label: dict[str, NDArray[np.bool_]] = {
            each: np.any(self.telling[:, of == each], axis=1) for each in self.attributes
        }
        """By attribute, whether a word tells any of its labels, `[W]`."""

    def __call__(self, listing: Listing) -> str | None:
        """Return the title of `listing` without its telling words; None where it has no title."""
        if not listing.title:
            return None
        words = listing.title.split()
        rows = self.learned.rows([stem(word) for word in words])
        told = self._told(rows, listing)
        kept = " ".join(word for word, tells in zip(words, told, strict=True) if not tells)
        # Text without a letter is no title (`model.catalogue.words`).
        return kept if any(map(str.isalpha, kept)) else NOTHING_LEFT

    def _told(self, rows: Sequence[int | None], listing: Listing) -> list[bool]:
        """Return whether each word of the title of `listing` is taken out; rows: the places of their stems."""
        taken = [attribute for attribute in self.attributes if self.strength.takes(attribute, listing)]
        if self.strength.scope is Scope.OWN:
            own = {attribute: label for attribute, label in listing.labels.items() if attribute in taken}
            columns = self.learned.columns(own)
            return [row is not None and bool(self.telling[row, columns].any()) for row in rows]
        return [row is not None and any(self.any_label[each][row] for each in taken) for row in rows]


def mutual_information(
    together: NDArray[np.float64], word: NDArray[np.float64], label: NDArray[np.float64], known: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mutual information in bits of two events, from how often both, each and anything occurred."""
    total = np.maximum(known, 1)
    bits = np.zeros_like(together)
    for joint, one, other in (
        (together, word, label),
        (word - together, word, known - label),
        (label - together, known - word, label),
        (known - word - label + together, known - word, known - label),
    ):
        expected = one * other / total
        bits += np.where(joint > 0, joint / total * np.log2(np.maximum(joint, 1e-12) / np.maximum(expected, 1e-12)), 0)
    return np.maximum(bits, 0.0)


def _stems(title: str) -> frozenset[str]:
    return frozenset(stem(word) for word in title.split()) - {""}


def _indicators(places: Sequence[Sequence[int]], width: int) -> csr_matrix:
    """Return `[n, width]` with a one at each row's `places`."""
    columns = [place for row in places for place in row]
    ends = np.cumsum([0, *map(len, places)])
    return csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(places), width))
