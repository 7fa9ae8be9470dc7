"""Draws the product images of `examples/images` and the playground, made for this repository and free to use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from examples.canvas import (
    COLUMNS,
    ROWS,
    Canvas,
    Field,
    Point,
    both_sides,
    ellipse,
    line,
    lit,
    mirrored,
    noise,
    polygon,
    smooth,
)

SKIN, HAIR = "#c99070", "#2a1c16"


def _cloth(seed: int, depth: float = 1.0) -> Field:
    """Return the light on cloth: long folds that hang down, and its weave."""
    folds = noise(34, 90, seed) * 2.2 + noise(18, 40, seed + 1) * 0.7
    return depth * (lit(folds) + 0.03 * noise(1.2, 1.2, seed + 2))


def _leather(seed: int) -> Field:
    return lit(noise(3, 3, seed) * 0.12 + noise(26, 26, seed + 1) * 0.8) + 0.05 * noise(9, 9, seed + 2)


def _torso(canvas: Canvas) -> None:
    """A man's neck, arms and jeans, which a garment is worn over."""
    jeans = polygon([(72, 250), (168, 250), (174, 322), (123, 322), (120, 296), (117, 322), (66, 322)])
    canvas.body(jeans, "#39506f", 10, _cloth(40, 0.7))
    canvas.seam([(120, 262), (120, 300)], "#1d2a3d", "#b08a4c")
    arm = smooth(
        [(42, 140), (35, 186), (37, 224), (33, 246), (36, 266), (46, 268), (53, 246), (54, 224), (63, 180), (66, 140)]
    )
    neck = polygon(smooth(both_sides([(102, -12), (103, 24), (86, 44), (104, 74)])))
    canvas.body(neck, SKIN, 7)
    for side in (arm, mirrored(arm)):
        canvas.body(polygon(side), SKIN, 7, casts=0.2)


def shirt(cloth: str, dark: str) -> Image.Image:
    """A checked shirt with collar, placket, buttons and pocket, worn with jeans."""
    canvas = Canvas()
    _torso(canvas)
    across, down = COLUMNS % 15, ROWS % 15
    check = 0.32 * (across < 1.6) + 0.32 * (down < 1.6) - 0.22 * (abs(across - 8) < 2) - 0.22 * (abs(down - 8) < 2)
    light = _cloth(1) + check
    sleeve = smooth([(78, 50), (56, 66), (42, 104), (34, 146), (50, 156), (69, 158), (76, 128), (84, 80)])
    for side in (sleeve, mirrored(sleeve)):
        canvas.body(polygon(side), cloth, 8, light)
    hem: list[Point] = [(36, 142), (52, 151), (68, 153)]
    for side in (hem, mirrored(hem)):
        canvas.seam(side, "#000000")
    trunk = both_sides([(98, 40), (74, 54), (70, 92), (72, 140), (70, 200), (66, 266), (92, 276)])
    canvas.body(polygon(smooth(trunk)), cloth, 9, light)
    canvas.paint(polygon([(106, 40), (134, 40), (120, 76)]), SKIN, -0.18)
    canvas.seam([(115, 70), (115, 274)], dark)
    canvas.body(polygon([(115.5, 72), (124.5, 72), (125, 276), (115, 276)]), cloth, 2, light, casts=0.5)
    for y in range(86, 274, 31):
        canvas.body(ellipse((120, y), 2.2, 2.2), "#d9dde4", 1)
    pocket = [(136, 108), (162, 108), (162, 134), (149, 140), (136, 134)]
    canvas.body(polygon(pocket), cloth, 2, light, casts=0.5)
    canvas.seam([*pocket, pocket[0]], dark)
    collar: list[Point] = [(100, 32), (92, 48), (105, 78), (120, 68), (106, 44)]
    for side in (collar, mirrored(collar)):
        canvas.body(polygon(side), cloth, 3, light + 0.25, casts=0.8)
        canvas.seam([side[1], side[2], side[3]], dark)
    return canvas.finish()


