"""Cells of CSV files that a spreadsheet takes for text, whatever a shop's ids, labels and titles begin with.

A spreadsheet computes a cell that begins with `=`, `+`, `-` or `@`, and so runs what somebody wrote into a title
(https://owasp.org/www-community/attacks/CSV_Injection). Such a cell is written with an apostrophe before it, which
spreadsheets take as "this is text". Numbers are left alone: computing `-5` gives -5.
"""

from __future__ import annotations

import re

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""What a cell begins with that must not be written as it is; apostrophes before it are counted, so that each is read
back as it was."""

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def to_cell(text: str) -> str:
    """Return a text as a cell of a CSV file; `from_cell` returns it again."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """Return the text that a cell stands for."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
