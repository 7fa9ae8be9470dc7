"""The model card: README.md of a checkpoint. Its results are written by `cma-clip evaluate`, its prose by hand."""

from __future__ import annotations

from pathlib import Path

from model.checkpoint.folder import Checkpoint, write_text

BEGIN, END = "<!-- results: written by cma-clip evaluate -->", "<!-- end of results -->"

TEMPLATE = """# {name}

Predicts {attributes} from a product's image, its title, or both, by CMA-CLIP (arXiv:2112.03562).

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
images need a calibration of their own. Say here what else the model should not be used for.

## Licence

Say here under which licence the weights, and the data, may be used.
"""


def update_card(checkpoint: Checkpoint, results: str) -> Path:
    """Put `results`, in Markdown, between the card's markers, below the version; begin the card where there is none.

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
    write_text(path, f"{before}{BEGIN}\n\nVersion `{checkpoint.version}`. {results}\n{END}{after}")
    return path