def _woman(canvas: Canvas) -> None:
    """A mannequin with long hair, which a dress is worn over."""
    strands = lit(noise(3, 60, 3) * 0.8)
    leg = smooth([(92, 252), (94, 292), (98, 335), (112, 335), (115, 302), (118, 252)])
    arm = smooth(
        [
            (88, 60),
            (75, 72),
            (70, 120),
            (62, 160),
            (58, 190),
            (57, 214),
            (64, 216),
            (70, 190),
            (77, 160),
            (86, 120),
            (94, 84),
        ]
    )
    for side in (leg, mirrored(leg), arm, mirrored(arm)):
        canvas.body(polygon(side), SKIN, 6, casts=0.2)
    hair = both_sides([(112, 2), (100, 12), (97, 34), (94, 66), (104, 74)])
    canvas.body(polygon(smooth(hair)), HAIR, 6, strands)
    canvas.body(polygon(smooth(both_sides([(112, 36), (111, 52), (86, 62), (84, 86), (96, 116)]))), SKIN, 7)
    canvas.body(ellipse((120, 28), 15, 20), SKIN, 7)
    fringe = smooth([(104, 26), (108, 8), (120, 4), (132, 8), (136, 26), (126, 14), (112, 14)])
    canvas.body(polygon(fringe), HAIR, 4, strands)


def dress(cloth: str, dark: str) -> Image.Image:
    """A sleeveless dress with a sash and a pleated skirt, worn by a mannequin."""
    canvas = Canvas()
    _woman(canvas)
    narrower = 0.12 + ROWS / 260  # towards the waist
    pleats = 1.3 * lit(2.2 * np.sin((COLUMNS - 120) / narrower / 3.2)) * np.clip((ROWS - 150) / 60, 0, 1)
    skirt = both_sides([(94, 146), (82, 190), (70, 290), (80, 298), (98, 294), (112, 298)])
    canvas.body(polygon(smooth(skirt)), cloth, 8, pleats + _cloth(12, 0.8))
    neckline = polygon(smooth(both_sides([(103, 48), (104, 70), (119, 88)])))
    bodice = polygon(smooth(both_sides([(94, 56), (90, 78), (86, 96), (89, 122), (94, 150)]))) * (1 - neckline)
    canvas.body(bodice, cloth, 6, _cloth(13, 0.8))
    canvas.body(polygon([(92, 142), (148, 142), (150, 154), (91, 154)]), dark, 4, _cloth(14, 0.5), casts=0.5)
    for dart in ([(102, 106), (105, 140)], [(73, 283), (81, 290), (98, 287)]):
        for side in (dart, mirrored(dart)):
            canvas.seam(side, dark)
    return canvas.finish()


def _shoe_upper(canvas: Canvas, upper: str, accent: str) -> None:
    """Mesh with its opening, pieces of leather over heel, toe and eyelets, and a flash of colour."""
    heel = [(24, 208), (20, 182), (23, 152), (32, 128), (42, 128), (56, 141), (76, 140), (92, 116), (104, 118)]
    toe = [(112, 134), (140, 156), (172, 170), (203, 181), (221, 196), (222, 210), (120, 214)]
    body = polygon(smooth([*heel, *toe]))
    mesh = 0.34 * ((COLUMNS * 0.7 + ROWS) % 3.4 < 1.3) * ((COLUMNS - ROWS * 0.7) % 3.4 < 1.3)
    gleam = 0.4 * np.exp(-(((COLUMNS - 186) / 26) ** 2) - ((ROWS - 182) / 8) ** 2)
    canvas.body(body, upper, 12, mesh + gleam)
    opening = [(34, 132), (44, 131), (56, 143), (76, 143), (88, 124), (84, 150), (56, 158), (38, 148)]
    canvas.paint(polygon(smooth(opening)) * body, "#45454b", -0.3)
    for piece in (
        [(22, 160), (40, 156), (58, 176), (62, 210), (24, 210)],
        [(184, 176), (206, 184), (222, 198), (222, 212), (174, 212), (176, 192)],
        [(84, 146), (98, 126), (110, 136), (142, 159), (132, 166), (112, 152), (94, 158)],
    ):
        canvas.body(polygon(smooth(piece)) * body, upper, 3, 0.25 + 0.04 * noise(2, 2, 5), casts=0.6)
    flash = smooth([(58, 202), (84, 196), (124, 174), (148, 166), (132, 182), (98, 204), (66, 210)])
    canvas.body(polygon(flash) * body, accent, 2, casts=0.5)
    edge = smooth([(70, 208), (96, 200), (116, 186), (112, 196), (96, 208)])
    canvas.body(polygon(edge) * body, "#f2f2f2", 2, casts=0.3)
    canvas.seam([(64, 164), (94, 164), (120, 162)], "#000000", "#77777c")
    canvas.body(line(smooth([(24, 168), (40, 172), (52, 190), (56, 206)], closed=False), 4), accent, 1.5)
    canvas.body(line([(30, 140), (30, 152)], 3), accent, 1)


