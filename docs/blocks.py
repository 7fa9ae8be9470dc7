"""The blocks of a page that a command writes, each between two comments that name it."""

from __future__ import annotations


def between(page: str, name: str, text: str, *, command: str) -> str:
    """Return `page` with `text` between the markers of the block called `name`, which `python -m command` writes.

    Raises `ValueError` for a page without these markers.
    """
    begin, end = f"<!-- {name}: written by python -m {command} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
