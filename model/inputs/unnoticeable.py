"""Changes of a listing that no person would notice, or would call another listing's: a stable model ignores them.

Each is deterministic. Images are RGB, of any size; a title is changed or, where a change does not apply to it, returned
as it is. May import numpy and Pillow.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from model.inputs.corruptions import compress, stem

ImageChange = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class LabelWords:
    """The words of a model's labels, each reduced to its stem (`corruptions.stem`)."""

    all: frozenset[str]
    nouns: frozenset[str]
    """Those that labels have in the plural, such as Shirts: they name products, and titles have them in both forms."""

    @classmethod
    def of(cls, labels: Iterable[str]) -> Self:
        """Collect the words of `labels`."""
        words = {word for label in labels for word in label.split()}
        stems = {word: stem(word) for word in words}
        return cls(
            all=frozenset(stems.values()) - {""},
            nouns=frozenset(found for word, found in stems.items() if found and found != word.lower()),
        )


TitleChange = Callable[[str, LabelWords], str]

SMALL = 0.02
"""Two percent, of sizes and of brightness."""


# --- images ------------------------------------------------------------------------------------------------


def _webp(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=85)
    with Image.open(stream) as compressed:
        return compressed.convert("RGB")


def _shifted(image: Image.Image) -> Image.Image:
    """Move the content right and down by one pixel; the first row and column are repeated."""
    moved = image.copy()
    moved.paste(image, (1, 1))
    return moved


def _smaller(image: Image.Image) -> Image.Image:
    width, height = (max(1, round((1 - SMALL) * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _bordered(image: Image.Image) -> Image.Image:
    """Add a border of 2 % of the width in the colour of the top left corner, as backgrounds go on."""
    corner = image.getpixel((0, 0))
    return ImageOps.expand(image, border=max(1, round(SMALL * image.width)), fill=corner)  # type: ignore[arg-type]


def _brightness(factor: float) -> ImageChange:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def _white_balance(red: float, blue: float) -> ImageChange:
    def change(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float32) * (red, 1.0, blue)
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8), "RGB")

    return change


def _sharpened(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(radius=1, percent=50, threshold=2))


IMAGE_CHANGES: Mapping[str, ImageChange] = {
    "JPEG, quality 85": lambda image: compress(image, 85),
    "WebP, quality 85": _webp,
    "moved by a pixel": _shifted,
    "2 % smaller": _smaller,
    "border of 2 %": _bordered,
    "2 % brighter": _brightness(1 + SMALL),
    "2 % darker": _brightness(1 - SMALL),
    "2 % warmer": _white_balance(1 + SMALL, 1 - SMALL),
    "2 % cooler": _white_balance(1 - SMALL, 1 + SMALL),
    "sharpened": _sharpened,
}
"""By the name that reports give them."""


# --- titles ------------------------------------------------------------------------------------------------


def _case(title: str, _words: LabelWords) -> str:
    return title.lower() if title != title.lower() else title.upper()


def _white_space(title: str, _words: LabelWords) -> str:
    return f" {'  '.join(title.split())} "


def _punctuation(title: str, _words: LabelWords) -> str:
    """Put a comma after the first word and a full stop at the end."""
    first, _, rest = title.partition(" ")
    return f"{first}, {rest}." if rest else f"{first}."


def _order(title: str, words: LabelWords) -> str:
    """Exchange the first and the last of the words that name labels, such as a colour and a product type."""
    written = title.split()
    naming = [place for place, word in enumerate(written) if stem(word) in words.all]
    if len(naming) >= 2:
        first, last = naming[0], naming[-1]
        written[first], written[last] = written[last], written[first]
    return " ".join(written)


def _number(title: str, words: LabelWords) -> str:
    """Turn the last word that names a product from singular to plural, or back."""
    written = title.split()
    for place in reversed(range(len(written))):
        word = written[place]
        if stem(word) in words.nouns and word.isalpha():
            plural = stem(word) != word.lower()
            written[place] = word[:-1] if plural else f"{word}s"
            break
    return " ".join(written)


def _ampersand(title: str, _words: LabelWords) -> str:
    """Write "and" for "&", or "&" for "and"."""
    if "&" in title:
        return re.sub(r"\s*&\s*", " and ", title)
    return re.sub(r"\band\b", "&", title, flags=re.IGNORECASE)


def _typo(title: str, _words: LabelWords) -> str:
    """Exchange two letters inside one word of five or more; which, depends on the title alone."""
    rng = random.Random(f"typo/{title}")  # noqa: S311 - no secret
    words = title.split()
    long = [place for place, word in enumerate(words) if word.isalpha() and len(word) >= 5]
    if not long:
        return title
    place = rng.choice(long)
    letters = list(words[place])
    at = rng.randrange(1, len(letters) - 2)
    letters[at], letters[at + 1] = letters[at + 1], letters[at]
    words[place] = "".join(letters)
    return " ".join(words)


TITLE_CHANGES: Mapping[str, TitleChange] = {
    "letter case": _case,
    "white space": _white_space,
    "punctuation": _punctuation,
    "word order": _order,
    "singular or plural": _number,
    "& or and": _ampersand,
    "one typo": _typo,
}
"""By the name that reports give them."""