def sports_shoe(upper: str, sole: str, accent: str) -> Image.Image:
    """A running shoe from the side, with laces, a foam sole and a tread."""
    canvas = Canvas()
    canvas.floor_shadow((122, 230), 96, 6, 0.5)
    rubber = [(20, 214), (60, 220), (130, 222), (190, 220), (226, 204), (224, 216), (200, 230), (120, 229)]
    tread = polygon(smooth([*rubber, (84, 230), (34, 232)]))
    canvas.body(tread, "#2a2a2e", 3)
    for x in range(34, 206, 8):
        canvas.paint(line([(x, 228), (x + 2, 234)], 1.6) * tread, "#77777c")
    _shoe_upper(canvas, upper, accent)
    for x, y in ((90, 136), (101, 142), (112, 149), (123, 156), (133, 162)):
        canvas.body(line([(x, y), (x + 15, y - 11)], 4.2), "#e9e9ec", 1.6, casts=0.6)
    for loop in ([(100, 128), (84, 134), (80, 150)], [(102, 127), (118, 122), (128, 130)]):
        canvas.body(line(smooth(loop, closed=False), 3), "#e9e9ec", 1.2, casts=0.4)
    upper_edge = [(19, 200), (60, 205), (110, 209), (170, 208), (206, 203), (226, 196)]
    lower_edge = [(228, 206), (206, 221), (120, 223), (84, 224), (30, 226), (18, 216)]
    canvas.body(polygon(smooth([*upper_edge, *lower_edge])), sole, 5, casts=0.5)
    canvas.seam(smooth([(22, 214), (70, 216), (130, 216), (190, 213), (222, 204)], closed=False), "#9a9aa0")
    stripe = smooth([(24, 207), (70, 211), (130, 213), (200, 209), (222, 202)], closed=False)
    canvas.paint(line(stripe, 3.4), accent)
    for x in range(28, 120, 11):
        canvas.body(line([(x, 211), (x + 4, 219)], 5), "#6d7178", 1.5)
    return canvas.finish(turned=9)


def _dial(canvas: Canvas, dial: str, angle: Field) -> None:
    """The face of a chronograph; `angle`: where each point lies around its centre, in radians."""
    face = ellipse((120, 160), 60, 60)
    canvas.body(face, dial, 6, 0.3 * np.cos(2 * angle - 0.8))
    for tick in range(60):
        a, long = tick * np.pi / 30, tick % 5 == 0
        start = 48 if long else 54
        ends = [(120 + r * np.sin(a), 160 - r * np.cos(a)) for r in (start, 57)]
        canvas.paint(line(ends, 3 if long else 0.9), "#f0ece4")
    for x, y in ((96, 160), (144, 160), (120, 186)):
        canvas.body(ellipse((x, y), 15, 15), dial, 3, -0.25, casts=0.4)
        canvas.paint(ellipse((x, y), 15, 15) - ellipse((x, y), 13.8, 13.8), "#d8d2c6")
        canvas.paint(line([(x, y), (x + 6, y - 8)], 1.1), "#f0ece4")
    for (x, y), width in (((96, 136), 3.6), ((156, 128), 2.8), ((128, 204), 1.0)):
        canvas.body(line([(120, 160), (x, y)], width), "#f4f4f2", 1, casts=0.5)
    canvas.body(ellipse((120, 160), 4, 4), "#e8e8e8", 1)
    canvas.glow(polygon([(70, 120), (110, 96), (150, 100), (80, 170)]), face, "#ffffff", 8, 0.16)


