"""How a catalogue is described: the `[catalogue]` table of a TOML file, read and checked."""

from __future__ import annotations

import codecs
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from model.catalogue.cells import Wanted
from model.catalogue.tables import SUFFIXES, is_table_name
from model.errors import ConfigError
from model.stores import Place, place_of
from model.tasks import is_label_name


@dataclass(frozen=True, kw_only=True)
class CatalogueConfig:
    """The `[catalogue]` table of a TOML file; its paths are relative to that file, or URLs in an object store.

    `table` is a file, a folder of files, or a pattern that several match (`part-*.parquet`).
    `image` is a template inside the folder or zip that may name any column (`images/{id}.jpg`). Rows that
    share the values of all `group` columns (letter case and white space aside) land in one part. Without `images` the
    template names URLs, or a column that holds the images themselves.

    `delimiter` and `encoding` of a text table are recognised where they are None. `separator` maps a column with
    several images, and each multi-valued attribute, to what stands between them. `product_type` is the attribute by
    which it is learned which attributes a listing cannot have (`model.catalogue.applicability`). `label_names` are what
    people call labels, by attribute, label, and language tag or `description`; in the file, the tables
    `[labels.ATTRIBUTE]`. `placeholders` are texts that stand for a missing value, besides the
    usual ones (`model.catalogue.words.PLACEHOLDERS`); none at all where it is empty. `source` says where the table and
    the images can be had, in the error where they are not there.
    """

    path: Path
    table: Place
    id: str
    title: str | None = None
    images: Place | None = None
    image: str | None = None
    group: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    min_label_count: int = 20
    delimiter: str | None = None
    encoding: str | None = None
    separator: Mapping[str, str] = field(default_factory=dict)
    placeholders: tuple[str, ...] | None = None
    product_type: str | None = None
    source: str | None = None
    label_names: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> CatalogueConfig:
        """Read the TOML file at `path`; raises `ConfigError` naming the key at fault."""
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        try:
            config = cls._from_table(path, document)
            config._check_source()
            return config
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def _from_table(cls, path: Path, document: Mapping[str, Any]) -> CatalogueConfig:
        table = document.get("catalogue")
        if not isinstance(table, dict):
            raise ConfigError("the table [catalogue] is missing")
        known = {f.name for f in fields(cls)} - {"path", "label_names"}
        if unknown := sorted({*document} - {"catalogue", "labels"}) + sorted({*table} - known):
            raise ConfigError(f"unknown key {unknown[0]!r}; [catalogue] may hold {', '.join(sorted(known))}")
        if missing := [key for key in ("table", "id") if key not in table]:
            raise ConfigError(f"{missing[0]!r} is missing from [catalogue]")
        values: dict[str, Any] = {
            "id": _text(table, "id"),
            "table": place_of(path.parent, _text(table, "table")),
            "group": _texts(table, "group", single=True),
            "attributes": _texts(table, "attributes"),
            "title": _text(table, "title") if "title" in table else None,
            "image": _text(table, "image") if "image" in table else None,
            "images": place_of(path.parent, _text(table, "images")) if "images" in table else None,
            "min_label_count": table.get("min_label_count", cls.min_label_count),
            "delimiter": _text(table, "delimiter") if "delimiter" in table else None,
            "encoding": _text(table, "encoding") if "encoding" in table else None,
            "separator": _separators(table),
            "placeholders": _texts(table, "placeholders") if "placeholders" in table else None,
            "product_type": _text(table, "product_type") if "product_type" in table else None,
            "source": _text(table, "source") if "source" in table else None,
            "label_names": _label_names(document.get("labels", {})),
        }
        return cls(path=path, **values)

    def __post_init__(self) -> None:
        if not is_table_name(self.table):
            raise ConfigError(
                f"'table' must end in {', '.join(SUFFIXES)}, or these with .gz, or be a folder of such files; "
                f"not end in {self.table.suffix!r}"
            )
        count = self.min_label_count
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"'min_label_count' must be a whole number of at least 1, not {count!r}")
        if self.images is not None and self.image is None:
            raise ConfigError("'images' (folder or zip) and 'image' (template inside it) belong together")
        if self.title is None and self.image is None:
            raise ConfigError("a catalogue needs 'title', or 'images' and 'image', or all three")
        template = template_columns(self.image) if self.image is not None else ()
        if unknown := [column for column in self.separator if column not in (*template, *self.attributes)]:
            raise ConfigError(
                f"'separator' names {unknown[0]!r}, which is neither an attribute nor a column of 'image'"
            )
        if self.product_type is not None and self.product_type not in self.attributes:
            raise ConfigError(f"'product_type' names {self.product_type!r}, which is no attribute")
        if self.product_type in self.separator:
            raise ConfigError(
                f"'product_type' names {self.product_type!r}, which may have several labels ('separator')"
            )
        if unknown := [attribute for attribute in self.label_names if attribute not in self.attributes]:
            raise ConfigError(f"[labels] names {unknown[0]!r}, which is no attribute")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ConfigError(f"'delimiter' must be one character, such as ';' or '\\t', not {self.delimiter!r}")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ConfigError(f"'encoding' names none that Python knows: {self.encoding!r}") from None

    def _check_source(self) -> None:
        """Raise `ConfigError` where the table or the images are not there, and it is said where they can be had."""
        if self.source is None:
            return
        if missing := next((path for path in (self.table, self.images) if path and not path.exists()), None):
            raise ConfigError(f"{missing} is not there. {self.source}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the table must have, each once."""
        template = template_columns(self.image) if self.image else ()
        title = (self.title,) if self.title else ()
        return tuple(dict.fromkeys((self.id, *title, *template, *self.group, *self.attributes)))

    @property
    def wanted(self) -> Wanted:
        """What is read of the table; images inside it as bytes."""
        template = template_columns(self.image) if self.image else ()
        single = template[0] if self.image and self.image == f"{{{template[0]}}}" else None
        return Wanted(
            columns=self.columns,
            id=self.id,
            title=self.title,
            lists=frozenset(self.attributes),
            image=single if single not in (self.id, self.title) else None,
            delimiter=self.delimiter,
            encoding=self.encoding,
        )

    def without_labels(self) -> CatalogueConfig:
        """Return the same catalogue to be labelled: neither attribute nor group columns are needed."""
        template = template_columns(self.image) if self.image is not None else ()
        separator = {column: each for column, each in self.separator.items() if column in template}
        return replace(self, attributes=(), group=(), separator=separator, product_type=None, label_names={})


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key!r} must be a non-empty string, not {value!r}")
    return value


