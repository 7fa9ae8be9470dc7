"""Draws the product images of `examples/images` and the playground, made for this repository and free to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE, SCALE = (240, 320), 4
Point = tuple[float, float]


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), "white")
    return image, ImageDraw.Draw(image)


def _scaled(points: Sequence[Point]) -> list[Point]:
    return [(x * SCALE, y * SCALE) for x, y in points]


def _mirrored(points: Sequence[Point]) -> list[Point]:
    return [(SIZE[0] - x, y) for x, y in points]


def _finish(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(2)).resize(SIZE, Image.Resampling.LANCZOS)


def shirt(cloth: str, dark: str, line: str) -> Image.Image:
    """A long-sleeved shirt with collar, placket, buttons and a check."""
    image, pen = _canvas()
    sleeve = [(70, 62), (40, 84), (20, 214), (24, 236), (48, 240), (66, 140)]
    body = [(98, 44), (68, 62), (62, 130), (64, 292), (120, 298), (176, 292), (178, 130), (172, 62), (142, 44)]
    for part in (sleeve, _mirrored(sleeve)):
        pen.polygon(_scaled(part), fill=dark)
    pen.polygon(_scaled(body), fill=cloth)
    for x in range(76, 176, 14):
        pen.line(_scaled([(x, 66), (x, 292)]), fill=line, width=SCALE)
    for y in range(80, 292, 14):
        pen.line(_scaled([(66, y), (174, y)]), fill=line, width=SCALE)
    collar = [(98, 44), (92, 60), (112, 82), (120, 62)]
    for part in (collar, _mirrored(collar)):
        pen.polygon(_scaled(part), fill=dark, outline=line)
    pen.polygon(_scaled([(116, 66), (124, 66), (125, 296), (115, 296)]), fill=dark)
    for y in range(84, 290, 34):
        pen.ellipse(_scaled([(118, y), (122, y + 4)]), fill="#e8e8e8")
    return _finish(image)


def dress(cloth: str, dark: str) -> Image.Image:
    """A sleeveless dress with a waist."""
    image, pen = _canvas()
    left = [(120, 60), (104, 54), (96, 24), (88, 24), (84, 66), (88, 124), (52, 300), (120, 306)]
    pen.polygon(_scaled(left), fill=cloth)
    pen.polygon(_scaled(_mirrored(left)), fill=cloth)
    pen.polygon(_scaled([(87, 118), (153, 118), (155, 132), (85, 132)]), fill=dark)
    for x in (84, 104, 136, 156):
        pen.line(_scaled([((x + 120) / 2, 134), (x - (120 - x) * 0.3, 300)]), fill=dark, width=SCALE)
    return _finish(image)


def shoe(upper: str, sole: str, accent: str) -> Image.Image:
    """A sports shoe, seen from the side."""
    image, pen = _canvas()
    outline = [(22, 210), (20, 168), (34, 128), (62, 132), (84, 140), (128, 164), (178, 182), (212, 192), (222, 212)]
    pen.polygon(_scaled(outline), fill=upper)
    pen.rounded_rectangle(_scaled([(18, 206), (224, 226)]), radius=9 * SCALE, fill=sole)
    for x in range(84, 140, 13):
        pen.line(_scaled([(x, 142 + (x - 84) * 0.45), (x + 10, 132 + (x - 84) * 0.45)]), fill="white", width=3 * SCALE)
    pen.line(_scaled([(40, 196), (96, 188), (150, 172)]), fill=accent, width=6 * SCALE, joint="curve")
    return _finish(image)


def watch(strap: str, case: str, face: str) -> Image.Image:
    """A wrist watch."""
    image, pen = _canvas()
    pen.polygon(_scaled([(98, 20), (142, 20), (146, 120), (94, 120)]), fill=strap)
    pen.polygon(_scaled([(94, 200), (146, 200), (142, 302), (98, 302)]), fill=strap)
    pen.ellipse(_scaled([(66, 106), (174, 214)]), fill=case)
    pen.ellipse(_scaled([(78, 118), (162, 202)]), fill=face)
    for end in ((120, 134), (144, 168)):
        pen.line(_scaled([(120, 160), end]), fill="white", width=3 * SCALE)
    return _finish(image)


def main() -> None:
    """Write every image."""
    root = Path(__file__).parents[1]
    folders = (root / "examples/images", root / "service/static/examples")  # the service ships its own copies
    images = {
        "navy-shirt": shirt("#1f2f5c", "#18264c", "#31437a"),
        "red-dress": dress("#b3202c", "#8c1720"),
        "black-shoe": shoe("#202024", "#f2f2f2", "#c8232c"),
        "brown-watch": watch("#6b4226", "#c9ccd1", "#20242c"),
    }
    for name, image in images.items():
        for folder in folders:
            folder.mkdir(exist_ok=True)
            image.save(folder / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
