"""Files that are there after a power cut, under their names and with their content, or not there at all."""

from __future__ import annotations

import os
from pathlib import Path


def replace_durably(temporary: Path, path: Path) -> Path:
    """Give a finished file or folder its name, replacing a file of that name, and return it.

    What is in it reaches the disk before the name does, else a power cut could keep the name and lose the content; and
    the name does before this returns. Raises `OSError`.
    """
    for each in temporary.iterdir() if temporary.is_dir() else ():
        _sync(each)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)
    return path


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
