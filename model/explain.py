"""From the network's attention over tokens to weights of patches and of the caller's words; pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.preprocess import TokenisedTitle
from model.readings import ImageExplanation, TokenWeight


def image_explanation(
    focus: NDArray[np.float64] | None, title_length: int, rows: int, columns: int
) -> ImageExplanation:
    """Weights of the patches, summing to 1, from `focus` over `[L title tokens, class token, N patches]`.

    Uniform where there is no `focus`, or none of it is on the picture.
    """
    patches = np.ones(rows * columns) if focus is None else focus[title_length + 1 :]
    weights = _normalised(patches).reshape(rows, columns)
    return ImageExplanation(rows=rows, columns=columns, weights=weights.tolist())


def text_explanation(focus: NDArray[np.float64] | None, title: TokenisedTitle) -> tuple[TokenWeight, ...]:
    """Weights of the title's words as the caller wrote them, summing to 1; words beyond the context weigh 0."""
    tokens = len(title.word_of_token)
    inner = np.ones(tokens) if focus is None else focus[1 : 1 + tokens]  # the start token stands first
    weights = np.zeros(len(title.words))
    np.add.at(weights, np.array(title.word_of_token, dtype=int), inner)
    return tuple(
        TokenWeight(word, weight) for word, weight in zip(title.words, _normalised(weights).tolist(), strict=True)
    )


def _normalised(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weights.sum()
    return weights / total if total > 0 else np.full(weights.shape, 1 / weights.size)
