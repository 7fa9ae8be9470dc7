"""The dashboard's JSON: what Grafana would not understand, and what would lie on top of each other."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deployment.tools import ROOT

DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/cma-clip.json").read_text())


def test_grafana_knows_every_field() -> None:
    register_default_plugins()
    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert list(_lost(DASHBOARD, understood, "")) == []


def _lost(written: Any, understood: Any, path: str) -> list[str]:
    """Return the paths of what is written and was not understood."""
    if isinstance(written, dict):
        return [
            lost
            for key, value in written.items()
            for lost in (_lost(value, understood[key], f"{path}.{key}") if key in understood else [f"{path}.{key}"])
        ]
    if isinstance(written, list):
        pairs = zip(written, understood, strict=True)
        return [lost for index, pair in enumerate(pairs) for lost in _lost(*pair, f"{path}[{index}]")]
    return [] if written == understood else [path]


def test_panels_have_each_their_place() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
