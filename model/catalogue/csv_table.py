"""CSV of any separator to records: quoted fields of any length, and rows repaired only where that is certain.

Certain is little. Commas that nobody quoted can be put together again where the last column is the title and every
other cell holds what that column holds elsewhere in the table. A stray quote is taken literally where the lines after
it are rows for sure. Everything else is a row with an error, and no text ever becomes a row of its own.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import IO

from model.catalogue.cells import Record, Wanted, find_columns, plain_name
from model.catalogue.formulas import from_cell
from model.errors import CatalogueError
from model.stores import Place

MAX_RECORD = 1 << 24
"""Characters that one record may have; a quote that stays open longer is taken for a stray one."""

SEPARATORS = (",", ";", "\t", "|")

_HEAD = 1 << 16
"""Characters in which the header is looked for."""

_LOOK_AHEAD = 2000
"""Records that are read before the first one is returned, to know what sound rows look like."""

_LEARNED = 100_000
"""Sound rows that are learned from."""

_MAX_VALUES = 10_000
"""Different values that are remembered of a column."""

_CHECKED_LINES = 20
"""Lines after a stray quote that must be rows before it is taken literally."""

_HINT = re.compile(r'"?sep=(.)"?\W*', re.IGNORECASE | re.DOTALL)


def read_csv(path: Place, open_file: Callable[[], IO[str]], wanted: Wanted) -> tuple[str, Iterator[Record]]:
    """Return the separator and the records, lazily; files are opened as text with line ends as they are.

    Raises `CatalogueError` for a header that lacks a column.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
    with open_file() as text:
        head = text.readlines(_HEAD)
    skipped, delimiter = _hint(head)
    delimiter = wanted.delimiter or delimiter or detect_separator(head[skipped:], wanted.columns)
    find_columns(path, wanted.columns, _header(path, _Lines(head[skipped:], skipped), delimiter))
    return delimiter, _records(path, open_file, skipped, delimiter, wanted)


def _records(
    path: Place,
    open_file: Callable[[], IO[str]],
    skipped: int,
    delimiter: str,
    wanted: Wanted,
) -> Iterator[Record]:
    with open_file() as text:
        lines = _Lines(islice(text, skipped, None), skipped)
        header = _header(path, lines, delimiter)
        positions = find_columns(path, wanted.columns, header)
        yield from _Parser(lines, len(header), delimiter, positions, wanted).records()


# --- the header --------------------------------------------------------------------------------------------


def _hint(head: Sequence[str]) -> tuple[int, str | None]:
    """Return the lines before the header, and the separator that Excel's line `sep=;` names."""
    skipped = next((n for n, line in enumerate(head) if line.strip("\ufeff \t\r\n")), 0)
    line = head[skipped].strip("\ufeff\r\n") if head else ""
    if hint := _HINT.fullmatch(line):
        return skipped + 1, hint[1]
    return skipped, None


def detect_separator(head: Sequence[str], columns: Sequence[str]) -> str:
    """Return the separator that makes the columns wanted of a header, most of them where none makes all."""
    names = {plain_name(column) for column in columns}
    own = [each for each in dict.fromkeys("".join(head[:1])) if not each.isalnum() and each not in " \"'_-.\r\n\ufeff"]

    def rank(separator: str) -> tuple[int, int]:
        cells = [plain_name(cell) for cell in _first_record(head, separator)]
        return len(names.intersection(cells)), len(cells)

    return max(dict.fromkeys((*SEPARATORS, *own)), key=rank, default=",")


def _first_record(lines: Iterable[str], separator: str) -> list[str]:
    try:
        return next((cells for cells in csv.reader(lines, delimiter=separator) if any(cells)), [])
    except csv.Error:
        return []


def _header(path: Place, lines: _Lines, delimiter: str) -> list[str]:
    try:
        header = next(csv.reader(lines, delimiter=delimiter), [])
    except (csv.Error, _TooLongError) as error:
        raise CatalogueError(f"the header of {path} cannot be read: {error}") from None
    return [from_cell(cell.strip("\ufeff")) for cell in header]


