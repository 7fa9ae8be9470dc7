"""Embedded colour profiles: an image's colours as sRGB, which the network was trained on.

The conversion is LittleCMS's, by Pillow: relative colorimetric with black point compensation. What is applied is the
ICC profile alone, which Pillow reads from JPEG, PNG, WebP, AVIF and TIFF. Ignored, and taken as sRGB, are:

- AVIF's and PNG's CICP code points, which Pillow does not expose,
- PNG's gAMA and cHRM chunks: most encoders write those of sRGB, and some a wrong gamma,
- EXIF's "Adobe RGB" flag without a profile (DCF's option "R03"): browsers ignore it, so a shop's own pages show such
  photos as sRGB too.

A profile is data from anywhere: its size is bounded, and so is the time that it can cost.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 1024 * 1024
"""Those of displays have a few thousand bytes, those of printing presses up to two million."""

CACHED_PROFILES = 8
"""Conversions that are kept: a catalogue has few profiles, and building one takes up to some 30 ms."""

SPACES = {"RGB": ("RGB ",), "L": ("GRAY", "RGB "), "CMYK": ("CMYK",), "LAB": ("Lab ",)}
"""Modes of images, and the colour spaces that their profile may have: an RGB profile says what a grey means too."""

SAME = 2
"""A profile that changes no channel of any probed colour by more than this, of 255, is taken as sRGB."""

PROGRAMS = {b"D2B0", b"D2B1", b"D2B2", b"D2B3"}
"""Tags that hold arbitrarily long chains of operations, which a small file could make run for minutes."""


class UnreadableProfileError(Exception):
    """The profile is damaged, too large, or of another colour space than its image."""


@lru_cache(maxsize=CACHED_PROFILES)
def conversion_to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the conversion of images of mode RGB, L, CMYK or LAB with an embedded `profile` to sRGB, mode RGB.

    None where it would change nothing. Without a profile LAB is CIELAB under D50, and anything else needs none.
    Raises `UnreadableProfileError`. The conversion may be applied in several threads at once.
    """
    if profile is None and mode != "LAB":
        return None
    if profile is not None:
        _check(profile)
    try:
        source = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile is not None
            else ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        )
        space = source.profile.xcolor_space
        if space not in SPACES[mode]:
            raise UnreadableProfileError(f"the profile is of {space.strip()} colours, the image of mode {mode}")
        conversion = ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            "RGB" if space == "RGB " else mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except UnreadableProfileError:
        raise
    except Exception as error:  # LittleCMS has its own reasons, which Pillow passes on as several classes
        raise UnreadableProfileError(str(error)) from error
    return None if space == "RGB " and _changes_nothing(conversion) else conversion


def _check(profile: bytes) -> None:
    """Refuse what could cost much before LittleCMS sees it: ICC.1:2022, section 7, has the layout."""
    if len(profile) > MAX_PROFILE_BYTES:
        raise UnreadableProfileError(f"the profile has more than {MAX_PROFILE_BYTES} bytes")
    if len(profile) < 132:
        raise UnreadableProfileError("the profile is shorter than its header")
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = profile[132 : 132 + 12 * min(count, 100)]  # LittleCMS takes no more than 100
    if any(tags[at : at + 4] in PROGRAMS for at in range(0, len(tags), 12)):
        raise UnreadableProfileError("the profile holds chains of operations")


def _changes_nothing(conversion: ImageCms.ImageCmsTransform) -> bool:
    """Say whether RGB colours, 16 levels a channel, stay what they are."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    found = np.asarray(conversion.apply(Image.fromarray(colours)), dtype=np.int16)
    return bool(np.abs(found - colours).max() <= SAME)
