"""CLIP's byte-pair encoding: text to tokens, as open_clip's `SimpleTokenizer` with `clean="lower"` has it. No torch.

The vocabulary is CLIP's own (openai/CLIP, MIT licence). A token is a byte inside a word (0 to 255), a byte at its end
(256 to 511), or what two tokens were merged to, in the order of the merges. The two after those are start and end.

`clip_merges.npy`, uint16 `[48894, 2]`, holds the two tokens of each merge.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import regex

from model.inputs.cleaning import lower

MERGES = Path(__file__).with_name("clip_merges.npy")

BYTES = tuple(chain(range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100), range(0x21), range(0x7F, 0xA1), (0xAD,)))
"""The byte that each of the first 256 tokens stands for: printable ones first."""

# The alternatives of CLIP's own pattern. `regex` and no other library: they differ in what they count as a letter.
PIECES = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)

SPECIAL = ("<start_of_text>", "<end_of_text>")
"""Pieces that CLIP reads as the start and end of a title."""


class BytePairs:
    """Text to tokens. Thread-safe; nothing is cached."""

    def __init__(self) -> None:
        pairs = np.load(MERGES, allow_pickle=False).astype(np.int64)
        first = 2 * len(BYTES)
        keys = (pairs[:, 0] << 16 | pairs[:, 1]).tolist()
        self._merged = {key: first + rank for rank, key in enumerate(keys)}
        self._token_of_byte = {byte: token for token, byte in enumerate(BYTES)}
        self.start = first + len(keys)
        self.end = self.start + 1

    def encode(self, text: str) -> Iterator[int]:
        """Yield the tokens of a text, without start and end; the text of a special token has none."""
        for piece in PIECES.findall(lower(text)):
            if piece not in SPECIAL:
                yield from self._merge(piece)

    def _merge(self, piece: str) -> list[int]:
        """Merge neighbouring tokens of a piece, whichever comes first in the vocabulary, until none can be merged."""
        tokens = [self._token_of_byte[byte] for byte in piece.encode()]
        tokens[-1] += len(BYTES)
        never = self.end
        while len(tokens) > 1:
            merged = [self._merged.get(left << 16 | right, never) for left, right in pairwise(tokens)]
            best = min(merged)
            if best == never:
                break
            tokens = _replace(tokens, merged, best)
        return tokens


def _replace(tokens: list[int], merged: list[int], best: int) -> list[int]:
    """Replace each pair that is merged to `best` by it, from the left; `merged[i]` is what `i` and `i + 1` make."""
    kept, at = [], 0
    while at < len(tokens):
        if at < len(merged) and merged[at] == best:
            kept.append(best)
            at += 2
        else:
            kept.append(tokens[at])
            at += 1
    return kept
