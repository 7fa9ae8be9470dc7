"""CMA-CLIP as a library: predict with a checkpoint, or make one from a catalogue.

    from model import Catalogue, Predictor, audit, calibrate, evaluate, label, train

    predictor = Predictor.load("weights/fashion")
    for answer in predictor.classify([("Men Navy Blue Shirt", "shirt.jpg")], target_precision=0.95):
        print({name: each.label for name, each in answer.items() if each.accepted})

Each name is imported when it is first used (PEP 562), so that `import model` is cheap and only what is used needs its
dependencies. Everything else in the package may change between releases; the rooms are described in
docs/architecture.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.catalogue.listings import Catalogue
    from model.errors import ModelError
    from model.evaluation.calibrate import calibrate
    from model.evaluation.evaluate import evaluate
    from model.inference.label import label
    from model.inference.predictor import Predictor
    from model.training.audit import audit
    from model.training.train import train

__all__ = ["Catalogue", "ModelError", "Predictor", "audit", "calibrate", "evaluate", "label", "train"]

_HOMES = {
    "Catalogue": "model.catalogue.listings",
    "ModelError": "model.errors",
    "Predictor": "model.inference.predictor",
    "audit": "model.training.audit",
    "calibrate": "model.evaluation.calibrate",
    "evaluate": "model.evaluation.evaluate",
    "label": "model.inference.label",
    "train": "model.training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
