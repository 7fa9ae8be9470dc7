"""`cma-clip pretrain` and `cma-clip train`, each a thin skin over its module of `model/training/`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import ConfigError
from service.commands.arguments import CatalogueFile, CorrectionsFile, Device
from service.commands.check import print_warnings
from service.commands.evaluation import open_corrected

if TYPE_CHECKING:
    from model.config import ModelConfig


RunFolder = Annotated[Path, typer.Option(help="folder of the run; an interrupted one resumes", show_default=False)]

Backbone = Annotated[
    str | None,
    typer.Option(
        help="cma-small, cma-tiny, cma-lite, or an open_clip ViT such as ViT-B-32",
        show_default="INIT's; cma-lite for imagenet, else cma-small",
    ),
]

Epochs = Annotated[
    int | None, typer.Option(min=1, help="passes over the train part", show_default="by the size of the catalogue")
]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="another setting, as optimiser.learning_rate=1e-3, modality_dropout=0.3 or fusion.depth=2",
        show_default=False,
    ),
]


def pretrain(
    catalogue: CatalogueFile,
    *,
    out: RunFolder,
    name: Annotated[str, typer.Option(help="the model's name")] = "pretrained",
    backbone: Backbone = None,
    init: Annotated[
        Path | None,
        typer.Option(help="keep the image tower of this checkpoint folder, and train a new text tower to match it"),
    ] = None,
    epochs: Epochs = None,
    device: Device = "auto",
    settings: Overrides = None,
) -> None:
    """Pre-train small towers on a catalogue's own image-title pairs, contrastively.

    For use where no pretrained CLIP weights can be had. The result, OUT/checkpoint, is for `train --init`.
    """
    from model.catalogue.listings import Catalogue  # noqa: PLC0415
    from model.config import override  # noqa: PLC0415
    from model.training.initialise import initial_model  # noqa: PLC0415
    from model.training.pretrain import default_config  # noqa: PLC0415
    from model.training.pretrain import pretrain as run  # noqa: PLC0415

    fusion, own = split_settings(settings, epochs)
    listings = Catalogue.open(catalogue)
    folder = run(
        listings,
        out,
        name=name,
        model=with_fusion(initial_model(backbone, str(init) if init else None), fusion),
        config=override(default_config(listings), own),
        initial=init,
        device=device,
    )
    print(folder)


def train(
    catalogue: Annotated[
        Path | None,
        typer.Argument(help="the catalogue's TOML file; with --recipe, instead of the recipe's", show_default=False),
    ] = None,
    *,
    out: RunFolder,
    recipe: Annotated[
        Path | None,
        typer.Option(help="a recipe's TOML file: all of its stages, instead of one training", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="the model's name", show_default="cma-clip")] = None,
    backbone: Backbone = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="start from a checkpoint folder of ours, an open_clip pretrained tag, a weights file, or imagenet",
            show_default="imagenet for few listings and no --backbone, else random weights",
        ),
    ] = None,
    epochs: Epochs = None,
    corrections: CorrectionsFile = None,
    device: Device = "auto",
    settings: Overrides = None,
) -> None:
    """Train CMA-CLIP on a catalogue. The best checkpoint by validation is OUT/checkpoint.

    Calibrate and evaluate it next. A recipe does all of it, from pre-training to evaluation, stage by stage; called
    again, it continues where it was interrupted.
    """
    if recipe is not None:
        given = {"name": name, "backbone": backbone, "init": init, "epochs": epochs, "set": settings}
        if extra := [f"--{option}" for option, value in given.items() if value]:
            raise ConfigError(f"{extra[0]} cannot be combined with --recipe; change the recipe instead")
        print(_follow(recipe, catalogue, corrections, out, device))
        return
    if catalogue is None:
        raise ConfigError("name the catalogue's TOML file, or a --recipe")
    from model.config import override  # noqa: PLC0415
    from model.training.train import NAME, default_config, default_initial, default_model  # noqa: PLC0415
    from model.training.train import train as run  # noqa: PLC0415

    fusion, own = split_settings(settings, epochs)
    listings = open_corrected(catalogue, corrections)
    print_warnings(listings, catalogue)
    if init is None and backbone is None:
        init = default_initial(listings)
    folder = run(
        listings,
        out,
        name=name or NAME,
        model=with_fusion(default_model(listings, backbone, init), fusion),
        config=override(default_config(listings, init), own),
        initial=init,
        device=device,
    )
    print(folder)


def _follow(recipe: Path, catalogue: Path | None, corrections: Path | None, out: Path, device: str) -> Path:
    from model.training.recipe import Recipe, run_recipe  # noqa: PLC0415

    stages = Recipe.load(recipe)
    toml = catalogue or stages.catalogue
    listings = open_corrected(toml, corrections) if toml else None
    if toml and listings:
        print_warnings(listings, toml)
    return run_recipe(stages, out, catalogue=listings, device=device)


def split_settings(texts: list[str] | None, epochs: int | None) -> tuple[dict[str, str], dict[str, str]]:
    """Split `--set` into fusion settings (without their prefix) and the others, `--epochs` among them."""
    fusion: dict[str, str] = {}
    others: dict[str, str] = {"optimiser.epochs": str(epochs)} if epochs else {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value, not {text!r}")
        if name.startswith("fusion."):
            fusion[name.removeprefix("fusion.")] = value
        else:
            others[name] = value
    return fusion, others


def with_fusion(model: ModelConfig, settings: dict[str, str]) -> ModelConfig:
    """Return the model to train, with settings of its fusion overridden."""
    from model.config import override  # noqa: PLC0415

    return dataclasses.replace(model, fusion=override(model.fusion, settings))
