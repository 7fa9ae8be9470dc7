"""What an answer is based on, found by taking it away: parts of the image covered, words of the title left out.

The network answers the listing again for each part and word, and what its label loses is that part's weight.
Attention says where the network looked, not what the answer is based on: `research/faithfulness.py` measures both,
and gradients, and this came out best, or close to it. Pure numpy; `model/inference/predictor.py` runs the network.

Shapes: N parts of the image, W words within the text context, R variants of a listing, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.inference.predictions import Frame, ImageExplanation, TokenWeight
from model.inputs.tokenizer import TokenizedTitle

FINEST = 8
"""Rows and columns of parts, at most: a network of many small patches is not run hundreds of times."""


@dataclass(frozen=True)
class TitleVariants:
    """A title as it is, then without any word, then without each word, then of each word alone: 2 + 2W titles.

    A word counts once where it stands; words beyond the text context are cut and have no variants.
    """

    title: TokenizedTitle

    @cached_property
    def words(self) -> NDArray[np.int64]:
        """Positions among the title's words of those within the text context, `[W]`."""
        return np.unique(np.array(self.title.word_of_token, dtype=np.int64))

    @property
    def count(self) -> int:
        """How many variants there are, 2 + 2W."""
        return 2 + 2 * len(self.words)

    @property
    def tokens(self) -> list[NDArray[np.int64]]:
        """Tokens with start and end of each variant."""
        owner = np.array(self.title.word_of_token, dtype=np.int64)
        without = [self.title.keep(owner != word) for word in self.words]
        alone = [self.title.keep(owner == word) for word in self.words]
        return [self.title.tokens, self.title.keep(np.zeros(owner.shape, dtype=np.bool_)), *without, *alone]

    def explain(self, odds: NDArray[np.float64]) -> tuple[TokenWeight, ...]:
        """Weigh the words, summing to 1, by the label's log-odds in each variant, `[2 + 2W]`.

        What the label loses without the word and what it gains by the word alone, together: the outermost two terms
        of its Shapley value (Lundberg & Lee, arXiv:1705.07874). The loss alone would miss what the title says twice.
        """
        count = len(self.words)
        everything, nothing, without, alone = odds[0], odds[1], odds[2 : 2 + count], odds[2 + count :]
        weights = np.zeros(len(self.title.words))
        weights[self.words] = _normalised((everything - without) + (alone - nothing))
        if not count:  # not one of the words means anything to the tokenizer
            weights[:] = 1 / len(weights)
        return tuple(TokenWeight(word, weight) for word, weight in zip(self.title.words, weights.tolist(), strict=True))


@dataclass(frozen=True)
class ImageVariants:
    """An image as it is, then with each part covered: 1 + N images.

    pixels: uint8 `[3, H, W]`. grid: the network's patches (rows, columns); where they are few, they are the parts.
    fill: what parts are covered with, from 0 to 255. It is what images are padded with: the usual background.
    """

    pixels: NDArray[np.uint8]
    grid: tuple[int, int]
    fill: int

    @property
    def parts(self) -> tuple[int, int]:
        """Rows and columns of the parts."""
        rows, columns = self.grid
        return min(rows, FINEST), min(columns, FINEST)

    @property
    def count(self) -> int:
        """How many variants there are, 1 + N."""
        rows, columns = self.parts
        return 1 + rows * columns

    @property
    def images(self) -> NDArray[np.uint8]:
        """Pixels of each variant, `[1 + N, 3, H, W]`, the parts row by row."""
        return np.stack([self.pixels, *(self.covered([part]) for part in range(self.count - 1))])

    def covered(self, parts: Iterable[int]) -> NDArray[np.uint8]:
        """Return the pixels with `parts` covered, `[3, H, W]`."""
        pixels = self.pixels.copy()
        for part in parts:
            pixels[self.place(part)] = self.fill
        return pixels

    def place(self, part: int) -> tuple[slice, slice, slice]:
        """Return where a part is in `[3, H, W]`."""
        rows, columns = self.parts
        _, height, width = self.pixels.shape
        row, column = divmod(part, columns)
        return (
            slice(None),
            slice(row * height // rows, (row + 1) * height // rows),
            slice(column * width // columns, (column + 1) * width // columns),
        )

    def explain(self, odds: NDArray[np.float64], frame: Frame) -> ImageExplanation:
        """Weigh the parts, summing to 1, by the label's log-odds in each variant, `[1 + N]`: what it loses.

        (Occlusion: Zeiler & Fergus, arXiv:1311.2901.)
        """
        rows, columns = self.parts
        weights = _normalised(odds[0] - odds[1:]).reshape(rows, columns)
        return ImageExplanation(rows=rows, columns=columns, weights=weights.tolist(), frame=frame)


def log_odds(logits: NDArray[np.float32], label: int, *, multi_valued: bool = False) -> NDArray[np.float64]:
    """Return the log-odds of `label`, `[R]`, from logits `[R, C]`: unlike confidence they never saturate.

    Those of a multi-valued attribute's label are its logit. Where there is a single label, its logit is returned too:
    it has no odds.
    """
    scores = logits.astype(np.float64)
    if multi_valued:
        return np.asarray(scores[:, label])
    others = np.delete(scores, label, axis=1)
    if not others.shape[1]:
        return np.asarray(scores[:, label])
    highest = others.max(axis=1)
    against = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
    return np.asarray(scores[:, label] - against)


def _normalised(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the positive weights, the others as 0, scaled to sum to 1; uniform where none is positive."""
    positive = weights.clip(min=0)
    total = positive.sum()
    return np.asarray(positive / total if total > 0 else np.full(weights.shape, 1 / max(1, weights.size)))
