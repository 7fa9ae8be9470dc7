"""Attributes as classification tasks, their label vocabularies, and how a listing's labels become numbers.

An attribute is single-valued (a listing has one of its labels) or multi-valued (it has any of them).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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

    Raises `ConfigError` when the labels are fewer than two or not unique, or hold the separator.
    """

    name: str
    labels: tuple[str, ...]
    separator: str | None = None
    """What stands between the labels of a listing where the attribute is multi-valued; None where it has one label."""
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict, compare=False)
    """Per label, where people gave any: its name by language tag (`de`), and a `description`. Nothing is computed from
    them."""
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _folded: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ConfigError(f"attribute {self.name!r} needs at least two labels, it has {len(self.labels)}")
        index = {label: position for position, label in enumerate(self.labels)}
        if len(index) != len(self.labels):
            raise ConfigError(f"attribute {self.name!r} lists a label twice")
        if self.separator is not None and (not self.separator or any(self.separator in label for label in index)):
            raise ConfigError(f"attribute {self.name!r} has a label with its separator {self.separator!r} inside")
        if unknown := [label for label in self.names if label not in index]:
            raise ConfigError(f"attribute {self.name!r} has no label {unknown[0]!r} to be named")
        object.__setattr__(self, "_index", index)
        # Labels that differ in spelling alone are told apart by their exact spelling.
        folded = Counter(map(fold_label, self.labels))
        single = {fold: index[label] for label in self.labels if folded[fold := fold_label(label)] == 1}
        object.__setattr__(self, "_folded", single)

    @property
    def multi_valued(self) -> bool:
        """Whether a listing may have several labels: each label is then a question of its own, yes or no."""
        return self.separator is not None

    def encode(self, label: str | None) -> int:
        """Return the class index of `label`, `UNLABELLED` for none, `OUT_OF_VOCABULARY` for an unknown one.

        Another spelling of a label (`fold_label`) is that label: another table may spell it so.
        """
        if not label:
            return UNLABELLED
        known = self._index.get(label)
        return self._folded.get(fold_label(label), OUT_OF_VOCABULARY) if known is None else known

    def encode_set(self, labels: Iterable[str]) -> tuple[frozenset[int], int]:
        """Return the class indices of a listing's labels, and how many further ones are out of the vocabulary."""
        found = [self.encode(label) for label in dict.fromkeys(labels)]
        return frozenset(index for index in found if index >= 0), found.count(OUT_OF_VOCABULARY)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads back as an equal task."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            **({"separator": self.separator} if self.separator is not None else {}),
            **({"names": {label: dict(names) for label, names in self.names.items()}} if self.names else {}),
        }

    @classmethod
    def from_json(cls, attribute: Mapping[str, Any]) -> Task:
        """Read what `to_json` returns. Raises `ConfigError`, or `KeyError` or `TypeError` where it is none."""
        name, labels, separator = attribute["name"], attribute["labels"], attribute.get("separator")
        if not isinstance(labels, list):
            raise ConfigError(f"the labels of {name!r} are not a list")
        if separator is not None and not isinstance(separator, str):
            raise ConfigError(f"the separator of {name!r} is not a text")
        names = attribute.get("names", {})
        if not isinstance(names, dict) or not all(is_label_name(each) for each in names.values()):
            raise ConfigError(f"the label names of {name!r} are no texts by language")
        return cls(name=name, labels=tuple(map(str, labels)), separator=separator, names=names)


_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def is_label_name(value: object) -> bool:
    """Whether `value` says what people call a label: texts by language tag (RFC 5646), and maybe a `description`."""
    return isinstance(value, dict) and all(
        isinstance(text, str) and text.strip() and (key == "description" or _LANGUAGE.fullmatch(key))
        for key, text in value.items()
    )


def multi_valued_places(tasks: Sequence[Task]) -> frozenset[int]:
    """Return the places of the multi-valued attributes among `tasks`."""
    return frozenset(place for place, task in enumerate(tasks) if task.multi_valued)


# --- a listing's labels as a row of whole numbers ------------------------------------------------------------


def label_columns(tasks: Sequence[Task]) -> tuple[slice, ...]:
    """Return each attribute's columns in a row of `encode_row`: one, or one for each label where it is multi-valued."""
    stops = list(itertools.accumulate((len(task.labels) if task.multi_valued else 1 for task in tasks), initial=0))
    return tuple(slice(start, stop) for start, stop in itertools.pairwise(stops))


def encode_row(tasks: Sequence[Task], labels: Mapping[str, str], label_sets: Mapping[str, Sequence[str]]) -> list[int]:
    """Return a listing's labels as whole numbers, by the columns of `label_columns`.

    labels: those of single-valued attributes, as `Task.encode` gives them. label_sets: those of multi-valued ones, 1
    for each label that the listing has and 0 for the others; `UNLABELLED` throughout where it has no set. A label out
    of the vocabulary changes nothing: the listing still lacks the labels that are known and not in its set.
    """
    row: list[int] = []
    for task in tasks:
        if not task.multi_valued:
            row.append(task.encode(labels.get(task.name)))
        elif task.name in label_sets:
            found, _ = task.encode_set(label_sets[task.name])
            row += [int(index in found) for index in range(len(task.labels))]
        else:
            row += [UNLABELLED] * len(task.labels)
    return row


def build_tasks(
    labels: Iterable[Mapping[str, str | Sequence[str]]],
    attributes: Sequence[str],
    *,
    min_label_count: int,
    separators: Mapping[str, str] | None = None,
    names: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None,
) -> tuple[tuple[Task, ...], dict[str, dict[str, int]]]:
    """Build one task per attribute from the labels of the training part.

    separators: of the multi-valued attributes, each listing's labels of which are a sequence. names: of some labels, by
    attribute; those of labels out of the vocabulary are left out. Returns the tasks, their labels sorted, and per
    attribute the labels that occur fewer than `min_label_count` times, with their counts: they are left out of the
    vocabulary.
    Raises `CatalogueError` when an attribute keeps fewer than two labels.
    """
    counts: dict[str, Counter[str]] = {attribute: Counter() for attribute in attributes}
    for row in labels:
        for attribute in attributes:
            if found := row.get(attribute):
                counts[attribute].update([found] if isinstance(found, str) else set(found))
    tasks, rare = [], {}
    for attribute, count in counts.items():
        kept = sorted(label for label, n in count.items() if n >= min_label_count)
        if len(kept) < 2:
            raise CatalogueError(
                f"attribute {attribute!r} has {len(kept)} labels with at least {min_label_count} "
                "training listings; at least two are needed (lower min_label_count, or leave the attribute out)"
            )
        tasks.append(
            Task(
                name=attribute,
                labels=tuple(kept),
                separator=(separators or {}).get(attribute),
                names={label: each for label, each in (names or {}).get(attribute, {}).items() if label in kept},
            )
        )
        rare[attribute] = {label: n for label, n in sorted(count.items()) if n < min_label_count}
    return tuple(tasks), rare
