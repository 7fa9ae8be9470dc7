"""Titles to tokens: the one definition, for training, evaluation and serving alike. No torch."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.config import PreprocessConfig, TokenizerConfig
from model.errors import ConfigError
from model.inputs.byte_pairs import BytePairs
from model.inputs.cleaning import CLEANING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_WORD_CHARACTERS = 128
"""Of a longer word CLIP's tokenizer reads the beginning: byte-pair merging takes time quadratic in a word's length."""

MAX_CACHED_WORDS = 20_000
"""Words that are cached; beyond it the cache is emptied, so that no input can grow it without bound."""


@dataclass(frozen=True, slots=True)
class TokenizedTitle:
    """A title's tokens with start and end, unpadded, and which word (by position) each inner token belongs to."""

    tokens: NDArray[np.int64]
    words: tuple[str, ...]
    word_of_token: tuple[int, ...]
    truncated: bool
    """Whether the title has more tokens, which were cut."""
    before: int = 1
    """How many tokens come before the inner ones; those behind them end the title."""

    def keep(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the tokens of the title with the inner tokens that are `chosen` (one for each), and no others."""
        first, last = self.before, self.before + len(self.word_of_token)
        return np.concatenate([self.tokens[:first], self.tokens[first:last][chosen], self.tokens[last:]])


class TitleTokenizer:
    """Titles to tokens as the model's towers were trained, so that tokens can be traced to the caller's own words.

    Thread-safe. Titles are cut at the context length.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        """Raises `ConfigError` for a tokenizer that cannot be read."""
        self.context_length = length = config.context_length
        self._tokenize: Callable[[str], TokenizedTitle] = (
            ClipTokenizer(length) if config.tokenizer is None else OwnTokenizer(config.tokenizer, length)
        )

    def __call__(self, title: str) -> TokenizedTitle:
        return self._tokenize(title)


class ClipTokenizer:
    """CLIP's byte-pair encoding, word by word. Ordinary titles get the same tokens as from open_clip's own call."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
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


def read_definition(definition: str) -> Tokenizer:
    """Read a tokenizer's definition in the format of the library `tokenizers`.

    It neither pads nor cuts, and takes special tokens that a title spells out for plain text. Raises `ConfigError` for
    a definition that cannot be read, and where the library is not installed.
    """
    if find_spec("tokenizers") is None:
        raise ConfigError(
            "this checkpoint has a tokenizer of its own; install the extra: pip install 'cma-clip[tokenizers]'"
        )
    from tokenizers import Tokenizer  # noqa: PLC0415 - optional: CLIP's tokenizer is part of the program

    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"the tokenizer cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


class OwnTokenizer:
    """A tokenizer that towers bring along. The same tokens as from open_clip's own call, whole titles at a time."""

    def __init__(self, config: TokenizerConfig, context_length: int) -> None:
        """Raises as `read_definition` does."""
        self.end = config.end
        self._tokenizer = read_definition(config.definition)
        self._tokenizer.enable_truncation(context_length)
        self._clean = CLEANING[config.clean]
        self._cleaned: dict[str, str] = {}

    def __call__(self, title: str) -> TokenizedTitle:
        cleaned = self._clean(title)
        encoding = self._tokenizer.encode(cleaned)
        ids, special = encoding.ids, encoding.special_tokens_mask
        before = special.index(0) if 0 in special else len(ids) - 1
        # A title that spells the end out may get its token; it ends where it ends.
        inner = [at for at in range(before, len(ids) - 1) if ids[at] != self.end]
        words, ends = self._words(title, cleaned)
        return TokenizedTitle(
            np.array([*ids[:before], *(ids[at] for at in inner), self.end], dtype=np.int64),
            words,
            tuple(_owner(cleaned, *encoding.offsets[at], ends) for at in inner),
            truncated=bool(encoding.overflowing),
            before=before,
        )

    def _words(self, title: str, cleaned: str) -> tuple[tuple[str, ...], list[int]]:
        """Return a title's words, and for each the position in `cleaned` where the next one starts.

        They are the caller's own words; where cleaning them one by one gives another text, those of the cleaned title.
        """
        words = tuple(title.split())
        parts = [self._clean_word(word) for word in words]
        if " ".join(filter(None, parts)) != cleaned:
            words = tuple(parts := cleaned.split())
        return words, list(itertools.accumulate(len(part) + 1 if part else 0 for part in parts))

    def _clean_word(self, word: str) -> str:
        """Return a word as it is cleaned; cached, since that takes longer than tokenizing it."""
        known = self._cleaned.get(word)
        if known is None:
            if len(self._cleaned) >= MAX_CACHED_WORDS:
                self._cleaned = {}
            known = self._cleaned[word] = self._clean(word)
        return known


def _owner(cleaned: str, start: int, stop: int, ends: list[int]) -> int:
    """Return the word that the token of `cleaned[start:stop]` belongs to; a space belongs to the word behind it."""
    while start < stop and cleaned[start] == " ":
        start += 1
    return min(bisect_right(ends, start), len(ends) - 1)


def pad_tokens(titles: Sequence[NDArray[np.int64] | None], length: int) -> NDArray[np.int64]:
    """Stack token rows to `[B, length]` int64, padded with zeros; a row of zeros where there is no title."""
    padded = np.zeros((len(titles), length), dtype=np.int64)
    for row, tokens in zip(padded, titles, strict=True):
        if tokens is not None:
            row[: len(tokens)] = tokens
    return padded
