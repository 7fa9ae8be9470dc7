"""The paper's claim where titles don't tell: a catalogue whose titles are robbed of telling words, and a comparison.

    python -m research.untold_titles catalogue benchmarks/fashion.toml --strength middle --out runs/untold/middle
    python -m research.untold_titles run --runs runs/untold
    python -m research.untold_titles report

`words` (which words tell a label) -> `catalogues` (tables and images that are written) -> `plan` (what is trained, from
`protocol.toml`) -> `networks`, `encoded`, `study` (on the machinery of `research.study`) -> `diagnosis` (why) ->
`report` (docs/results.md).
"""
