"""Prints the requirements of the service with the hash of each file, from what pip would install.

    python -m pip install --dry-run --ignore-installed --quiet --report - … | python deploy/requirements.py

`make requirements` does both. The hashes are those of this interpreter's and platform's files on the index that pip was
told of; `pip install --require-hashes` then takes these files and no others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def requirements(report: Mapping[str, Any]) -> Iterable[str]:
    """Yield a line for each distribution of pip's report, by name; those that are no files of an index are left out.

    Raises `ValueError` for a file without a SHA-256.
    """
    for item in sorted(report["install"], key=lambda item: str(item["metadata"]["name"]).lower()):
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        archive = item["download_info"].get("archive_info")
        if archive is None:  # the project itself
            continue
        if not (digest := archive.get("hashes", {}).get("sha256")):
            raise ValueError(f"the index has no SHA-256 of {name} {version}")
        yield f"{name}=={version} --hash=sha256:{digest}"


if __name__ == "__main__":
    print("# Written by `make requirements`, for the platform that it ran on; read by `pip install --require-hashes`.")
    print(*requirements(json.load(sys.stdin)), sep="\n")
