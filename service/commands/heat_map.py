"""The heat map of `cma-clip predict --heat-map`: the image once per attribute, warm where the answer is based on it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.schemas import AttributeReply, ClassifyReply, Frame, ImageExplanation, LabelSetReply, Verdict

PANEL_SIZE = (320, 320)
"""Height and width that a panel's image is fitted into, in pixels."""

CAPTION, GAP, COLUMNS = 40, 12, 4

HEAT = (230, 40, 0)

STRONGEST = 0.75
"""Opacity of the heat on the heaviest patch: the image shows through even there."""


def draw(image: Image.Image, reply: ClassifyReply) -> Image.Image:
    """Return a sheet with a panel per attribute that has an explanation of the image: what the network saw of it.

    Beyond the image's edges that is padding, shown white. `reply` has one such attribute at least.
    """
    grids = {
        name: attribute.explanation.image
        for name, attribute in reply.attributes.items()
        if attribute.explanation is not None and attribute.explanation.image is not None
    }
    seen = _seen(image, next(iter(grids.values())).frame)  # which is the same for all
    panels = [_panel(seen, grid, name, reply.attributes[name]) for name, grid in grids.items()]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // COLUMNS)
    width, height = panels[0].width + GAP, panels[0].height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for position, panel in enumerate(panels):
        sheet.paste(panel, (GAP + position % COLUMNS * width, GAP + position // COLUMNS * height))
    return sheet


def _seen(image: Image.Image, frame: Frame) -> Image.Image:
    """What the network saw of the image, at a panel's size."""
    left, right = frame.left * image.width, frame.right * image.width
    upper, lower = frame.top * image.height, frame.bottom * image.height
    height, width = PANEL_SIZE
    scale = min(width / (right - left), height / (lower - upper))
    canvas = Image.new("RGB", _scaled(right - left, lower - upper, scale), "white")
    # Cut out before it is scaled: the frame of a very long image is larger than memory, or far smaller than it.
    inside = (max(0.0, left), max(0.0, upper), min(image.width, right), min(image.height, lower))
    size = _scaled(inside[2] - inside[0], inside[3] - inside[1], scale)
    resized = image.resize(size, Image.Resampling.LANCZOS, inside)
    canvas.paste(resized, (round((inside[0] - left) * scale), round((inside[1] - upper) * scale)))
    return canvas


def _scaled(width: float, height: float, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))


def _panel(
    seen: Image.Image, grid: ImageExplanation, name: str, attribute: AttributeReply | LabelSetReply
) -> Image.Image:
    weights = np.asarray(grid.weights)
    opacity = Image.fromarray(np.uint8(255 * STRONGEST * weights / max(weights.max(), 1e-12)))
    # The image in grey leaves colour to the heat alone.
    grey = seen.convert("L").convert("RGB")
    heated = Image.composite(
        Image.new("RGB", seen.size, HEAT), grey, opacity.resize(seen.size, Image.Resampling.BICUBIC)
    )
    panel = Image.new("RGB", (seen.width, seen.height + CAPTION), "white")
    panel.paste(heated, (0, CAPTION))
    pen = ImageDraw.Draw(panel)
    several = attribute.labels if isinstance(attribute, LabelSetReply) else [attribute]
    best: Verdict = max(several, key=lambda each: each.confidence)  # the likeliest is what is explained
    verdict = "accepted" if best.accepted else "abstained"
    pen.text((0, 2), f"{name}: {best.label}", fill="black", font=ImageFont.load_default(15))
    pen.text((0, 21), f"{best.confidence:.1%}, {verdict}", fill="dimgrey", font=ImageFont.load_default(13))
    return panel
