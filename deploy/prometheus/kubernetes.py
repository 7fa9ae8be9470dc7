"""Prints the rules of `rules/` as the PrometheusRule that the Prometheus operator reads (`make rules`)."""

from __future__ import annotations

import sys
from pathlib import Path

RULES = Path(__file__).with_name("rules")

HEADER = """\
# Written by `make rules` from deploy/prometheus/rules.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: cma-clip
spec:
  groups:
"""


def manifest(rules: Path = RULES) -> str:
    """Return the manifest; the groups are taken over line by line, comments and all."""
    lines = []
    for path in sorted(rules.glob("*.yml")):
        _, _, groups = path.read_text().partition("\ngroups:\n")
        lines += [f"  {line}" if line else "" for line in groups.splitlines()]
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(manifest())
