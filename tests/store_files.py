"""What the store's files promise, wherever they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.store.files import Files


def check_whole_or_not_at_all(files: Files, names: Callable[[], list[str]]) -> None:
    """Write half of the file `a/b`, then all of it; names: of what is there, found without `files`."""

    def fail() -> None:
        with files.write("a/b") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(FileNotFoundError):
        files.read_bytes("a/b")
    assert names() == []
    files.write_bytes("a/b", b"whole")
    assert files.read_bytes("a/b") == b"whole"
    assert names() == ["a/b"]
