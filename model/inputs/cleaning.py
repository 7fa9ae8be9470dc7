"""How titles are cleaned before they are tokenized, as open_clip does it. No torch."""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Mapping

import ftfy

_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def whitespace(text: str) -> str:
    """Mend wrong encodings and HTML entities, and make white space single spaces."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def lower(text: str) -> str:
    """Clean as `whitespace` does, and lower the case."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """Clean as `lower` does, with spaces for underscores and without ASCII's punctuation: as SigLIP is trained."""
    return " ".join(whitespace(text).translate(_NO_PUNCTUATION).lower().split())


CLEANING: Mapping[str, Callable[[str], str]] = {
    "canonicalize": canonicalize,
    "lower": lower,
    "whitespace": whitespace,
}
"""By the names that `model.config.TokenizerConfig` and open_clip's configurations have for them."""
