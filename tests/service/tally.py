"""Counts what the hostile tests tried, for the end of pytest's report: proof should say how much of it there is."""

from __future__ import annotations

from collections import Counter

TALLY: Counter[str] = Counter()
