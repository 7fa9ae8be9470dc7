"""Titles as numbers: the byte pairs that occur in training titles, counted from 1."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import PreprocessConfig
from model.inputs.augment import rewrite_title
from model.inputs.tokenizer import TitleTokenizer, pad_tokens

CONTEXT = 40

ROUNDS = 10
"""How often training titles are rewritten to find what tokens that gives."""

_TOKENIZE = TitleTokenizer(PreprocessConfig(image_size=(128, 96), context_length=CONTEXT))


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that are known, by their number in the tokenizer; others are passed over."""

    places: np.ndarray
    """Of each token of the tokenizer its place, 0 for those that are not known."""

    @classmethod
    def of(cls, titles: Sequence[str], *, rewritten: bool) -> Vocabulary:
        """Collect the tokens of training titles, and of what they become when they are rewritten."""
        tokens = {int(token) for title in titles for token in _TOKENIZE(title).tokens}
        if rewritten:
            rng = random.Random("vocabulary")  # noqa: S311 - no secret
            for _ in range(ROUNDS):
                tokens |= {int(token) for title in titles for token in _TOKENIZE(rewrite_title(title, rng)).tokens}
        places = np.zeros(1 << 16, np.int64)
        places[sorted(tokens)] = np.arange(1, len(tokens) + 1)
        return cls(places)

    def __len__(self) -> int:
        return int(self.places.max()) + 1

    def encode(
        self, titles: Sequence[str | None], *, rewritten: float = 0.0, rng: random.Random | None = None
    ) -> Tensor:
        """Return the places of each title's tokens, `[n, L]`, 0 where there is none; a share is rewritten first."""
        rows = []
        for title in titles:
            changes = rng is not None and rng.random() < rewritten
            text = rewrite_title(title, rng) if title and rng and changes else title
            rows.append(self.places[_TOKENIZE(text).tokens] if text else None)
        return torch.from_numpy(pad_tokens(rows, max((len(row) for row in rows if row is not None), default=1)))
