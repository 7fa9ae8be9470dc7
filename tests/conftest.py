"""A small catalogue of coloured shapes and a tiny network: real files, made in a second, for every test."""

from __future__ import annotations

import csv
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw

from model.catalogue.listings import Catalogue
from model.checkpoint.compiled import ENGINE, ENGINES
from model.checkpoint.folder import load_checkpoint, write_json
from model.checkpoint.weights import save_checkpoint
from model.config import FusionConfig, ModelConfig, PreprocessConfig
from model.inference.engines.engine import EngineName
from model.inference.engines.export import export, write_network
from model.inference.engines.torch_engine import TorchEngine
from model.inputs.augment import AugmentConfig
from model.network.cma_clip import CMAClip, build_cma_clip
from model.tasks import Task
from model.training.config import OptimiserConfig, TrainConfig

# A slow call on a busy machine is no bug.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A submission is judged by the same examples every time; at the desk, new ones are drawn at each run.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Take back what a test, or a command that it runs, has configured: its stream is closed afterwards.

    A library that it loads may change pytest's own handlers, too (nncf sets their level to ERROR).
    """
    root, uvicorn_logger = logging.getLogger(), logging.getLogger("uvicorn.error")
    handlers, level, filters = root.handlers[:], root.level, uvicorn_logger.filters[:]
    levels = [handler.level for handler in handlers]
    yield
    root.handlers[:], uvicorn_logger.filters[:] = handlers, filters
    for handler, before in zip(handlers, levels, strict=True):
        handler.setLevel(before)
    root.setLevel(level)
    logging.captureWarnings(False)


COLOURS = ("Black", "Blue", "Green", "Red")
SHAPES = ("Circle", "Square")

TINY_BACKBONE = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": [24, 16]},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def draw(colour: str, shape: str, seed: int = 0) -> Image.Image:
    """A product image, 18 x 24: one shape on white, somewhere."""
    rng = random.Random(seed)
    image = Image.new("RGB", (18, 24), "white")
    left, upper = rng.randint(1, 4), rng.randint(1, 8)
    box = (left, upper, left + 12, upper + 12)
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "Circle" else pen.rectangle)(box, fill=colour.lower())
    return image


def write_catalogue(folder: Path, rows: int) -> Path:
    """Write a catalogue of `rows` listings with every combination in turn, and return its TOML file."""
    (folder / "images").mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "colour", "shape", "title"])
        for row in range(rows):
            colour, shape = COLOURS[row % 4], SHAPES[row // 4 % 2]
            writer.writerow([f"sku-{row}", colour, shape, f"Plain {colour} {shape} number {row}"])
            draw(colour, shape, row).save(folder / "images" / f"sku-{row}.png")
    toml = folder / "catalogue.toml"
    toml.write_text(
        '[catalogue]\ntable = "table.csv"\nimages = "images"\nimage = "{id}.png"\nid = "id"\ntitle = "title"\n'
        'attributes = ["colour", "shape"]\nmin_label_count = 2\n'
    )
    return toml


@pytest.fixture(scope="session")
def catalogue_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("catalogue"), 240)


@pytest.fixture(scope="session")
def catalogue(catalogue_toml: Path) -> Catalogue:
    return Catalogue.open(catalogue_toml)


@pytest.fixture(scope="session")
def tasks() -> tuple[Task, ...]:
    return (Task(name="colour", labels=COLOURS), Task(name="shape", labels=SHAPES))


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return ModelConfig(
        backbone_name="tiny",
        backbone=TINY_BACKBONE,
        preprocess=PreprocessConfig(image_size=(24, 16), context_length=16),
        fusion=FusionConfig(width=32, depth=2, heads=2, dropout=0.0),
    )


@pytest.fixture(scope="session")
def train_config() -> TrainConfig:
    return TrainConfig(
        optimiser=OptimiserConfig(epochs=2, batch_size=16, learning_rate=3e-3, workers=0),
        augment=AugmentConfig(crop=0.9),
        ema_decay=0.5,
    )


@pytest.fixture
def network(model_config: ModelConfig, tasks: tuple[Task, ...]) -> CMAClip:
    return tiny_network(model_config, tasks)


def tiny_network(model_config: ModelConfig, tasks: tuple[Task, ...]) -> CMAClip:
    """The tiny network in evaluation mode, its modality attention away from its even start; always the same one."""
    torch.manual_seed(0)
    network = build_cma_clip(model_config, tasks).eval()
    assert network.modality_attention.weight is not None
    torch.nn.init.normal_(network.modality_attention.weight, std=0.3)
    return network


@pytest.fixture(scope="session")
def compiled_folder(
    tmp_path_factory: pytest.TempPathFactory, model_config: ModelConfig, tasks: tuple[Task, ...]
) -> Path:
    """The folder `engines` of `checkpoint_folder`, with one engine, openvino-f32, which is not calibrated."""
    folder = tmp_path_factory.mktemp("compiled")
    save_checkpoint(
        folder, tiny_network(model_config, tasks), name="tiny", config=model_config, tasks=tasks, training={}
    )
    checkpoint, engine = load_checkpoint(folder), folder / ENGINES / EngineName.OPENVINO_F32
    engine.mkdir(parents=True)
    reference = TorchEngine.load(checkpoint, device="cpu")
    parts = export(reference, checkpoint)
    compiled = write_network(engine, EngineName.OPENVINO_F32, parts, reference.info, checkpoint)
    write_json(engine / ENGINE, compiled.to_json())
    return folder / ENGINES


@pytest.fixture
def checkpoint_folder(tmp_path: Path, network: CMAClip, model_config: ModelConfig, tasks: tuple[Task, ...]) -> Path:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, network, name="tiny", config=model_config, tasks=tasks, training={})
    return folder
