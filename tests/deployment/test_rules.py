"""The configuration of Prometheus and its rules, by promtool: read, and unit-tested."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from deploy.prometheus.expected import document
from tests.deployment.tools import ROOT, run

RULES = ROOT / "deploy/prometheus/rules"


def test_promtool_accepts_the_configuration_and_its_rules() -> None:
    run("promtool", "check", "config", ROOT / "deploy/prometheus/prometheus.yml")


@pytest.mark.parametrize("name", ["service", "answers"])
def test_rules_record_and_fire_as_they_should(name: str) -> None:
    run("promtool", "test", "rules", ROOT / f"tests/deployment/rules/{name}.yml")


def test_every_alert_is_unit_tested_and_explained() -> None:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    tests = "".join((ROOT / f"tests/deployment/rules/{name}.yml").read_text() for name in ("service", "answers"))
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", tests))
    explained = set(re.findall(r"^### (\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE))
    assert alerts == fired
    assert alerts <= explained


def test_expectations_are_of_the_shipped_checkpoint() -> None:
    metrics = json.loads((ROOT / "weights/fashion/metrics.json").read_text())
    assert (RULES / "expected.yml").read_text() == document(metrics), "`make rules` writes it anew"
