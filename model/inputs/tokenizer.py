"""Titles to tokens: the one definition, for training, evaluation and serving alike. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import PreprocessConfig
from model.inputs.byte_pairs import BytePairs

MAX_WORD_CHARACTERS = 128
"""Of a longer word only the beginning is tokenized: byte-pair merging takes time quadratic in a word's length."""

MAX_CACHED_WORDS = 20_000
"""Words whose tokens are cached; beyond it the cache is emptied, so that no input can grow it without bound."""


@dataclass(frozen=True, slots=True)
class TokenizedTitle:
    """A title's tokens with start and end, unpadded, and which word (by position) each inner token belongs to."""

    tokens: NDArray[np.int64]
    words: tuple[str, ...]
    word_of_token: tuple[int, ...]
    truncated: bool
    """Whether the title has more tokens, which were cut."""


class TitleTokenizer:
    """CLIP's byte-pair encoding, word by word, so that tokens can be traced to the caller's own words.

    Thread-safe. Titles are cut at the context length; ordinary titles get the same tokens as from open_clip's own call.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.context_length = config.context_length
        self._pairs = BytePairs()
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, title: str) -> TokenizedTitle:
        room = self.context_length - 2
        words = tuple(title.split())
        inner: list[int] = []
        owner: list[int] = []
        for position, word in enumerate(words):
            tokens = self._encode(word[:MAX_WORD_CHARACTERS])
            inner += tokens
            owner += [position] * len(tokens)
            if len(inner) > room:
                break
        whole = [self._pairs.start, *inner[:room], self._pairs.end]
        return TokenizedTitle(np.array(whole, dtype=np.int64), words, tuple(owner[:room]), truncated=len(inner) > room)

    def _encode(self, word: str) -> tuple[int, ...]:
        """Return a word's tokens; cached, since cleaning a word takes longer than decoding a small image."""
        known = self._known.get(word)
        if known is None:
            if len(self._known) >= MAX_CACHED_WORDS:
                self._known = {}
            known = tuple(itertools.islice(self._pairs.encode(word), self.context_length))  # more are never used
            self._known[word] = known
        return known


def pad_tokens(titles: Sequence[NDArray[np.int64] | None], length: int) -> NDArray[np.int64]:
    """Stack token rows to `[B, length]` int64, padded with zeros; a row of zeros where there is no title."""
    padded = np.zeros((len(titles), length), dtype=np.int64)
    for row, tokens in zip(padded, titles, strict=True):
        if tokens is not None:
            row[: len(tokens)] = tokens
    return padded
