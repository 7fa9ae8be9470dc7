"""The memory of training that the documentation states is what was counted, and the counting follows the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.training_memory import TITLE_TOKENS, footprint
from model.network import towers
from tests.conftest import TINY_BACKBONE

ROOT = Path(__file__).parents[2]


def test_the_documented_figures_are_those_that_were_counted() -> None:
    page = (ROOT / "docs" / "large-models.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ViT-")]
    counted = json.loads((ROOT / "benchmarks" / "results" / "training_memory.json").read_text(encoding="utf-8"))
    assert len(rows) == len(counted)
    for (name, how, fixed, listing), each in zip(rows, counted, strict=True):
        assert name.strip() == each["backbone"]
        assert ("freeze = 6" in how, "checkpointing" in how) == (each["freeze"] == 6, each["activation_checkpointing"])
        assert fixed.strip() == f"{each['fixed'] / 2**30:.1f}"
        assert listing.strip() == f"{each['listing'] / 2**20:.0f}"


def test_frozen_blocks_and_checkpointed_activations_take_less(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = {
        **TINY_BACKBONE,
        "vision_cfg": {**TINY_BACKBONE["vision_cfg"], "layers": 6},  # type: ignore[dict-item]
        "text_cfg": {**TINY_BACKBONE["text_cfg"], "context_length": TITLE_TOKENS},  # type: ignore[dict-item]
    }
    monkeypatch.setattr(towers, "BACKBONES", {"deep": deep})
    usual = footprint("deep", freeze=0, checkpointing=False)
    frozen, checkpointed = (
        footprint("deep", freeze=3, checkpointing=False),
        footprint("deep", freeze=0, checkpointing=True),
    )
    assert usual.fixed >= 20 * usual.parameters
    assert frozen.fixed < usual.fixed
    assert frozen.listing < usual.listing
    assert checkpointed.listing < usual.listing
