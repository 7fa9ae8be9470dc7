"""What the comparison is made with: the listings that are sent, and a large checkpoint with random weights."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.checkpoint.folder import CONFIG, load_checkpoint
from model.checkpoint.weights import save_checkpoint
from model.network.cma_clip import build_cma_clip
from model.training.initialise import initial_model
from service.commands.bench import Listing

IMAGE_SIZES = {"60x80": (60, 80), "1200x1600": (1200, 1600)}
LISTINGS = 32
COLOURS = ("Navy Blue", "Black", "Red", "White", "Olive", "Grey", "Beige", "Pink")
THINGS = ("Men Check Shirt", "Women Summer Dress", "Unisex Analog Watch", "Kids Running Shoes")


def listings(image: str) -> list[Listing]:
    """Return `LISTINGS` different listings with images of a size in `IMAGE_SIZES`, the same each time."""
    titles = [f"Turtle {colour} {thing}" for colour in COLOURS for thing in THINGS]
    return [Listing(titles[number], photo(IMAGE_SIZES[image], number)) for number in range(LISTINGS)]


def photo(size: tuple[int, int], seed: int) -> bytes:
    """Return a JPEG of smooth noise, about as many bytes as a photo of its size (width, height)."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def random_checkpoint(folder: Path, backbone: str, *, like: Path) -> Path:
    """Write an uncalibrated checkpoint of random weights, with the attributes of another; what is there stays."""
    if not (folder / CONFIG).exists():
        torch.manual_seed(0)
        config, tasks = initial_model(backbone, None), load_checkpoint(like).tasks
        network = build_cma_clip(config, tasks)
        save_checkpoint(folder, network, name=backbone, config=config, tasks=tasks, training={"initial": "random"})
    return folder
