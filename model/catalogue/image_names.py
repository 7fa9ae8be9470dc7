"""Image names as tables have them: which image of a folder, a zip file or the web a row means.

What can be meant only one way is understood: another case or Unicode form, backslashes, a path from the root of the
folder's disk, a single folder at the top of a zip, an id that became `1.0`, several images in a cell. A name is never
guessed: where two files differ in case alone, only the exact one counts.
"""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

from model.catalogue.config import template_columns
from model.catalogue.image_store import FetchedImages, FolderImages, Images, RemoteImages, ZipImages, is_url
from model.catalogue.words import Placeholders, as_list
from model.catalogue.zip_directory import FoldedNames
from model.stores import is_remote

_CACHED_FOLDERS = 64

_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")

_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")

_SUFFIXED = re.compile(r".*\.\w{3,4}", re.DOTALL)

_SEVERAL = re.compile(r"[|;,\n]")
_SEVERAL_URLS = re.compile(r"[|\n]|[;,\s](?=\s*(?:https?:)?//)")


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images that a row means, in its order, and the first path that was tried where there is none.

    Without either the row names no image. `outside`: its path leaves the folder. `unseen`: the first one has not been
    looked for.
    """

    names: tuple[str, ...] = ()
    missing: str | None = None
    outside: bool = False
    unseen: bool = False


class ImageFinder:
    """Finds the images of rows: the template filled in, then what the result can mean."""

    def __init__(
        self, images: Images, template: str, separators: Mapping[str, str], placeholders: Placeholders
    ) -> None:
        self._images = images
        local = images.local if isinstance(images, FetchedImages) else images
        self._zip = local if isinstance(local, ZipImages) else None
        self._folder = local if isinstance(local, FolderImages) else None
        self._remote = local if isinstance(local, RemoteImages) else None
        self._parts = list(string.Formatter().parse(template))
        self._columns = template_columns(template)
        self._only = self._columns[0] if template == f"{{{self._columns[0]}}}" else None
        self._separator = separators.get(self._columns[0]) if self._only else None
        self._placeholders = placeholders
        self._indices: dict[str, dict[str, str | None]] = {}

    def find(self, values: Mapping[str, str]) -> FoundImages:
        """Return the images of a row."""
        cells = {column: values[column] for column in self._columns}
        if any(not cell or cell in self._placeholders for cell in cells.values()):
            return FoundImages()
        names = self._several(cells[self._only]) if self._only else [self._fill(cells)]
        found = [known for name in names if (known := self._resolve(name)) is not None]
        if not found:
            whole = {column: _WHOLE_FLOAT.sub(r"\1", cell) for column, cell in cells.items()}
            if whole != cells and (known := self._resolve(self._fill(whole))) is not None:
                found = [known]
        if found:
            unseen = self._remote is not None and self._remote.is_taken_to_be_there(found[0])
            return FoundImages(tuple(dict.fromkeys(found)), unseen=unseen)
        return FoundImages(missing=names[0], outside=not any(map(_stays_inside, self._readings(names[0]))))

    def _fill(self, cells: Mapping[str, str]) -> str:
        # Not str.format: a column called "a.b" or "a[0]" would be looked up as an attribute or an index.
        return "".join(text + (cells[name] if name is not None else "") for text, name, _, _ in self._parts)

    def _several(self, cell: str) -> list[str]:
        """Return the names in a cell: it is one name where there is such an image."""
        if (names := as_list(cell)) is not None:
            return names or [cell]
        if self._separator:
            return [part for each in cell.split(self._separator) if (part := each.strip())] or [cell]
        if self._remote is None and cell in self._images and not is_url(cell):
            return [cell]
        parts = [part.strip() for part in (_SEVERAL_URLS if is_url(cell) else _SEVERAL).split(cell)]
        parts = [part for part in parts if part]
        if len(parts) > 1 and all(is_url(part) or _SUFFIXED.fullmatch(part) for part in parts):
            return parts
        return [cell]

    def _resolve(self, name: str) -> str | None:
        """Return the image's own name; None where there is none, or no single one."""
        if is_url(name):
            url = f"https:{name}" if name.startswith("//") else name
            return url if url in self._images else None
        readings = [each for each in self._readings(name) if _stays_inside(each)]
        for reading in readings:
            forms = () if self._remote else _FORMS  # an object has one name
            for form in dict.fromkeys((reading, *(unicodedata.normalize(each, reading) for each in forms))):
                if form in self._images:
                    return form
        for reading in readings:
            if (known := self._by_fold(reading)) is not None:
                return known
        return None

    def _readings(self, name: str) -> Iterator[str]:
        """Yield the paths that a name can mean, itself first."""
        if self._remote is not None:
            folder = f"{self._remote.folder}".rstrip("/") + "/"
            if not is_remote(name) or name.startswith(folder):  # credentials are for this folder alone
                yield name.removeprefix(folder).removeprefix("./")
            return
        yield name
        path = name.replace("\\", "/")
        if self._folder is not None and path.startswith("/"):
            for root in (os.path.abspath(self._folder.folder), os.path.realpath(self._folder.folder)):
                if path.startswith(root + "/"):
                    yield path[len(root) + 1 :]
        path = "/".join(part for part in path.split("/") if part not in ("", ".")) if path[:1] != "/" else path
        if path != name:
            yield path
        if self._top and not path.startswith("/"):
            yield f"{self._top}/{path}"

    @cached_property
    def _top(self) -> str | None:
        """The only folder at the top, where all images are below it."""
        if self._zip is not None:
            tops: set[str | None] = set()
            for name in self._zip.directory:
                if not name.startswith((".", "__MACOSX/")):
                    tops.add(name.partition("/")[0] if "/" in name else None)
                if len(tops) > 1:
                    break
        elif self._folder is not None:
            with os.scandir(self._folder.folder) as entries:
                shown = (entry for entry in entries if not entry.name.startswith((".", "__MACOSX")))
                tops = {entry.name if entry.is_dir() else None for entry in islice(shown, 2)}
        else:
            return None
        return tops.pop() if len(tops) == 1 else None

    # --- another case --------------------------------------------------------------------------------------

    def _by_fold(self, name: str) -> str | None:
        folder, _, file = name.rpartition("/")
        if self._zip is not None:
            return self._folded_members.get(_folded(name))
        if self._folder is None:
            return None
        if folder not in self._indices:
            try:
                files = os.listdir(os.path.join(self._folder.folder, folder))
            except (OSError, ValueError):
                files = []
            self._index(folder, files)
        known = self._indices[folder].get(_folded(file))
        return None if known is None else f"{folder}/{known}" if folder else known

    @cached_property
    def _folded_members(self) -> FoldedNames:
        assert self._zip is not None, "only asked for where the images are a zip"
        return self._zip.directory.by(_folded)

    def _index(self, folder: str, names: Iterable[str]) -> Mapping[str, str | None]:
        if folder not in self._indices:
            if len(self._indices) >= _CACHED_FOLDERS:
                self._indices.clear()
            index: dict[str, str | None] = {}
            for name in names:
                folded = _folded(name)
                index[folded] = None if folded in index else name
            self._indices[folder] = index
        return self._indices[folder]


def _folded(name: str) -> str:
    folded = unicodedata.normalize("NFC", name).casefold()
    return f"{folded[:-5]}.jpg" if folded.endswith(".jpeg") else folded


def _stays_inside(name: str) -> bool:
    return not name.startswith("/") and not (".." in name and ".." in name.split("/")) and "\0" not in name
