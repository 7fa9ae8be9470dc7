"""Augmentation of training listings: images that are cropped, mirrored and corrupted, titles that lose words.

Every function draws from the generator that it is given. Imports nothing of torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import with_config

from model.config import STRICT
from model.errors import ConfigError
from model.inputs import corruptions, staging
from model.inputs.corruptions import without_label_words
from model.inputs.framing import Box

CORRUPTION_SHARES = ("corrupted_images", "blank_images", "title_dropout", "label_word_dropout")
"""What `AugmentConfig` says of how many listings are corrupted."""

STAGING_SHARES = ("other_grounds", "squashed", "relit")
"""What it says of how many images are shown in another way; the rest is about how."""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation that respects colour (`model/inputs/augment.py`).

    crop: smallest share of the image's area that a random crop keeps. stretch: largest relative change of
    its aspect ratio. corrupted_images: share of images compressed, blurred, made noisy, partly covered or
    reduced to a detail.
    other_grounds, squashed, relit: shares of images that are shown on another ground and canvas, with other
    proportions, in another light (`model/inputs/staging.py`), as shops of every kind send them.
    blank_images: share of images that become one colour, so that a title is believed beside an image that shows
    nothing, even by a network that has learned to distrust titles (`TrainConfig.mismatched_titles`).
    rewritten_titles: share of titles that are written as somebody else would write them, with typing errors too
    (`rewrite_title`).
    title_dropout: share of titles that lose words; word_dropout: chance of each of theirs.
    label_word_dropout: share of titles that lose the words that name the listing's own labels.
    """

    crop: float = 0.7
    stretch: float = 0.1
    flip: bool = True
    other_grounds: float = 0.0
    squashed: float = 0.0
    relit: float = 0.0
    corrupted_images: float = 0.1
    blank_images: float = 0.02
    rewritten_titles: float = 0.0
    title_dropout: float = 0.06
    word_dropout: float = 0.2
    label_word_dropout: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ConfigError("crop must be above 0 and at most 1")
        for name in ("stretch", "rewritten_titles", "word_dropout", *STAGING_SHARES, *CORRUPTION_SHARES):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1")


Pixels = NDArray[np.uint8]


def vary_photo(image: Image.Image, config: AugmentConfig, rng: random.Random) -> Image.Image:
    """Show shares of the images on another ground, with other proportions, in another light."""
    if rng.random() < config.other_grounds:
        image = staging.restage(image, rng)
    if rng.random() < config.squashed:
        image = staging.squash(image, rng)
    return staging.relight(image, rng) if rng.random() < config.relit else image


def random_box(box: Box, config: AugmentConfig, rng: random.Random) -> Box:
    """Draw a crop of `box`: a share of its area, slightly stretched, anywhere."""
    left, upper, right, lower = box
    width, height = right - left, lower - upper
    share = rng.uniform(config.crop, 1.0)
    stretch = math.exp(rng.uniform(-config.stretch, config.stretch))
    box_width = min(width, max(1.0, width * math.sqrt(share * stretch)))
    box_height = min(height, max(1.0, height * math.sqrt(share / stretch)))
    left, upper = left + rng.uniform(0, width - box_width), upper + rng.uniform(0, height - box_height)
    return left, upper, left + box_width, upper + box_height


# --- images, uint8 [3, H, W] -------------------------------------------------------------------------------


def compress(pixels: Pixels, rng: random.Random) -> Pixels:
    """Return what a coarse JPEG leaves of an image."""
    return _pixels(corruptions.compress(_image(pixels), rng.randint(5, 40)))


def blur(pixels: Pixels, rng: random.Random) -> Pixels:
    """Blur by a Gaussian of 0.5 to 2.5 pixels."""
    return _pixels(corruptions.blur(_image(pixels), rng.uniform(0.5, 2.5)))


def add_noise(pixels: Pixels, rng: random.Random) -> Pixels:
    """Add white noise with a deviation of 5 to 50 of 255."""
    seed, deviation = rng.getrandbits(32), rng.uniform(5, 50)
    return corruptions.add_noise(pixels, deviation, seed)


def occlude(pixels: Pixels, rng: random.Random) -> Pixels:
    """Paint one rectangle over a tenth to a half of the image, in one colour."""
    height, width = pixels.shape[1:]
    share, stretch = rng.uniform(0.1, 0.5), math.exp(rng.uniform(-0.5, 0.5))
    rows = min(height, round(height * math.sqrt(share * stretch)))
    columns = min(width, round(width * math.sqrt(share / stretch)))
    top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
    return _pixels(corruptions.cover(_image(pixels), (left, top), (columns, rows), _colour(rng)))