def _texts(table: Mapping[str, Any], key: str, *, single: bool = False) -> tuple[str, ...]:
    value = table.get(key, [])
    if single and isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{key!r} must be a list of column names, not {value!r}")
    if len(set(value)) != len(value):
        raise ConfigError(f"{key!r} names a column twice")
    return tuple(value)


def _separators(table: Mapping[str, Any]) -> dict[str, str]:
    value = table.get("separator", {})
    if not isinstance(value, dict) or not all(isinstance(each, str) and each for each in value.values()):
        raise ConfigError(f"'separator' must be a table of column names and separators, not {value!r}")
    return value


def _label_names(value: object) -> dict[str, dict[str, dict[str, str]]]:
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise ConfigError(f"[labels] must hold a table for each attribute, [labels.ATTRIBUTE], not {value!r}")
    for attribute, names in value.items():
        for label, each in names.items():
            if not is_label_name(each):
                raise ConfigError(
                    f'[labels.{attribute}] must give {label!r} texts by language, such as {{de = "Marineblau"}}, '
                    f"and maybe a description, not {each!r}"
                )
    return value


def template_columns(template: str) -> tuple[str, ...]:
    """Return the columns an image template names; raises `ConfigError` unless it is plain `{column}`s."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"'image' is not a valid template: {error}: {template!r}") from error
    names = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if not names:
        raise ConfigError(f"'image' names no column, so every listing would share one image: {template!r}")
    if any(not name or spec or conversion for name, spec, conversion in names):
        raise ConfigError(f"'image' may hold plain {{column}} fields only: {template!r}")
    return tuple(name for name, _, _ in names)
