"""`audit`: which labels of a catalogue are likeliest wrong, by models that have not seen them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.evaluation.audit import AttributeAudit, Evidence
from model.evaluation.heldout import evidence_groups
from model.inference.predictor import Predictor
from model.training.folds import train_folds
from model.training.recipe import Recipe

RUNS = Path("runs/audit")


def audit(
    catalogue: Catalogue,
    *,
    checkpoint: str | Path | None = None,
    unseen: bool = False,
    folds: int = 3,
    recipe: Path | None = None,
    runs: Path = RUNS,
    device: str = "auto",
    console: Console | None = None,
) -> list[AttributeAudit]:
    """Rank a catalogue's own labels by how likely they are wrong; one audit per attribute.

    With a `checkpoint` only the listings outside the train part are judged, which it has not been trained on; `unseen`
    says that it was trained on another catalogue, and all are judged. Without one, `folds` checkpoints are trained in
    `runs`, each without a share of the listings, by the defaults or by `recipe`.

        for attribute in audit(Catalogue.open("shop.toml")):
            print(attribute.name, attribute.suspects[:10])

    Raises `CatalogueError` where there is nothing to judge, and what training and `Predictor.load` raise.
    """
    console = console or Console(stderr=True)
    evidence = Evidence(catalogue, console)
    if checkpoint is not None:
        listings = [each for each in catalogue.listings if unseen or each.part is not Part.TRAIN]
        evidence.add(Predictor.load(checkpoint, device=device), listings, catalogue.part(Part.VALIDATION))
    else:
        groups = evidence_groups(catalogue.listings).tolist()
        way = Recipe.load(recipe) if recipe else None
        for fold in train_folds(catalogue, groups, folds, runs, recipe=way, device=device, console=console):
            evidence.add(Predictor.load(fold.checkpoint, device=device), fold.unseen, fold.validation)
    return evidence.judge()
