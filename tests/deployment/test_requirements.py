"""The list of files with hashes says what pip would install, and nothing that it cannot vouch for."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.requirements import requirements


def installed(name: str, version: str, **download: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version}, "download_info": download}


def test_each_file_has_its_hash_and_the_project_is_left_out() -> None:
    report = {
        "install": [
            installed("cma-clip", "1", dir_info={}),
            installed("torch", "2.1", archive_info={"hashes": {"sha256": "ab"}}),
            installed("Pillow", "11", archive_info={"hashes": {"sha256": "cd"}}),
        ]
    }
    assert list(requirements(report)) == ["Pillow==11 --hash=sha256:cd", "torch==2.1 --hash=sha256:ab"]


def test_a_file_without_a_hash_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no SHA-256 of torch 2\.1"):
        list(requirements({"install": [installed("torch", "2.1", archive_info={})]}))
