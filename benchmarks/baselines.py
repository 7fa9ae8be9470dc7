"""Baselines for the network: a bag of words on the title, and a plain convnet on the image.

    python -m benchmarks.baselines title --out title.json
    python -m benchmarks.baselines image --out image.json
    python -m benchmarks.baselines small --out small.json

The first two train on the train part of a catalogue and are scored on its test part. They know every label of the train
part, however rare; a test label that is not among them counts as an error. A listing without the title or image that a
baseline needs gets the most frequent label of the train part. The third compares the network itself with the first,
where there are few listings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

from benchmarks import FASHION
from benchmarks.bag_of_words import Labels, Score, TitleModel, console, encode, score
from benchmarks.small_catalogue import draws_table, measure_draw
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.device import training_precision
from model.errors import ModelError
from model.inputs.decode import decode_image
from model.progress import progress_bar
from model.tasks import UNLABELLED, Task, build_tasks

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One baseline's scores, as they are written to JSON."""

    baseline: str
    data: str
    train_listings: int
    test_listings: int
    test_without_input: int
    seconds: float
    attributes: dict[str, Score]


def majority(labels: Labels) -> Labels:
    """Return the most frequent class index of each attribute, `[T]`, of labels `[n, T]`."""
    return np.array([np.bincount(column[column >= 0]).argmax() for column in labels.T], dtype=np.int64)


Predict = Callable[
    [Catalogue, Sequence[Listing], Labels, Sequence[Listing], Sequence[Task]],
    tuple[Labels, NDArray[np.bool_]],
]
"""(catalogue, train listings, their labels `[n, T]`, test listings, tasks) -> class indices `[m, T]` of the test
listings, and a mask `[m]` of those that have the input."""


def measure(baseline: str, catalogue: Catalogue, predict: Predict) -> Result:
    """Let `predict` learn from the train part and predict the test part; score it."""
    began = time.perf_counter()
    train, test = catalogue.part(Part.TRAIN), catalogue.part(Part.TEST)
    # Labels that occur only once are known too: the test must not be easier than the network's.
    tasks, _ = build_tasks([x.labels for x in train], catalogue.config.attributes, min_label_count=1)
    labels = encode(train, tasks)
    predicted, has_input = predict(catalogue, train, labels, test, tasks)
    predicted = np.where(has_input[:, None], predicted, majority(labels))
    return Result(
        baseline=baseline,
        data=catalogue.report.table,
        train_listings=len(train),
        test_listings=len(test),
        test_without_input=int((~has_input).sum()),
        seconds=round(time.perf_counter() - began, 1),
        attributes=score(predicted, encode(test, tasks), tasks),
    )


def show(result: Result) -> None:
    """Print a result as a table."""
    table = Table(title=f"{result.baseline} baseline, {result.test_listings:,} test listings of {result.data}")
    for column in ("attribute", "labels", "rows", "accuracy %"):
        table.add_column(column, justify="left" if column == "attribute" else "right")
    for attribute, s in result.attributes.items():
        table.add_row(attribute, f"{s.labels}", f"{s.rows:,}", f"{100 * s.accuracy:.1f}")
    console.print(table)


def predict_titles(
    catalogue: Catalogue,
    train: Sequence[Listing],
    labels: Labels,
    test: Sequence[Listing],
    tasks: Sequence[Task],
) -> tuple[Labels, NDArray[np.bool_]]:
    """Predict by a `TitleModel`: class indices `[n, T]`, and which of the n test listings have a title."""
    model = TitleModel([x.title for x in train], labels, tasks)
    predicted = np.stack([scores.argmax(axis=1) for scores in model.logits([x.title for x in test])], axis=1)
    return predicted, np.array([x.title is not None for x in test], dtype=bool)


# --- the image ---------------------------------------------------------------------------------------------
# B images, S pixels a side, C channels, K labels of all attributes together.

SIDE = 64


WIDTHS = (48, 96, 192, 320)


STRIDES = (2, 1, 2, 2)  # 3 x 3 convolutions at 32 pixels would take half of the time


SHIFT = 4  # pixels, the largest shift of a random crop


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: `[B, C, S, S]` -> `[B, width, S / stride, S / stride]`."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def convnet(outputs: int) -> nn.Sequential:
    """Return the plain residual convnet: pixels `[B, 3, S, S]` in -1…1 -> logits `[B, outputs]`."""
    stem = 32
    layers: list[nn.Module] = [
        nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(inplace=True),
    ]
    for channels, width, stride in zip((stem, *WIDTHS), WIDTHS, STRIDES, strict=False):
        layers.append(ResidualBlock(channels, width, stride))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], outputs)]
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)


def load_pixels(catalogue: Catalogue, listings: Sequence[Listing], name: str) -> tuple[Tensor, NDArray[np.bool_]]:
    """Decode every image once: uint8 `[n, S, S, 3]`, and which listings have an image that can be decoded."""
    pixels = np.zeros((len(listings), SIDE, SIDE, 3), dtype=np.uint8)
    decoded = np.zeros(len(listings), dtype=bool)

    def load(row: int) -> None:
        if image := listings[row].image:
            try:
                decoded_image = decode_image(catalogue.image_bytes(image)).image
            except ModelError as error:
                console.print(f"{image}: {error}")
                return
            pixels[row] = np.asarray(decoded_image.resize((SIDE, SIDE)))
            decoded[row] = True

    with ThreadPoolExecutor(2) as threads, progress_bar(console) as bar:
        rows = threads.map(load, range(len(listings)))
        for _ in bar.track(rows, total=len(listings), description=f"decoding {name}"):
            pass
    return torch.from_numpy(pixels), decoded


