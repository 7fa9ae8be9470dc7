"""Pictures and titles to model input: the one definition, for training, evaluation and serving alike.

May import Pillow, numpy, torch (to normalise on the device) and open_clip's tokeniser.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from model.config import PreprocessConfig
from model.errors import ModelError
from model.pictures import upright_rgb

MAX_WORD_CHARACTERS = 128
"""A longer word is read by its beginning: byte-pair merging takes time quadratic in a word's length."""

MAX_CACHED_WORDS = 20_000
"""Words whose tokens are remembered; beyond it the cache starts afresh, so that no input can grow it for ever."""

Box = tuple[float, float, float, float]


def decode_image(data: bytes, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode a catalogue's picture as `upright_rgb` does, whatever format Pillow knows.

    Raises `ModelError` when the bytes are no picture. For files of one's own: what strangers send over HTTP is
    checked first by `service.images`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return upright_rgb(image, target)
    except UnidentifiedImageError:  # whose message is an address in memory
        raise ModelError("the image cannot be decoded: it is in no known format") from None
    except Exception as error:  # Pillow's parsers let almost anything escape
        raise ModelError(f"the image cannot be decoded: {error}") from error


class ImageTransform:
    """RGB picture -> uint8 `[3, H, W]`; `normalise` makes the network's floats of a batch, on its device."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config

    def __call__(self, image: Image.Image, box: Box | None = None) -> NDArray[np.uint8]:
        """Resize `image`, or its part inside `box` (left, upper, right, lower in pixels), to the input size."""
        height, width = self.config.image_size
        left, upper, right, lower = box or (0.0, 0.0, *map(float, image.size))
        box_width, box_height = right - left, lower - upper
        if self.config.resize == "squash":
            resized = image.resize((width, height), Image.Resampling.BICUBIC, (left, upper, right, lower))
        elif self.config.resize == "shortest":
            margin_x, margin_y, *_ = self.frame((box_width, box_height))
            centre = (left + margin_x, upper + margin_y, right - margin_x, lower - margin_y)
            resized = image.resize((width, height), Image.Resampling.BICUBIC, centre)
        else:
            scale = min(width / box_width, height / box_height)
            size = (max(1, round(box_width * scale)), max(1, round(box_height * scale)))
            inner = image.resize(size, Image.Resampling.BICUBIC, (left, upper, right, lower))
            resized = Image.new("RGB", (width, height), (self.config.fill,) * 3)
            resized.paste(inner, ((width - size[0]) // 2, (height - size[1]) // 2))
        return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))

    def frame(self, size: tuple[float, float]) -> Box:
        """Return the part of a picture of `size` (width, height) that the network sees, in the picture's pixels.

        It goes beyond the picture's edges where that is padded.
        """
        height, width = self.config.image_size
        if self.config.resize == "squash":
            return 0.0, 0.0, *size
        choose = max if self.config.resize == "shortest" else min
        scale = choose(width / size[0], height / size[1])
        margin_x, margin_y = (size[0] - width / scale) / 2, (size[1] - height / scale) / 2
        return margin_x, margin_y, size[0] - margin_x, size[1] - margin_y

    def normalise(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 `[B, 3, H, W]` -> floats of `dtype`, each channel with CLIP's mean and deviation, channels last."""
        mean = torch.tensor(self.config.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.config.std, device=pixels.device).view(3, 1, 1)
        normalised = (pixels.float() / 255 - mean) / std
        return normalised.to(dtype, memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class TokenisedTitle:
    """A title's tokens with start and end, unpadded, and which word (by position) each inner token belongs to."""

    tokens: NDArray[np.int64]
    words: tuple[str, ...]
    word_of_token: tuple[int, ...]


class _NoCache:
    """Stands where open_clip's tokeniser has a dictionary for the pieces of words that it has met.

    That one grows with the input, and cannot be emptied under another thread that looks into it twice. This one holds
    `fixed`, which the tokeniser relies on, and takes in nothing.
    """

    def __init__(self, fixed: dict[str, str]) -> None:
        self._fixed = fixed

    def __contains__(self, piece: str) -> bool:
        return piece in self._fixed

    def __getitem__(self, piece: str) -> str:
        return self._fixed[piece]

    def __setitem__(self, piece: str, merged: str) -> None:
        pass


class TitleTokeniser:
    """open_clip's byte-pair tokeniser, word by word, so that tokens can be traced to the caller's own words.

    Thread-safe. Titles are cut at the context length; what open_clip's own call gives for ordinary titles, this
    gives too.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.context_length = config.context_length
        self._bpe = SimpleTokenizer(context_length=config.context_length)
        self._special = {self._bpe.sot_token_id, self._bpe.eot_token_id}
        self._bpe.cache = _NoCache(self._bpe.cache)
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, title: str) -> TokenisedTitle:
        room = self.context_length - 2
        words = tuple(title.split())
        inner: list[int] = []
        owner: list[int] = []
        for position, word in enumerate(words):
            tokens = self._encode(word[:MAX_WORD_CHARACTERS])
            inner += tokens
            owner += [position] * len(tokens)
            if len(inner) >= room:
                break
        whole = [self._bpe.sot_token_id, *inner[:room], self._bpe.eot_token_id]
        return TokenisedTitle(np.array(whole, dtype=np.int64), words, tuple(owner[:room]))

    def _encode(self, word: str) -> tuple[int, ...]:
        """Return a word's tokens; remembered, since cleaning a word costs more than decoding a small picture."""
        known = self._known.get(word)
        if known is None:
            if len(self._known) >= MAX_CACHED_WORDS:
                self._known = {}
            # The text of a special token must not act as one: EOT inside a title would end it there.
            tokens = (token for token in self._bpe.encode(word) if token not in self._special)
            known = tuple(itertools.islice(tokens, self.context_length))  # more are never used
            self._known[word] = known
        return known


def pad_tokens(titles: Sequence[NDArray[np.int64] | None], length: int) -> Tensor:
    """Stack token rows to `[B, length]` int64, padded with zeros; a row of zeros where there is no title."""
    padded = np.zeros((len(titles), length), dtype=np.int64)
    for row, tokens in zip(padded, titles, strict=True):
        if tokens is not None:
            row[: len(tokens)] = tokens
    return torch.from_numpy(padded)
