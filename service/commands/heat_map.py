"""The heat map of `cma-clip predict --heat-map`: the image once per attribute, tinted where the answer is based on it.

Colour, strength and what counts as empty ground are the playground's (`service/static/playground/ground.js`).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from service.commands.names import REASONS, readable
from service.schemas import AttributeReply, ClassifyReply, Frame, ImageExplanation, LabelSetReply, Verdict

PANEL_SIZE = (320, 320)
"""Height and width that a panel's image is fitted into, in pixels."""

CAPTION, GAP, COLUMNS = 40, 12, 4

HEAT = (208, 16, 122)

STRONGEST = 0.65
"""Opacity of the heat on the heaviest patch: the image shows through even there."""

EXAMINED = 160
"""Empty ground is sought in a copy whose longer side has at most this many pixels."""

TOLERANCE = 26
"""How far a pixel of the ground may be from its colour, of 255 in any channel."""

LEAST_BORDER, LEAST_PRODUCT = 0.5, 0.02
"""The share of the pixels along the edges that have the colour of the ground, and that of the image that is product, at
least: else the image has no ground, or is nothing else."""


def draw(image: Image.Image, reply: ClassifyReply) -> Image.Image:
    """Return a sheet with a panel per attribute that has an explanation of the image: what the network saw of it.

    Beyond the image's edges that is padding, shown white. `reply` has one such attribute at least.
    """
    grids = {
        name: attribute.explanation.image
        for name, attribute in reply.attributes.items()
        if attribute.explanation is not None and attribute.explanation.image is not None
    }
    frame = next(iter(grids.values())).frame  # which is the same for all
    seen, product = _seen(image, frame, "white"), _seen(_product(image), frame, 0)
    panels = [_panel(seen, product, grid, name, reply.attributes[name]) for name, grid in grids.items()]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // COLUMNS)
    width, height = panels[0].width + GAP, panels[0].height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for position, panel in enumerate(panels):
        sheet.paste(panel, (GAP + position % COLUMNS * width, GAP + position // COLUMNS * height))
    return sheet


def _product(image: Image.Image) -> Image.Image:
    """Return a mask of the image: 0 where it is empty ground, else 255; 255 all over where it has no plain ground."""
    small = image.copy()
    small.thumbnail((EXAMINED, EXAMINED), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    edge = np.ones(pixels.shape[:2], dtype=bool)
    edge[1:-1, 1:-1] = False
    alike = (np.abs(pixels - np.median(pixels[edge], axis=0)) <= TOLERANCE).all(axis=2)
    ground = alike & edge
    if ground.sum() < LEAST_BORDER * edge.sum():
        return Image.new("L", image.size, 255)
    reached = 0
    while reached < (reached := int(ground.sum())):  # from the edges inwards
        near = np.pad(ground, 1)
        ground = alike & (ground | near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:])
    if 1 - ground.mean() < LEAST_PRODUCT:
        return Image.new("L", image.size, 255)
    return Image.fromarray(np.where(ground, 0, 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)


def _seen(image: Image.Image, frame: Frame, padding: str | int) -> Image.Image:
    """What the network saw of the image, at a panel's size; `padding` is the colour beyond the image's edges."""
    left, right = frame.left * image.width, frame.right * image.width
    upper, lower = frame.top * image.height, frame.bottom * image.height
    height, width = PANEL_SIZE
    scale = min(width / (right - left), height / (lower - upper))
    canvas = Image.new(image.mode, _scaled(right - left, lower - upper, scale), padding)
    # Cut out before it is scaled: the frame of a very long image is larger than memory, or far smaller than it.
    inside = (max(0.0, left), max(0.0, upper), min(image.width, right), min(image.height, lower))
    size = _scaled(inside[2] - inside[0], inside[3] - inside[1], scale)
    resized = image.resize(size, Image.Resampling.LANCZOS, inside)
    canvas.paste(resized, (round((inside[0] - left) * scale), round((inside[1] - upper) * scale)))
    return canvas


def _scaled(width: float, height: float, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))


def _panel(
    seen: Image.Image,
    product: Image.Image,
    grid: ImageExplanation,
    name: str,
    attribute: AttributeReply | LabelSetReply,
) -> Image.Image:
    weights = np.asarray(grid.weights)
    opacity = Image.fromarray(np.uint8(255 * STRONGEST * weights / max(weights.max(), 1e-12)))
    on_product = ImageChops.multiply(opacity.resize(seen.size, Image.Resampling.BICUBIC), product)
    heated = Image.composite(Image.new("RGB", seen.size, HEAT), seen, on_product)
    panel = Image.new("RGB", (seen.width, seen.height + CAPTION), "white")
    panel.paste(heated, (0, CAPTION))
    pen = ImageDraw.Draw(panel)
    several = attribute.labels if isinstance(attribute, LabelSetReply) else [attribute]
    best: Verdict = max(several, key=lambda each: each.confidence)  # the likeliest is what is explained
    verdict = "accepted" if best.abstention is None else REASONS[best.abstention]
    pen.text((0, 2), f"{readable(name)}: {best.label}", fill="black", font=ImageFont.load_default(15))
    pen.text((0, 21), f"{best.confidence:.1%}, {verdict}", fill="dimgrey", font=ImageFont.load_default(13))
    return panel
