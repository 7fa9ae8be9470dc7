"""What wrong labels do to training and calibration, and what helps: one command, `python -m research.noise`.

Hundreds of trainings fit into hours because they are of a proxy: the service's own fusion without sequence attention,
modality attention and heads, on features that no label has touched. Images pass once through an EfficientNet-Lite0 with
ImageNet weights, titles are sums of token embeddings that are learned each time. `docs/noise.md` tells the results.

| module | |
| --- | --- |
| `features` | images and titles as the proxy sees them, and their unnoticeable changes |
| `kinds` | noise: uniform, between similar labels, by annotator, by listing |
| `proxy` | the network and its training, with each remedy |
| `cells` | one training under one noise with one remedy, and what is measured of it |
| `folds` | an audit of the whole table |
| `calibration` | noise in the calibration part alone |
"""
