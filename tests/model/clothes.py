"""A catalogue of clothes and watches: several materials each, a sleeve length where there is a sleeve; titles alone."""

from __future__ import annotations

import csv
import random
from pathlib import Path

MATERIALS = ("Cotton", "Linen", "Steel", "Wool")
SLEEVES = ("Long", "Short")

TOML = """
[catalogue]
table = "clothes.csv"
id = "id"
title = "title"
attributes = ["kind", "material", "sleeve"]
min_label_count = 2
separator = {material = "|"}
product_type = "kind"

[labels.material]
"Wool" = {de = "Wolle", fr = "Laine", description = "of sheep"}
"Silk" = {de = "Seide"}
"""


def write_clothes(folder: Path, rows: int) -> Path:
    """Write a catalogue of `rows` listings, and return its TOML file.

    Each material is named in the title. One shirt in twenty lacks the cell for its materials.
    """
    rng = random.Random(5)
    with (folder / "clothes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "kind", "material", "sleeve"])
        for row in range(rows):
            kind = ("Shirt", "Watch")[row % 2]
            materials = rng.sample(MATERIALS, rng.choice((1, 2, 2, 3)))
            sleeve = rng.choice(SLEEVES) if kind == "Shirt" else ""
            words = [kind, *sorted(materials), *([f"{sleeve} Sleeve"] if sleeve else [])]
            cell = "|".join(rng.sample(materials, len(materials))) if row % 40 else ""
            writer.writerow([f"c-{row}", f"{' '.join(words)} number {row}", kind, cell, sleeve])
    toml = folder / "clothes.toml"
    toml.write_text(TOML)
    return toml
