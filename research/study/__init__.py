"""The study: the paper's comparisons on any catalogue, each figure with an interval.

    python -m research.study run --init runs/towers/checkpoint --runs runs/study
    python -m research.study report

A run passes through `runs` (what is trained) -> `networks` -> `model.training` -> `answers` (the network's outputs on
the test part, clean and under `corruptions`) -> `cells` (figures with intervals, one JSON file per run) -> `report`.
"""