def watch(strap: str, dial: str) -> Image.Image:
    """A steel chronograph on a leather strap, from the front."""
    canvas = Canvas()
    band = polygon(
        smooth(both_sides([(92, 8), (86, 14), (80, 60), (76, 110), (76, 210), (80, 260), (86, 306), (92, 312)]))
    )
    fall = -0.7 * (np.abs(ROWS - 160) / 160) ** 4
    canvas.body(band, strap, 7, _leather(20) + fall)
    for x in (86, 154):
        lean = 4.8 if x < 120 else -4.8
        canvas.paint(line([(x + lean, 16), (x, 70), (x - lean / 2, 120)], 1.1, dashes=2.4), "#d9b98c")
        canvas.paint(line([(x - lean / 2, 200), (x, 250), (x + lean, 304)], 1.1, dashes=2.4), "#d9b98c")
    angle = np.arctan2(ROWS - 160, COLUMNS - 120)
    brushed = 0.22 * np.cos(2 * angle + 1.2) + 0.14 * np.cos(4 * angle)
    for x in (86, 142):
        for y in (84, 214):
            canvas.body(polygon([(x, y), (x + 12, y), (x + 14, y + 24), (x - 2, y + 24)]), "#b9bdc4", 3)
    for y in (136, 160, 184):
        canvas.body(line([(188, y), (197, y)], 10 if y == 160 else 8), "#aeb2b9", 3, 0.2 * ((ROWS % 2) < 1))
    canvas.body(ellipse((120, 160), 76, 76), "#c3c7cd", 5, brushed)
    canvas.body(ellipse((120, 160), 67, 67), "#8d9198", 3, -brushed)
    _dial(canvas, dial, angle)
    return canvas.finish()


def handbag(leather: str, dark: str) -> Image.Image:
    """A leather handbag with two handles, buckles and a zip."""
    canvas = Canvas()
    canvas.floor_shadow((120, 286), 92, 7, 0.5)
    arch = smooth([(82, 170), (80, 120), (92, 70), (120, 54), (148, 70), (160, 120), (158, 170)], closed=False)
    canvas.body(line([(x, y - 8) for x, y in arch], 7), dark, 3)
    bag = polygon(smooth(both_sides([(60, 146), (40, 152), (32, 190), (22, 250), (24, 278), (46, 286)])))
    light = _leather(30) + 0.18 * np.exp(-(((COLUMNS - 90) / 40) ** 2) - ((ROWS - 190) / 30) ** 2)
    canvas.body(bag, leather, 13, light)
    band = polygon([(34, 148), (206, 148), (209, 166), (31, 166)]) * bag
    canvas.body(band, leather, 3, light - 0.18, casts=0.5)
    canvas.seam([(33, 164), (207, 164)], dark, "#e0b88a")
    for edge in ([(66, 166), (60, 230), (58, 284)], [(174, 166), (180, 230), (182, 284)]):
        canvas.seam(smooth(edge, closed=False), dark, "#e0b88a")
    canvas.seam(smooth([(28, 246), (120, 254), (212, 246)], closed=False), dark, "#e0b88a")
    canvas.body(line(arch, 8), leather, 3, _leather(33), casts=0.5)
    for x in (82, 158):
        canvas.body(
            polygon([(x - 8, 150), (x + 8, 150), (x + 8, 196), (x, 204), (x - 8, 196)]), leather, 3, light, casts=0.6
        )
        canvas.body(ellipse((x, 168), 8, 8) - ellipse((x, 168), 5, 5), "#d8c078", 1.5, casts=0.5)
        canvas.body(ellipse((x, 192), 2.4, 2.4), "#d8c078", 1)
    return canvas.finish()


