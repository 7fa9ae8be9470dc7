"""The model card: README.md of a checkpoint. Its results are written from metrics.json, its prose by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.folder import Checkpoint, write_text
from model.evaluation.evaluate import model_card_tables

BEGIN, END = "<!-- results: written by cma-clip evaluate -->", "<!-- end of results -->"

TEMPLATE = """# {name}

Reads {attributes} off a product's image, its title, or both, by CMA-CLIP (arXiv:2112.03562).

## Data

{listings:,} training listings of `{catalogue}`. Say here where they come from, and who labelled them.

## Training

Backbone `{backbone}`, by `cma-clip train`; every setting, and what the training started from, is in `config.json` under
`training`.

## Results

{begin}
{end}

## Limits

Thresholds are certified for listings like those they were calibrated on: another assortment, other titles or other
pictures want a calibration of their own. Say here what else the model should not be used for.

## Licence

Say here under which licence the weights, and the data, may be used.
"""


def update_card(checkpoint: Checkpoint, metrics: Mapping[str, Any]) -> Path:
    """Put the figures of `metrics` between the card's markers; a card that is not there yet is begun.

    Text outside the markers is left as it is; a card without markers gets its results at the end.
    """
    path = checkpoint.folder / "README.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        text = TEMPLATE.format(
            name=checkpoint.name,
            attributes=", ".join(task.name for task in checkpoint.tasks),
            backbone=checkpoint.config.backbone_name,
            listings=checkpoint.training.get("listings", 0),
            catalogue=checkpoint.training.get("catalogue", "a catalogue"),
            begin=BEGIN,
            end=END,
        )
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        before, after = f"{text.rstrip()}\n\n## Results\n\n", "\n"
    results = f"Version `{checkpoint.version}`. {model_card_tables(metrics)}"
    write_text(path, f"{before}{BEGIN}\n\n{results}\n{END}{after}")
    return path
