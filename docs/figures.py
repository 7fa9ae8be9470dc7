"""Writes the README's table of scores from what was measured: the checkpoint's metrics.json and the baselines' JSON.

python -m docs.figures
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "README.md"
BEGIN, END = "<!-- scores: written by python -m docs.figures -->", "<!-- end of scores -->"


def main() -> None:
    """Write the table into the README."""
    PAGE.write_text(with_scores(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


def with_scores(page: str) -> str:
    """Return `page` with the table of scores between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{scores()}\n\n{END}{after}"


def scores() -> str:
    """Return accuracy in each situation beside the baselines', and what 0.95 accepts, as a Markdown table in %."""
    situations = _read("weights/fashion/metrics.json")["situations"]
    attributes = list(situations["image_and_title"]["attributes"])
    lines = [
        f"| accuracy, % | {' | '.join(attributes)} |",
        f"| --- |{' ---: |' * len(attributes)}",
    ]
    for name, values in _rows(situations):
        lines.append(f"| {name} | {' | '.join(_percent(values[attribute]) for attribute in attributes)} |")
    return "\n".join(lines)


def _rows(situations: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float | None]]]:
    yield "TF-IDF + logistic regression on the title", _baseline("title")
    yield "plain residual convnet on the image", _baseline("image")
    for name, situation in (("image and title", "image_and_title"), ("title alone", "title"), ("image alone", "image")):
        measured = situations[situation]["attributes"]
        yield f"CMA-CLIP, {name}", {attribute: each["accuracy"] for attribute, each in measured.items()}
    measured = situations["image_and_title"]["attributes"]
    for what in ("coverage", "precision"):
        accepted = {attribute: each["accepted"]["0.95"] for attribute, each in measured.items()}
        yield (
            f"{what} of the labels accepted at 0.95",
            {attribute: point[what] if point else None for attribute, point in accepted.items()},
        )


def _baseline(name: str) -> dict[str, float | None]:
    measured = _read(f"benchmarks/results/baseline_{name}.json")["attributes"]
    return {attribute: score["accuracy"] for attribute, score in measured.items()}


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