def enlarge(pixels: Pixels, rng: random.Random) -> Pixels:
    """Leave nothing but a detail, of a twentieth to three tenths of the image's area, as large as the image was."""
    height, width = pixels.shape[1:]
    side = math.sqrt(rng.uniform(0.05, 0.3))
    left, top = rng.uniform(0, width * (1 - side)), rng.uniform(0, height * (1 - side))
    box = (left, top, left + width * side, top + height * side)
    return _pixels(_image(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box))


def blank(pixels: Pixels, rng: random.Random) -> Pixels:
    """Replace an image by one colour, white every other time, as in feeds that have lost their images."""
    height, width = pixels.shape[1:]
    colour = (255, 255, 255) if rng.random() < 0.5 else _colour(rng)
    return _pixels(Image.new("RGB", (width, height), colour))


IMAGE_CORRUPTIONS: Sequence[Callable[[Pixels, random.Random], Pixels]] = (compress, blur, add_noise, occlude, enlarge)


def vary_pixels(pixels: Pixels, config: AugmentConfig, rng: random.Random) -> Pixels:
    """Flip every other image; corrupt a share `config.corrupted_images` by one of `IMAGE_CORRUPTIONS`; blank a share
    `config.blank_images`.
    """
    if config.flip and rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    if rng.random() < config.corrupted_images:
        pixels = rng.choice(IMAGE_CORRUPTIONS)(pixels, rng)
    return blank(pixels, rng) if rng.random() < config.blank_images else pixels


def _colour(rng: random.Random) -> corruptions.Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _pixels(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1))


# --- titles ------------------------------------------------------------------------------------------------


def vary_title(title: str, labels: Iterable[str], config: AugmentConfig, rng: random.Random) -> str:
    """Rewrite a share of the titles, and leave words out, never all: those that name its own `labels`, or any, or none.

    Without the words that name its labels, a listing teaches the network to use what else it shows.
    """
    if config.rewritten_titles and rng.random() < config.rewritten_titles:
        title = rewrite_title(title, rng)
    if rng.random() < config.label_word_dropout:
        title = without_label_words(title, labels) or title
    words = title.split()
    if len(words) < 2 or rng.random() >= config.title_dropout:
        return title
    kept = [word for word in words if rng.random() >= config.word_dropout]
    return " ".join(kept or [rng.choice(words)])


def _long_word(words: Sequence[str], rng: random.Random) -> int | None:
    """Return the place of one of the words of four letters or more; None where there is none."""
    long = [place for place, word in enumerate(words) if word.isalpha() and len(word) >= 4]
    return rng.choice(long) if long else None


def mistype(title: str, rng: random.Random) -> str:
    """Make one typing error inside a word of four letters or more: letters exchanged, one lost, doubled or another."""
    words = title.split()
    if (place := _long_word(words, rng)) is None:
        return title
    word = words[place]
    at = rng.randrange(1, len(word) - 1)
    words[place] = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :],
        )
    )
    return " ".join(words)


def change_number(title: str, rng: random.Random) -> str:
    """Turn one word of four letters or more from singular to plural, or back."""
    words = title.split()
    if (place := _long_word(words, rng)) is None:
        return title
    words[place] = words[place][:-1] if words[place].lower().endswith("s") else f"{words[place]}s"
    return " ".join(words)


def change_order(title: str, rng: random.Random) -> str:
    """Exchange two words."""
    words = title.split()
    if len(words) >= 2:
        one, other = rng.sample(range(len(words)), 2)
        words[one], words[other] = words[other], words[one]
    return " ".join(words)


def change_marks(title: str, rng: random.Random) -> str:
    """Put a comma, a full stop or a hyphen after a word, or write `&` for `and`, or the other way round."""
    if "&" in title and rng.random() < 0.5:
        return title.replace("&", " and ")
    words = title.split()
    words = ["&" if word.lower() == "and" and rng.random() < 0.5 else word for word in words]
    place = rng.randrange(len(words)) if words else 0
    return " ".join(word + rng.choice(",.-") if at == place else word for at, word in enumerate(words))


def change_case(title: str, rng: random.Random) -> str:
    """Write all in lower case, in upper case or with capitals."""
    return rng.choice((title.lower(), title.upper(), title.title()))


TITLE_REWRITES: Sequence[Callable[[str, random.Random], str]] = (
    mistype, mistype, change_number, change_number, change_order, change_marks, change_case,
)  # fmt: skip
"""As often as each is listed: typing errors and number change the tokens of a word, and so the most."""


def rewrite_title(title: str, rng: random.Random) -> str:
    """Write a title as somebody else would, by one or two of `TITLE_REWRITES`: the labels stay the same."""
    for change in rng.sample(TITLE_REWRITES, rng.choice((1, 1, 2))):
        title = change(title, rng)
    return title
