"""What docs/jobs.md tells receivers of callbacks is so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from docs import jobs
from service.jobs.callbacks import signed

PAGE = jobs.PAGE
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


def test_the_figures_about_jobs_are_the_measured_ones() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == jobs.with_figures(page), "run: python -m docs.jobs"


def test_figures_are_told_in_words() -> None:
    found = {
        "machine": {"processor": "a processor"}, "model": "0123", "cores": 1, "client_has_a_core": True,
        "image": "60 × 80", "seconds": 12,
        "callers": {
            "requests_per_second": 33.3, "p99_ratio": 1.125, "p99_ratios": [1.0, 1.25],
            "median_ms": {"alone": {"p50": 10, "p99": 20}, "with a job": {"p50": 11, "p99": 22.5}},
        },
        "idle": {"rows_per_second": {"job": [95.0], "label": [100.0]}, "share": 0.95},
    }  # fmt: skip
    text = jobs.measured(found)
    assert "| with a job | 11.0 | 22.5 |" in text
    assert "1.12 times that without (turn by turn from 1.00 to 1.25)" in text
    assert "a share of 0.95" in text