# --- records -----------------------------------------------------------------------------------------------


class _TooLongError(Exception):
    """A record has more characters than `MAX_RECORD`."""


class _Lines(Iterator[str]):
    """Lines that can be given back. `taken`: those since the last `begin`; `number`: how many came before them."""

    def __init__(self, lines: Iterable[str], number: int) -> None:
        self._lines, self._given_back = iter(lines), deque[str]()
        self.taken: list[str] = []
        self.number, self._size = number, 0

    def __next__(self) -> str:
        line = self._next()
        self.taken.append(line)
        self._size += len(line)
        if self._size > MAX_RECORD:
            raise _TooLongError(f"a record has more than {MAX_RECORD:,} characters")
        return line

    def _next(self) -> str:
        return self._given_back.popleft() if self._given_back else next(self._lines)

    def begin(self) -> None:
        """Begin the next record."""
        self.number += len(self.taken)
        self.taken, self._size = [], 0

    def look_ahead(self, count: int) -> None:
        """Take lines until there are `count`, or no more."""
        while len(self.taken) < count:
            try:
                self.taken.append(self._next())
            except StopIteration:
                return

    def give_back(self, first: int) -> None:
        """Give back the lines taken from `first` on."""
        self._given_back.extendleft(reversed(self.taken[first:]))
        del self.taken[first:]


class _Parser:
    """Records of a CSV table after its header."""

    def __init__(self, lines: _Lines, width: int, delimiter: str, positions: dict[str, int], wanted: Wanted) -> None:
        self._lines, self._delimiter, self._positions = lines, delimiter, positions
        self._width, self._id = width, positions[wanted.id]
        self._reader = csv.reader(lines, delimiter=delimiter, strict=True)
        self._ends_in_title = wanted.title is not None and positions[wanted.title] == self._width - 1
        self._sound = _SoundRows(self._width, self._id)
        self._lost: list[str] | None = None
        """The last record where its end was not found: what follows may still be text of its own."""

    def records(self) -> Iterator[Record]:
        """Yield every record; the first ones are read ahead, so that rows before the first sound one can be judged."""
        found = self._found()
        ahead = []
        for record in islice(found, _LOOK_AHEAD):
            ahead.append(record)
            if record[2] is None and len(record[1]) == self._width:
                self._sound.learn(record[1])
        for line, cells, error, mended in ahead:
            yield self._record(line, cells, error, mended)
        for line, cells, error, mended in found:
            if error is None and len(cells) == self._width:
                self._sound.learn(cells)
            yield self._record(line, cells, error, mended)

    def _record(self, line: int, cells: list[str], error: str | None, mended: bool) -> Record:
        if error is None and len(cells) < self._width:
            error = "too few fields"
        elif error is None and len(cells) > self._width:
            last = self._width - 1
            if self._ends_in_title and self._sound.fits(cells[: self._width]):
                cells[last:] = [self._delimiter.join(cells[last:])]
                mended = True
            else:
                error = "too many fields"
        named = {column: from_cell(cells[at]) for column, at in self._positions.items() if at < len(cells)}
        return Record(line, named, mended and not error, error)

    def _found(self) -> Iterator[tuple[int, list[str], str | None, bool]]:
        """Yield (number of the first line, cells, error, repaired) of each record."""
        while True:
            self._lines.begin()
            error, mended = None, False
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except (csv.Error, _TooLongError):
                cells, error, mended = self._malformed()
            taken = self._lines.taken
            if len(taken) == 1 and not taken[0].strip():
                continue
            if self._lost is not None and not self._is_row(cells, self._lost):
                self._lines.give_back(1)
                continue
            self._lost = None if error is None else cells
            yield self._lines.number + 1, cells, error, mended

    # --- stray quotes --------------------------------------------------------------------------------------

    def _malformed(self) -> tuple[list[str], str | None, bool]:
        """Return (cells, error, repaired) of a record with wrong quotes, and leave off where the next one begins."""
        taken = self._lines.taken
        cells = self._one_line(taken[0])
        if cells is not None:  # quotes inside a field that closes on its line: `"Quoted" start`
            self._lines.give_back(1)
            return cells, None, False
        cells = taken[0].rstrip("\r\n").split(self._delimiter)
        self._lines.look_ahead(_CHECKED_LINES + 1)
        following = [line for line in taken[1 : _CHECKED_LINES + 1] if line.strip()]
        if len(cells) == self._width and all(self._begins_row(line, cells) for line in following):
            self._lines.give_back(1)
            return cells, None, True
        start = next((n for n in range(1, len(taken)) if self._begins_row(taken[n], cells)), len(taken))
        self._lines.give_back(start)
        return cells, "a quote is never closed", False

    def _begins_row(self, line: str, before: Sequence[str]) -> bool:
        cells = self._one_line(line)
        if cells is None:  # its own quote is open: judged by its id alone
            at = slice(self._id, self._id + 1)
            return self._sound.has_id(line.split(self._delimiter)[at], before[at])
        return self._is_row(cells, before)

    def _is_row(self, cells: Sequence[str], before: Sequence[str]) -> bool:
        at = slice(self._id, self._id + 1)
        return len(cells) == self._width and self._sound.has_id(cells[at], before[at])

    def _one_line(self, line: str) -> list[str] | None:
        """Return the cells of a line by itself; None where a quote is open at its end."""
        if line.count('"') % 2:
            return None
        try:
            rows = list(csv.reader([line], delimiter=self._delimiter))
        except csv.Error:
            return None
        return rows[0] if rows else []


