"""The study: the paper's comparisons on a catalogue of one's own, each figure with an interval.

    python -m research.study run --init runs/towers/checkpoint --runs runs/study
    python -m research.study report

The way of a run: `runs` (what is trained) -> `networks` -> `model.train` -> `answers` (what the network says of the
test part, clean and spoilt by `corruptions`) -> `cells` (figures with intervals, one JSON file a run) -> `report`.
"""
