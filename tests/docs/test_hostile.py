"""docs/operations.md says what hostile input was measured to take."""

from __future__ import annotations

from docs import hostile
from docs.capacity import PAGE

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_holds_what_was_measured() -> None:
    assert hostile.with_figures(TEXT, hostile.read()) == TEXT, "run: python -m docs.hostile"


def test_the_costliest_input_is_named_and_idleness_is_none() -> None:
    found = {"model": "abc", "images_at_a_time": 8, "peak_mib": {"nothing": 900.4, "a bomb": 800.0, "a GIF": 850.0}}
    said = hostile.memory(found)
    assert "idle replica took 900 MiB" in said
    assert "2 kinds" in said
    assert said.endswith("at most 850 MiB: a GIF.")
