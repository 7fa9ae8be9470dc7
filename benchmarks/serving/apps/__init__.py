"""The same checkpoint behind each framework, set up as its documentation recommends; a module each.

Each is a program: `python -m benchmarks.serving.apps.NAME PORT`, run in the framework's own environment.
"""

CHECKPOINT, ENGINE = "BENCH_CHECKPOINT", "BENCH_ENGINE"
"""Environment variables: they reach the processes that frameworks start, too."""
