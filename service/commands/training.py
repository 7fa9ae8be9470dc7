"""`cma-clip pretrain` and `cma-clip train`, each a thin skin over its module of `model/training/`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import ConfigError
from service.commands.arguments import CatalogueFile, Device

if TYPE_CHECKING:
    from model.config import ModelConfig


RunFolder = Annotated[Path, typer.Option(help="folder of the run; an interrupted one goes on", show_default=False)]

Name = Annotated[str, typer.Option(help="the model's name")]

Backbone = Annotated[
    str | None,
    typer.Option(help="cma-small, cma-tiny, or an open_clip ViT such as ViT-B-32", show_default="cma-small, or INIT's"),
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
    name: Name = "pretrained",
    backbone: Backbone = None,
    init: Annotated[
        Path | None,
        typer.Option(help="keep the image tower of this checkpoint folder, and train a new text tower to match it"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the pairs", show_default=False)] = None,
    device: Device = "auto",
    settings: Overrides = None,
) -> None:
    """Pre-train small towers on a catalogue's own image-title pairs, contrastively.

    For where no pretrained CLIP weights can be had. The result, OUT/checkpoint, is for `train --init`.
    """
    from model.catalogue.listings import Catalogue  # noqa: PLC0415
    from model.config import override  # noqa: PLC0415
    from model.training.config import small_pretraining  # noqa: PLC0415
    from model.training.pretrain import pretrain as run  # noqa: PLC0415

    fusion, own = split_settings(settings, epochs)
    config = override(small_pretraining(), own)
    folder = run(
        Catalogue.open(catalogue),
        out,
        name=name,
        model=_model(backbone, str(init) if init else None, fusion),
        config=config,
        initial=init,
        device=device,
    )
    print(folder)


def train(
    catalogue: CatalogueFile,
    *,
    out: RunFolder,
    name: Name = "cma-clip",
    backbone: Backbone = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="start from a checkpoint folder of ours, an open_clip pretrained tag or a weights file",
            show_default="random weights",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the listings", show_default=False)] = None,
    device: Device = "auto",
    settings: Overrides = None,
) -> None:
    """Train CMA-CLIP on a catalogue. The best checkpoint by validation stands in OUT/checkpoint.

    Calibrate and evaluate it next.
    """
    from model.catalogue.listings import Catalogue  # noqa: PLC0415
    from model.config import override  # noqa: PLC0415
    from model.training.config import clip_training, small_training  # noqa: PLC0415
    from model.training.train import train as run  # noqa: PLC0415

    fusion, own = split_settings(settings, epochs)
    preset = clip_training() if init and not Path(init).is_dir() else small_training()
    folder = run(
        Catalogue.open(catalogue),
        out,
        name=name,
        model=_model(backbone, init, fusion),
        config=override(preset, own),
        initial=init,
        device=device,
    )
    print(folder)


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


def _model(backbone: str | None, init: str | None, fusion: dict[str, str]) -> ModelConfig:
    """The model to train: that of `init` where it is a checkpoint of ours, with fusion settings overridden."""
    from model.config import override  # noqa: PLC0415
    from model.training.initialise import initial_model  # noqa: PLC0415

    model = initial_model(backbone, init)
    return dataclasses.replace(model, fusion=override(model.fusion, fusion))
