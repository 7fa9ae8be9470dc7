"""`cma-clip compare`: what would change if one checkpoint replaced another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from model.errors import ConfigError
from service.commands.arguments import CatalogueFile, CheckpointFolder, Device
from service.commands.evaluation import tables_console
from service.commands.html_page import html_page, html_table, thumbnail

if TYPE_CHECKING:
    from model.catalogue.listings import Catalogue
    from model.evaluation.compare import Changed, Comparison, Reading

SHOWN = 200
"""Changed answers that the HTML page shows, with images."""


def compare(
    before: CheckpointFolder,
    after: CheckpointFolder,
    catalogue: CatalogueFile,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="answer all listings, not those of the test part alone")
    ] = False,
    target_precision: Annotated[float, typer.Option(help="of the verdicts that are compared")] = 0.95,
    html: Annotated[
        Path | None, typer.Option(help="write a page with the listings that changed", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="write all figures and changes as JSON", show_default=False)
    ] = None,
    device: Device = "auto",
) -> None:
    """Say what would change if the second checkpoint replaced the first.

    Both answer the catalogue's test part, or all of it; a table without labels will do.
    """
    from model.catalogue.listings import Catalogue  # noqa: PLC0415
    from model.catalogue.splits import Part  # noqa: PLC0415
    from model.evaluation.compare import compare as run  # noqa: PLC0415
    from model.evaluation.compare import comparison_tables  # noqa: PLC0415
    from model.evaluation.evaluate import HEADINGS  # noqa: PLC0415
    from model.inference.predictor import Predictor  # noqa: PLC0415

    for path in (html, out):
        if path and not path.parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} to write {path.name} into")
    shop = Catalogue.open(catalogue)
    listings = list(shop.listings) if everything else shop.part(Part.TEST)
    if not listings:
        raise ConfigError(f"{catalogue} has no listing in its test part; --all takes all of them")
    found = run(
        Predictor.load(before, device=device),
        Predictor.load(after, device=device),
        shop,
        listings,
        target_precision=target_precision,
        console=Console(stderr=True),
    )
    console = tables_console()
    for table in comparison_tables(found.figures, HEADINGS):
        console.print(table)
    console.print(summary(found), markup=False, highlight=False)
    if out:
        out.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if html:
        html.write_text(page(found, shop), encoding="utf-8")


def summary(found: Comparison) -> str:
    """Say in a few lines what was compared, and what a rollout would change."""
    figures = found.figures
    accepted = sum(each.before.accepted and each.after.accepted for each in _other_labels(found.changed))
    lines = [
        f"{_name(figures['before'])} → {_name(figures['after'])}",
        f"{figures['listings']:,} listings of {figures['data']} were answered by both.",
        f"{len(found.changed):,} answers change their label or verdict; {accepted:,} are accepted by both, with "
        "different labels.",
    ]
    if figures["unreadable_images"]:
        lines.append(f"{figures['unreadable_images']:,} listings were left out: their image cannot be read.")
    if figures["attributes_of_one_alone"]:
        lines.append(f"Only one checkpoint has {', '.join(figures['attributes_of_one_alone'])}: not compared.")
    return "\n".join(lines)


def _name(model: dict[str, str]) -> str:
    return f"{model['name']} {model['version']}"


def _other_labels(changed: Sequence[Changed]) -> Iterator[Changed]:
    return (each for each in changed if each.before.label != each.after.label)


# --- the page ----------------------------------------------------------------------------------------------


def page(found: Comparison, catalogue: Catalogue) -> str:
    """Return the comparison as an HTML page that loads nothing: figures, and the answers to look at first."""
    from model.evaluation.compare import COLUMNS, churn_rows  # noqa: PLC0415
    from model.evaluation.evaluate import HEADINGS  # noqa: PLC0415

    parts = ["".join(f"<p>{escape(line)}</p>\n" for line in summary(found).splitlines())]
    parts += ["<h2>Figures, in %</h2>\n"]
    for situation, attributes in found.figures["situations"].items():
        if rows := churn_rows(attributes):
            body = [[escape(cell) for cell in row] for row in rows]
            parts.append(html_table(HEADINGS[situation], ["attribute", *COLUMNS], body, numbers=True))
    shown = found.changed[:SHOWN]
    if shown:
        said = "all" if len(shown) == len(found.changed) else f"the first {len(shown)}"
        parts.append(f"<h2>Answers that change: {said} of {len(found.changed):,}</h2>\n")
        headings = ["image", "listing", "attribute", "before", "after", "catalogue"]
        parts.append(html_table("", headings, [_changed_row(each, catalogue) for each in shown]))
    names = " → ".join(_name(found.figures[side]) for side in ("before", "after"))
    return html_page(f"{names}", "".join(parts))


def _changed_row(each: Changed, catalogue: Catalogue) -> list[str]:
    return [
        thumbnail(each.image, catalogue),
        f"<strong>{escape(each.id)}</strong><br>{escape(each.title or '')}",
        escape(each.attribute),
        _reading(each.before),
        _reading(each.after),
        escape(each.truth or "–"),
    ]


def _reading(reading: Reading) -> str:
    verdict = "accepted" if reading.accepted else "not accepted"
    return f"{escape(reading.label)}<br>{100 * reading.confidence:.0f} %, {verdict}"
