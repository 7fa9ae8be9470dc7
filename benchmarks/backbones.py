"""Which image tower learns most from so few and so small pictures, and what it costs: the choice of `cma-small`.

    python -m benchmarks.backbones [--epochs 3] [--runs runs/backbones] [--out FILE]

Trains each image tower alone, from random weights, on the train part of a catalogue: same batches, same rate,
same number of steps. Accuracy is the mean over attributes on the validation part. Milliseconds a listing are those
of the tower alone at batch 32, the towers run in turn within each round; `ratio` is against the first tower.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from model.backbone import build_backbone
from model.catalogue import Catalogue
from model.checkpoint import load_checkpoint
from model.config import override, small_training
from model.errors import ModelError
from model.train import initial_model, train

TOWERS = ("cma-tiny", "cma-small")
IMAGE_ALONE = {"weights.both": "0", "weights.title": "0"}
# A convolutional tower from random weights takes a larger rate than a whole network; so few steps, a shorter average.
FROM_SCRATCH = {"optimiser.learning_rate": "3e-3", "optimiser.backbone_rate": "1.0", "ema_decay": "0.99"}
FASHION = Path(__file__).with_name("fashion.toml")
ROUNDS = 20
BATCH = 32

console = Console()


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one tower came to; `milliseconds` by number format."""

    backbone: str
    parameters: int
    seconds: float
    accuracy: float
    milliseconds: Mapping[str, float]


def image_tower(backbone: str) -> nn.Module:
    """Build an image tower with random weights, ready to run."""
    model = initial_model(backbone, None)
    towers = build_backbone(
        model.backbone, image_size=model.preprocess.image_size, context_length=model.preprocess.context_length
    )
    return towers.image.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def milliseconds(backbones: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the median milliseconds that a listing takes, by tower and number format."""
    variants = []
    for backbone in backbones:
        height, width = initial_model(backbone, None).preprocess.image_size
        for dtype in (torch.float32, torch.bfloat16):
            pictures = torch.rand(BATCH, 3, height, width).to(dtype, memory_format=torch.channels_last)
            variants.append((backbone, str(dtype).removeprefix("torch."), image_tower(backbone).to(dtype), pictures))
    times: dict[str, dict[str, list[float]]] = {backbone: {} for backbone in backbones}
    for counted in (False, *[True] * ROUNDS):
        for backbone, dtype, tower, pictures in variants:
            began = time.perf_counter()
            tower(pictures)
            if counted:
                times[backbone].setdefault(dtype, []).append((time.perf_counter() - began) / BATCH * 1000)
    return {
        backbone: {dtype: statistics.median(each) for dtype, each in by_dtype.items()}
        for backbone, by_dtype in times.items()
    }


def learn(catalogue: Catalogue, backbone: str, runs: Path, epochs: int) -> tuple[float, float]:
    """Train one tower alone; return its validation accuracy and the seconds that took."""
    config = override(small_training(), IMAGE_ALONE | FROM_SCRATCH | {"optimiser.epochs": str(epochs)})
    began = time.perf_counter()
    folder = train(
        catalogue, runs / backbone, name=backbone, model=initial_model(backbone, None), config=config, console=console
    )
    return load_checkpoint(folder).training["validation"]["image"], time.perf_counter() - began


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"image towers alone, {torch.get_num_threads()} threads")
    for heading in ("tower", "parameters, M", "accuracy %", "training s", "ms fp32", "ms bf16", "ratio bf16"):
        table.add_column(heading, justify="left" if heading == "tower" else "right")
    reference = rows[0].milliseconds["bfloat16"]
    for row in rows:
        table.add_row(
            row.backbone,
            f"{row.parameters / 1e6:.1f}",
            f"{100 * row.accuracy:.1f}",
            f"{row.seconds:.0f}",
            f"{row.milliseconds['float32']:.2f}",
            f"{row.milliseconds['bfloat16']:.2f}",
            f"{row.milliseconds['bfloat16'] / reference:.2f}",
        )
    console.print(table)


def main(
    *,
    catalogue: Annotated[Path, typer.Option(help="the catalogue's TOML file")] = FASHION,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    runs: Annotated[Path, typer.Option(help="where the runs are kept, and resumed")] = Path("runs/backbones"),
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Compare the image towers."""
    try:
        listings = Catalogue.open(catalogue)
        learnt = {backbone: learn(listings, backbone, runs, epochs) for backbone in TOWERS}
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(2) from None
    cost = milliseconds(TOWERS)
    rows = [
        Row(
            backbone=backbone,
            parameters=sum(p.numel() for p in image_tower(backbone).parameters()),
            seconds=round(seconds, 1),
            accuracy=accuracy,
            milliseconds=cost[backbone],
        )
        for backbone, (accuracy, seconds) in learnt.items()
    ]
    show(rows)
    if out:
        out.write_text(json.dumps({"epochs": epochs, "towers": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
