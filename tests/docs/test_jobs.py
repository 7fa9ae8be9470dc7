"""What docs/jobs.md tells receivers of callbacks is so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.jobs.callbacks import signed

PAGE = Path(__file__).parents[2] / "docs" / "jobs.md"
SECRET = "a secret of the shop"  # noqa: S105 - of tests


def test_the_lines_that_verify_a_signature_do() -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines, names)  # noqa: S102 - what the page tells people to run
    is_genuine: Callable[[str, dict[str, str], bytes], bool] = names["is_genuine"]
    now = int(time.time())
    headers = signed(SECRET, b'{"id": "1"}', now)
    assert is_genuine(SECRET, headers, b'{"id": "1"}')
    assert not is_genuine(SECRET, headers, b'{"id": "2"}')
    assert not is_genuine("another secret of another", headers, b'{"id": "1"}')
    assert not is_genuine(SECRET, {**headers, "X-CMA-CLIP-Timestamp": str(now + 1)}, b'{"id": "1"}')
    assert not is_genuine(SECRET, signed(SECRET, b"", now - 3600), b"")