class _SoundRows:
    """What the columns hold in rows that are as wide as the header."""

    def __init__(self, width: int, id_at: int) -> None:
        self._id, self._rows = id_at, 0
        self._values: list[set[str] | None] = [set() for _ in range(width - 1)]
        self._kinds: list[set[str]] = [set() for _ in range(width)]
        self._spaced = False

    def learn(self, cells: Sequence[str]) -> None:
        """Remember what a sound row holds."""
        if self._rows == _LEARNED:
            return
        self._rows += 1
        self._spaced = self._spaced or any(cell.startswith(" ") for cell in cells)
        for at, values in enumerate(self._values):
            cell = cells[at]
            if at == self._id or values is None or cell not in values:
                self._kinds[at].update(_kinds(cell))
                if values is not None and at != self._id:
                    values.add(cell)
                    if len(values) > _MAX_VALUES:
                        self._values[at] = None
        if self._id == len(self._values):
            self._kinds[self._id].update(_kinds(cells[self._id]))

    def fits(self, cells: Sequence[str]) -> bool:
        """Whether all cells but the last are what their columns hold, so that nothing has been shifted."""
        if not self._spaced and any(cell.startswith(" ") for cell in cells):
            return False  # a space after a comma: the sentence goes on, in the column before
        return not self._rows or all(self._is_known(at, cell) for at, cell in enumerate(cells[:-1]))

    def _is_known(self, at: int, cell: str) -> bool:
        values = self._values[at]
        if at != self._id and values is not None and cell in values:
            return True
        # A new code or number is like the others of its column; a new word may be anything.
        kinds = _kinds(cell)
        return (at == self._id or "9" in kinds) and " " not in kinds and kinds <= self._kinds[at]

    def has_id(self, cells: Sequence[str], otherwise: Sequence[str]) -> bool:
        """Whether the cell, an id, is made of the kinds of characters that ids are made of.

        `otherwise` begins with an id to compare with while there is no sound row.
        """
        known = self._kinds[self._id] or _kinds("".join(otherwise[:1]))
        kinds = _kinds("".join(cells))
        return bool(kinds) and kinds <= known


def _kinds(text: str) -> set[str]:
    return {"a" if each.isalpha() else "9" if each.isdecimal() else each for each in text}
