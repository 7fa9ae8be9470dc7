"""Runs where nothing can be written: on a read-only file system without a temporary folder."""

from __future__ import annotations

import os
import tempfile


def expect_no_temporary_folder() -> None:
    """Let PyTorch be imported although no temporary folder can be written.

    As it is imported, it makes a folder for what it compiles. Nothing is compiled here, so that any folder will do.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)
