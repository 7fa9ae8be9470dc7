"""Benchmarks of speed, memory, capacity, baselines, and of what is accepted."""

from pathlib import Path

FASHION = Path(__file__).with_name("fashion.toml")
"""The catalogue that benchmarks run on by default."""
