"""Titles and labels as people type them: placeholders that say nothing, and one label spelt in several ways."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from model.tasks import fold_label

PLACEHOLDERS = (
    "nan", "<na>", "nat", "none", "null", "(null)", "nil", "n/a", "#n/a", "na", "n.a.", "\\N", "undefined",
    "not available", "not applicable", "tbd", "-", "--", "---", "–", "—", "?", ".", "…",
)  # fmt: skip
"""Texts that stand for a missing value, whatever their case."""

_NO_TITLES = ("untitled", "no title", "no name")

_MARGIN = 8
"""Characters that a placeholder may have besides its own: white space, marks that nobody sees."""

_DECIMAL = re.compile(r"(-?\d+)\.(\d*?)0*")


class Placeholders:
    """Texts that stand for a missing value."""

    def __init__(self, texts: Sequence[str] | None = None) -> None:
        """texts: further ones besides `PLACEHOLDERS`; empty: there are none at all."""
        chosen = () if texts is not None and not texts else (*PLACEHOLDERS, *(texts or ()))
        self._texts = frozenset(map(fold_label, chosen))
        self._longest = max(map(len, chosen), default=0) + _MARGIN
        self._titles = self._texts.union(_NO_TITLES if chosen else ())

    def __contains__(self, text: str) -> bool:
        return len(text) <= self._longest and fold_label(text) in self._texts

    def is_title(self, title: str, listing_id: str) -> bool:
        """Whether a title says something: it has a letter, and is neither a placeholder nor the listing's id."""
        if title.isspace() or not any(map(str.isalpha, title)):
            return False
        # Long titles are not folded, which costs: they come from anyone.
        if len(title) <= self._longest and fold_label(title) in self._titles:
            return False
        return not listing_id or title.casefold().split() != listing_id.casefold().split()


def plain_label(text: str) -> str:
    """Return a label with single spaces, its booleans and numbers as Parquet and JSON have them: `true`, `3`, `7.5`."""
    text = " ".join(text.replace("\u200b", "").replace("\ufeff", "").split())
    if text.casefold() in ("true", "false"):
        return text.casefold()
    if number := _DECIMAL.fullmatch(text):
        return f"{number[1]}.{number[2]}" if number[2] else number[1]
    return text


def as_list(text: str) -> list[str] | None:
    """Return the texts of a JSON list or of a Python list as pandas writes it; None for other texts."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            values = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list) and all(isinstance(each, str | int | float) for each in values):
            return [str(each).strip() for each in values if str(each).strip()]
    return None


class SpellingCounts:
    """How often each spelling of a label occurs; bounded by the different ones."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, labels: Mapping[str, str], sets: Mapping[str, Sequence[str]]) -> None:
        """Count the labels of a row, by attribute: single ones, and several."""
        for attribute, label in labels.items():
            self._of(attribute)[label] += 1
        for attribute, several in sets.items():
            self._of(attribute).update(several)

    def _of(self, attribute: str) -> Counter[str]:
        return self._counts.setdefault(attribute, Counter())

    def joined(self) -> dict[str, dict[str, str]]:
        """Return, per attribute, the label that each other spelling of it is replaced by: the most frequent one.

        Spellings that differ in case, white space or the form of their characters (full width, ligatures) are one
        label.
        """
        return {attribute: joined for attribute, found in self._counts.items() if (joined := join_spellings(found))}


def join_spellings(counts: Counter[str]) -> dict[str, str]:
    """Return the label that each other spelling is replaced by (see `SpellingCounts.joined`), from counts of labels."""
    chosen: dict[str, str] = {}
    by_frequency = sorted(counts, key=lambda label: (-counts[label], label))
    for label in by_frequency:
        chosen.setdefault(fold_label(label), label)
    return {label: best for label in by_frequency if (best := chosen[fold_label(label)]) != label}