def backpack(cloth: str, accent: str) -> Image.Image:
    """A backpack with a front pocket, zips, a loop and straps."""
    canvas = Canvas()
    canvas.floor_shadow((120, 302), 80, 6, 0.5)
    loop = smooth([(106, 38), (108, 16), (132, 16), (134, 38)], closed=False)
    canvas.body(line(loop, 6), cloth, 2)
    strap = smooth([(60, 90), (38, 150), (36, 220), (52, 276)], closed=False)
    for side in (strap, mirrored(strap)):
        canvas.body(line(side, 12), cloth, 4, 0.15)
    bag = polygon(smooth(both_sides([(96, 28), (66, 50), (52, 110), (46, 200), (48, 280), (64, 300)])))
    light = _cloth(60, 0.8) + 0.5 * np.exp(-(((COLUMNS - 90) / 26) ** 2) - ((ROWS - 90) / 50) ** 2)
    canvas.body(bag, cloth, 14, light)
    zip_ = smooth(both_sides([(90, 46), (68, 74), (60, 130), (56, 190)]), closed=False)
    canvas.body(line(zip_, 3), "#050506", 1, casts=0.2)
    canvas.paint(line(zip_, 1, dashes=1), "#8a8a90")
    pocket = polygon(smooth(both_sides([(80, 176), (62, 190), (58, 240), (60, 284), (76, 292)])))
    canvas.body(pocket, cloth, 8, light + 0.2, casts=0.7)
    canvas.body(line([(66, 194), (174, 194)], 3), "#050506", 1)
    canvas.paint(line([(66, 194), (174, 194)], 1, dashes=1), "#8a8a90")
    canvas.body(polygon([(98, 222), (142, 222), (142, 240), (98, 240)]), accent, 2)
    canvas.body(line([(92, 194), (90, 210)], 3), accent, 1)
    return canvas.finish()


def table(wood: str) -> Image.Image:
    """An oak table."""
    canvas = Canvas()
    canvas.floor_shadow((124, 238), 106, 8, 0.35)
    grain = 0.07 * np.sin(ROWS * 1.6 + 2.4 * noise(60, 6, 70)) + 0.06 * noise(50, 1.2, 71)
    for x0, x1, y in ((56, 66, 216), (206, 216, 216)):
        canvas.body(polygon([(x0, 150), (x1, 150), (x1 - 2, y), (x0 + 2, y)]), wood, 4, grain - 0.3)
    for x0, x1, y in ((20, 34, 250), (178, 192, 250)):
        canvas.body(polygon([(x0, 170), (x1, 170), (x1 - 2, y), (x0 + 2, y)]), wood, 5, grain - 0.1)
    canvas.body(polygon([(22, 168), (190, 168), (190, 184), (22, 184)]), wood, 3, grain - 0.2)
    canvas.body(polygon([(10, 164), (56, 132), (230, 132), (200, 164)]), wood, 3, grain + 0.15)
    canvas.body(polygon([(10, 164), (200, 164), (200, 171), (10, 171)]), wood, 2, grain - 0.1)
    return canvas.finish()


def main() -> None:
    """Write every image."""
    root = Path(__file__).parents[1]
    folders = (root / "examples/images", root / "service/static/examples")  # the service ships its own copies
    images = {
        "navy-shirt": shirt("#1d2747", "#0d1530"),
        "red-dress": dress("#c01f2e", "#84121d"),
        "black-shoe": sports_shoe("#232327", "#f0f0f0", "#c8232c"),
        "brown-watch": watch("#6b4226", "#2e221c"),
        "brown-handbag": handbag("#8a5230", "#4a2a18"),
        "black-backpack": backpack("#26262a", "#c8232c"),
        "oak-table": table("#c2935a"),
    }
    for name, image in images.items():
        for folder in folders:
            folder.mkdir(exist_ok=True)
            image.save(folder / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
