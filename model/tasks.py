"""Attributes as classification tasks, and their label vocabularies."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from model.errors import CatalogueError, ConfigError

UNLABELLED = -100
"""The listing has no label for this attribute: no loss, and not counted in any measure."""

OUT_OF_VOCABULARY = -1
"""The listing has a label that the model does not know: no loss, and an error in every measure."""


def fold_label(text: str) -> str:
    """Return what all spellings of a label share: case, white space and the form of characters don't count."""
    if text.isascii():
        return " ".join(text.casefold().split())
    text = unicodedata.normalize("NFKC", text)
    return " ".join("".join(each for each in text if unicodedata.category(each) != "Cf").casefold().split())


@dataclass(frozen=True, kw_only=True)
class Task:
    """One attribute and its ordered labels; the position of a label is its class index.

    Raises `ConfigError` when the labels are fewer than two or not unique.
    """

    name: str
    labels: tuple[str, ...]
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _folded: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ConfigError(f"attribute {self.name!r} needs at least two labels, it has {len(self.labels)}")
        index = {label: position for position, label in enumerate(self.labels)}
        if len(index) != len(self.labels):
            raise ConfigError(f"attribute {self.name!r} lists a label twice")
        object.__setattr__(self, "_index", index)
        # Labels that differ in spelling alone are told apart by their exact spelling.
        folded = Counter(map(fold_label, self.labels))
        single = {fold: index[label] for label in self.labels if folded[fold := fold_label(label)] == 1}
        object.__setattr__(self, "_folded", single)

    def encode(self, label: str | None) -> int:
        """Return the class index of `label`, `UNLABELLED` for none, `OUT_OF_VOCABULARY` for an unknown one.

        Another spelling of a label (`fold_label`) is that label: another table may spell it so.
        """
        if not label:
            return UNLABELLED
        known = self._index.get(label)
        return self._folded.get(fold_label(label), OUT_OF_VOCABULARY) if known is None else known


def build_tasks(
    labels: Iterable[Mapping[str, str]], attributes: Sequence[str], *, min_label_count: int
) -> tuple[tuple[Task, ...], dict[str, dict[str, int]]]:
    """Build one task per attribute from the labels of the training part.

    Returns the tasks, their labels sorted, and per attribute the labels that occur fewer than
    `min_label_count` times, with their counts: they are left out of the vocabulary.
    Raises `CatalogueError` when an attribute keeps fewer than two labels.
    """
    counts: dict[str, Counter[str]] = {attribute: Counter() for attribute in attributes}
    for row in labels:
        for attribute in attributes:
            if label := row.get(attribute):
                counts[attribute][label] += 1
    tasks, rare = [], {}
    for attribute, count in counts.items():
        kept = sorted(label for label, n in count.items() if n >= min_label_count)
        if len(kept) < 2:
            raise CatalogueError(
                f"attribute {attribute!r} has {len(kept)} labels with at least {min_label_count} "
                "training listings; at least two are needed (lower min_label_count, or leave the attribute out)"
            )
        tasks.append(Task(name=attribute, labels=tuple(kept)))
        rare[attribute] = {label: n for label, n in sorted(count.items()) if n < min_label_count}
    return tuple(tasks), rare
