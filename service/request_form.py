"""What people get wrong about the form of a request, in words that say what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

MAX_NAME = 64
"""Characters of a field's name that are repeated: an unknown field is named by the caller, at any length."""

MEANT = {
    **dict.fromkeys(("sku", "product_id", "key"), "id"),
    **dict.fromkeys(("name", "description", "text"), "title"),
    **dict.fromkeys(("picture", "photo", "img", "file", "url", "image_url", "base64", "image_base64"), "image"),
    "data": "base64",
    "threshold": "target_precision",
}
"""What names of other services are called here, where they differ too much to be recognised by their letters."""


def check_object(value: object) -> Mapping[Any, Any]:
    """Return a JSON object. Raises `ValueError` for what is none."""
    if not isinstance(value, Mapping):
        raise ValueError('a JSON object is needed, such as {"title": "…"}')
    return value


def check_fields(sent: Mapping[Any, Any], known: Collection[str]) -> None:
    """Raise `ValueError` if an object has a field that isn't known, saying which was likely meant."""
    unknown = next((str(name)[:MAX_NAME] for name in sent if name not in known), None)
    if unknown is not None:
        hint = _hint(unknown, known)
        raise ValueError(f"there is no field {unknown!r}{hint}; the fields are {', '.join(known)}")


def _hint(unknown: str, known: Collection[str]) -> str:
    if unknown == "listings":
        return " (several listings are sent to /v1/classify/batch)"
    meant = MEANT.get(unknown.lower()) or next(iter(difflib.get_close_matches(unknown.lower(), known, n=1)), None)
    return f" (did you mean {meant}?)" if meant in known else ""


def is_data_url(text: str) -> bool:
    """Whether a text is a `data:` URL: an image itself."""
    return text[:5].lower() == "data:"


def split_names(values: Iterable[str]) -> list[str] | None:
    """Return the names in form fields, each of which may hold several, separated by commas; None for none at all."""
    names = [name.strip() for value in values for name in value.split(",")]
    return [name for name in names if name] or None
