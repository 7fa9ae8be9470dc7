"""Prints what a checkpoint measured of itself as recording rules, which the alerts on drift compare with.

    python deploy/prometheus/expected.py weights/fashion >deploy/prometheus/rules/expected.yml

Of listings with image and title at the default target precision, per attribute: the share of abstentions,
the mean weight of the image, and the share of each label among the answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET_PRECISION = "0.95"
"""The service's default. A service that asks for another one abstains at another rate."""

HEADER = """\
# Written by `make rules` from the checkpoint's metrics.json.
groups:
  - name: cma-clip-expected
    interval: 1m
    rules:
"""


def rules(metrics: dict[str, Any]) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Yield name, value and labels of every rule."""
    yield "expected_version", 1.0, {"version": metrics["version"]}
    for attribute, measured in metrics["situations"]["image_and_title"]["attributes"].items():
        accepted = measured["accepted"][TARGET_PRECISION]
        labels = {"attribute": attribute}
        yield "expected_abstention_ratio", 1.0 - (accepted["coverage"] if accepted else 0.0), labels
        yield "expected_image_weight", measured["modality_attention"]["image"], labels
        for label, share in measured["answered"].items():
            yield "expected_label_share", share, {**labels, "label": label}


def document(metrics: dict[str, Any]) -> str:
    """Return the rule file; JSON's strings and objects are YAML's too."""
    return HEADER + "".join(
        f"      - {{record: cma_clip:{name}, expr: vector({value:.4f}), labels: {json.dumps(labels)}}}\n"
        for name, value, labels in rules(metrics)
    )


if __name__ == "__main__":
    sys.stdout.write(document(json.loads((Path(sys.argv[1]) / "metrics.json").read_text())))
