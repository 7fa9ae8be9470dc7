"""The study's figures as tables of docs/noise.md: `python -m research.noise.report`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "research" / "results"
RESULTS, TITLES, SHIPPED = (FOLDER / f"{name}.json" for name in ("noise", "noise-titles", "noise-shipped"))
PAGE = ROOT / "docs" / "noise.md"

NOISY = ("articleType", "baseColour", "season", "usage")
"""The attributes that tables show; the JSON file has all."""

SHOWN_FLIPS = "image_and_title/titles"

KIND_NAMES = {
    "": "none",
    "uniform": "uniform",
    "similar": "between similar labels",
    "annotator": "by annotator",
    "listing": "by listing",
}


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables that the figures are there for, by the name of their place in the page."""
    shown = {}
    base = [row for row in found["rows"] if row["remedy"] == "base"]
    if base:
        shown["influence"] = "\n".join(_rows(base, "noise", lambda row: f"{KIND_NAMES[row['kind']]}{_rate(row)}"))
        lines = []
        for kind, rate in dict.fromkeys((row["kind"], row["rate"]) for row in found["rows"]):
            own = [row for row in found["rows"] if (row["kind"], row["rate"]) == (kind, rate)]
            if len(own) > 1:
                lines += ["", f"Noise: {KIND_NAMES[kind]}{_rate(own[0])}.", ""]
                lines += _rows(own, "remedy", lambda row: row["remedy"])
        shown["remedies"] = "\n".join(lines).strip()
    return shown


def shipped_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of what was measured beside a finished checkpoint."""
    return {"planted": audit_lines(found["audit"]), "calibration": "\n".join(_calibration(found["calibration"]))}


def _rate(row: Mapping[str, Any]) -> str:
    return f", {100 * row['rate']:g} %" if row["rate"] else ""


def _rows(rows: Sequence[Mapping[str, Any]], first: str, name: Any) -> Iterator[str]:
    """Yield a table: accuracy and coverage of the noisy attributes, and means over all of flips and churn, in %."""
    names = [each for each in NOISY if each in rows[0]["accuracy"]] or list(rows[0]["accuracy"])
    headings = [first, "seeds", *(f"accuracy: {each}" for each in names), *(f"coverage: {each}" for each in names)]
    yield _line([*headings, "title flips", "churn"])
    yield _line(["---", *["---:"] * (len(headings) + 1)])
    for row in rows:
        cells = [_figure(row[figure][each]) for figure in ("accuracy", "coverage") for each in names]
        flips = _mean([each["mean"] for each in row["flips"][SHOWN_FLIPS].values() if each])
        churn = _mean(list(row["churn"]["labels"].values())) if "churn" in row else "-"
        yield _line([name(row), str(row["seeds"]), *cells, flips, churn])


def _calibration(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table: coverage / precision on the test part, by attribute and kind, for each rate."""
    rows = [row for row in rows if row["attribute"] in NOISY] or rows
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    by_place = {(row["attribute"], row["kind"], row["rate"]): row for row in rows}
    yield _line(["attribute", "noise", *(f"{100 * rate:g} %" for rate in rates)])
    yield _line(["---", "---", *["---:"] * len(rates)])
    for attribute, kind in dict.fromkeys((row["attribute"], row["kind"]) for row in rows):
        cells = []
        for rate in rates:
            row = by_place[attribute, kind, rate]
            precision = "-" if row["precision"] is None else f"{100 * row['precision']:.1f}"
            cells.append(f"{100 * row['coverage']:.1f} / {precision}")
        yield _line([attribute, KIND_NAMES[kind], *cells])


def audit_lines(found: Mapping[str, Any]) -> str:
    """Return the table of how well an audit by the shipped checkpoint finds planted noise."""
    headings = ["attribute", "labels", "AUROC", "precision of the first 5 %", "error of the estimated share, in points"]
    lines = [_line(headings), _line(["---", *["---:"] * 4])]
    lines += [
        _line(
            [
                name,
                f"{row['labels']:,}",
                f"{row['auroc']:.4f}",
                f"{row['precision_of_first']:.3f}",
                f"{row['points_off']:+.1f}",
            ]
        )
        for name, row in found.items()
    ]
    return "\n".join(lines)


def _figure(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found['mean']:.1f}" + (f" ± {100 * found['half']:.1f}" if "half" in found else "")


def _mean(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.2f}" if values else "-"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_tables(page: str, shown: Mapping[str, str]) -> str:
    """Return the page with each table in its place, between `<!-- noise: NAME -->` and `<!-- end -->`."""
    for name, table in shown.items():
        place = re.compile(rf"(<!-- noise: {name} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
        page = place.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", page)  # type: ignore[misc]
    return page


def current() -> dict[str, str]:
    """Return all tables that there are figures for."""
    shown = tables(json.loads(RESULTS.read_text())) if RESULTS.is_file() else {}
    titles = tables(json.loads(TITLES.read_text())) if TITLES.is_file() else {}
    shown |= {f"titles, {name}": table for name, table in titles.items()}
    return shown | (shipped_tables(json.loads(SHIPPED.read_text())) if SHIPPED.is_file() else {})


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), current()), encoding="utf-8")