def to_input(pixels: Tensor) -> Tensor:
    """Return pixels `[B, S, S, 3]` uint8 as `[B, 3, S, S]` in -1…1, in channels-last memory format."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def crop_and_flip(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Shift each of `[B, S, S, 3]` by up to `SHIFT` pixels, repeating its edge, and mirror half of them at random."""
    b, s = pixels.shape[:2]
    along = torch.arange(s)
    top, left = torch.randint(-SHIFT, SHIFT + 1, (2, b, 1), generator=random)
    mirrored = torch.randint(2, (b, 1), generator=random).bool()
    rows = (top + along).clamp(0, s - 1)
    columns = (left + torch.where(mirrored, along.flip(0), along)).clamp(0, s - 1)
    return pixels[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]


def multi_task_loss(logits: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum over attributes of the cross-entropy on labelled rows: logits `[B, K]`, labels `[B, T]`."""
    losses = []
    for column, part in enumerate(torch.split(logits, list(sizes), dim=1)):
        labelled = (labels[:, column] != UNLABELLED).sum().clamp(min=1)
        total = F.cross_entropy(part, labels[:, column], ignore_index=UNLABELLED, reduction="sum")
        losses.append(total / labelled)
    return torch.stack(losses).sum()


def train_convnet(pixels: Tensor, labels: Tensor, sizes: Sequence[int], *, epochs: int, batch_size: int) -> nn.Module:
    """Train from scratch on pixels `[n, S, S, 3]` and labels `[n, T]`: AdamW, one cycle."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = convnet(sum(sizes))
    steps = -(-len(pixels) // batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=epochs * steps)
    with progress_bar(console) as bar:
        for epoch in range(epochs):
            step = bar.add_task("", total=steps)
            total = 0.0
            order = torch.randperm(len(pixels), generator=random)
            for done, rows in enumerate(torch.split(order, batch_size), 1):
                with training_precision(pixels.device):
                    logits = model(to_input(crop_and_flip(pixels[rows], random)))
                loss = multi_task_loss(logits.float(), labels[rows], sizes)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
                total += loss.item()
                bar.update(step, advance=1, description=f"epoch {epoch + 1}/{epochs}, loss {total / done:.3f}")
    return model.eval()


def image_predictor(*, epochs: int, batch_size: int) -> Predict:
    """Return a function that predicts by a plain residual convnet, trained from scratch."""

    def predict(
        catalogue: Catalogue,
        train: Sequence[Listing],
        labels: Labels,
        test: Sequence[Listing],
        tasks: Sequence[Task],
    ) -> tuple[Labels, NDArray[np.bool_]]:
        pixels, decoded = load_pixels(catalogue, train, "the train part")
        test_pixels, has_image = load_pixels(catalogue, test, "the test part")
        sizes = [len(task.labels) for task in tasks]
        known = torch.from_numpy(decoded)
        model = train_convnet(
            pixels[known], torch.from_numpy(labels)[known], sizes, epochs=epochs, batch_size=batch_size
        )
        with torch.inference_mode():
            logits = torch.cat([model(to_input(batch)) for batch in torch.split(test_pixels, 256)])
        predicted = torch.stack([part.argmax(1) for part in torch.split(logits, sizes, dim=1)], dim=1)
        return predicted.numpy(), has_image

    return predict


# --- commands ----------------------------------------------------------------------------------------------

CataloguePath = Annotated[Path, typer.Option("--catalogue", help="The TOML file that describes the catalogue.")]


Out = Annotated[Path | None, typer.Option("--out", help="Write the scores as JSON to this file.")]


def run(baseline: str, toml: Path, predict: Predict, out: Path | None) -> None:
    """Open the catalogue, measure, print, and write the JSON."""
    try:
        catalogue = Catalogue.open(toml)
        console.print(str(catalogue.report), highlight=False)
        result = measure(baseline, catalogue, predict)
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(2) from None
    show(result)
    if out:
        out.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")


@app.command()
def title(catalogue: CataloguePath = FASHION, out: Out = None) -> None:
    """TF-IDF and logistic regression on the title."""
    run("title", catalogue, predict_titles, out)


@app.command()
def image(
    catalogue: CataloguePath = FASHION,
    out: Out = None,
    epochs: Annotated[int, typer.Option(min=1)] = 6,
    batch_size: Annotated[int, typer.Option(min=2)] = 128,
) -> None:
    """A plain residual convnet on the image, from scratch."""
    run("image", catalogue, image_predictor(epochs=epochs, batch_size=batch_size), out)


@app.command()
def small(
    catalogue: CataloguePath = FASHION,
    out: Out = None,
    runs: Annotated[Path, typer.Option(help="Folder of the trainings, one for each draw.")] = Path("runs/small"),
    rows: Annotated[int, typer.Option(min=100, help="Rows of a draw.")] = 2000,
    draws: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """The default training on random rows of the catalogue, beside a bag of words trained on the same rows."""
    try:
        whole, found = Catalogue.open(catalogue), []
        for seed in range(draws):
            found.append(measure_draw(whole, runs / f"draw-{seed}", rows=rows, seed=seed, console=console))
            console.print(draws_table(found))
            if out:
                text = json.dumps([asdict(each) for each in found], indent=2)
                out.write_text(text + "\n", encoding="utf-8")
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
