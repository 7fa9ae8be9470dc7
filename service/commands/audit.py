"""`cma-clip audit`: a catalogue's own labels, ranked by how likely they are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from model.errors import ConfigError
from service.commands.arguments import CatalogueFile, Device
from service.commands.evaluation import tables_console
from service.commands.html_page import html_page, html_table, thumbnail

if TYPE_CHECKING:
    from model.catalogue.corrections import JudgedRow
    from model.catalogue.listings import Catalogue, Listing
    from model.evaluation.audit import AttributeAudit, Contradiction

SHOWN = 50
"""Labels of each attribute that the page shows, with images."""

CONTRADICTIONS_SHOWN = 50

LISTINGS_SHOWN = 6
"""Of a group of listings that contradict each other."""


def audit(
    catalogue: CatalogueFile,
    *,
    out: Annotated[Path, typer.Option(help="file to write, .csv or .parquet", show_default=False)],
    checkpoint: Annotated[
        Path | None, typer.Option(help="judge by this checkpoint what it was not trained on", show_default=False)
    ] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="the checkpoint was trained on another catalogue: judge all listings")
    ] = False,
    folds: Annotated[int, typer.Option(min=2, help="without a checkpoint: train so many, each without a share")] = 3,
    recipe: Annotated[Path | None, typer.Option(help="how to train them", show_default="the defaults")] = None,
    runs: Annotated[Path, typer.Option(help="where they are trained; what is done is not done again")] = Path(
        "runs/audit"
    ),
    html: Annotated[Path | None, typer.Option(help="write a page with images", show_default=False)] = None,
    random: Annotated[
        int | None,
        typer.Option(
            min=1, help="draw so many held-out listings to be judged by people, without a model", show_default=False
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Rank a catalogue's own labels by how likely they are wrong.

    The table itself is never changed. What people decide about the labels is read by --corrections of train, calibrate
    and evaluate.
    """
    from model.catalogue.listings import Catalogue  # noqa: PLC0415
    from model.evaluation.audit import audit_table, find_contradictions  # noqa: PLC0415
    from model.training.audit import audit as run  # noqa: PLC0415

    _check(out, html, unseen=unseen, checkpoint=checkpoint)
    shop, console = Catalogue.open(catalogue), tables_console()
    if random is not None:
        if checkpoint or recipe:
            raise ConfigError("--random draws a sample without a model: leave out --checkpoint and --recipe")
        _draw(shop, random, out, html)
        return
    found = find_contradictions(shop)
    console.print(describe_contradictions(found), markup=False, highlight=False)
    audits = run(
        shop,
        checkpoint=checkpoint,
        unseen=unseen,
        folds=folds,
        recipe=recipe,
        runs=runs,
        device=device,
        console=Console(stderr=True),
    )
    console.print(audit_table(audits))
    write_suspects(audits, out)
    if html:
        html.write_text(page(audits, found, shop), encoding="utf-8")


def _check(out: Path, html: Path | None, *, unseen: bool, checkpoint: Path | None) -> None:
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{out} has to end in .csv or .parquet")
    for path in (out, html):
        if path and not path.parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} to write {path.name} into")
    if unseen and checkpoint is None:
        raise ConfigError("--unseen speaks of a checkpoint; name it with --checkpoint")


def describe_contradictions(found: Sequence[Contradiction]) -> str:
    """Say how many groups of listings contradict each other, attribute by attribute."""
    if not found:
        return "no two listings with the same title or image have different labels"
    lines = []
    for name in dict.fromkeys(each.attribute for each in found):
        by_kind = [
            f"{len(groups):,} {same}s ({sum(len(each.listings) for each in groups):,} listings)"
            for same in ("title", "image")
            if (groups := [each for each in found if each.attribute == name and each.same == same])
        ]
        lines.append(f"{name}: different labels on the same {' and '.join(by_kind)}")
    return "\n".join(lines)


def write_suspects(audits: Sequence[AttributeAudit], out: Path) -> None:
    """Write all judged labels, attribute by attribute, in order of rank; replaces the file at once when complete."""
    from model.catalogue.corrections import write_rows  # noqa: PLC0415
    from model.evaluation.audit import Suspect  # noqa: PLC0415

    rows = (astuple(suspect) for audited in audits for suspect in audited.suspects)
    write_rows([field.name for field in fields(Suspect)], rows, out)


def _draw(catalogue: Catalogue, count: int, out: Path, html: Path | None) -> None:
    """Write a random sample that people are to judge: a row for each label, without a model's answer."""
    from model.catalogue.corrections import random_sample, rows_to_judge, write_judged  # noqa: PLC0415

    listings = random_sample(catalogue, count)
    rows = rows_to_judge(listings, catalogue.config.separator)
    write_judged(rows, out)
    if html:
        html.write_text(sample_page(listings, rows, catalogue), encoding="utf-8")
    print(f"{len(listings):,} listings with {len(rows):,} labels to judge: fill in the column 'decision' of {out}")


# --- the page ----------------------------------------------------------------------------------------------


def page(audits: Sequence[AttributeAudit], found: Sequence[Contradiction], catalogue: Catalogue) -> str:
    """Return the likeliest errors of each attribute, with images, as an HTML page that loads nothing."""
    return html_page(f"Audit of {catalogue.config.path.stem}", "".join(_sections(audits, found, catalogue)))


def sample_page(listings: Sequence[Listing], rows: Sequence[JudgedRow], catalogue: Catalogue) -> str:
    """Return the listings of a random sample, with images and the labels to judge, as an HTML page."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault(row.id, []).append(f"{escape(row.attribute)}: <strong>{escape(row.label)}</strong>")
    cells = [
        [thumbnail(each.image, catalogue), _listing(each), "<br>".join(labels.get(each.id, ()))] for each in listings
    ]
    table = html_table(f"{len(cells)} listings", ["image", "listing", "labels to judge"], cells)
    return html_page(f"Random sample of {catalogue.config.path.stem}", table)


def _sections(audits: Sequence[AttributeAudit], found: Sequence[Contradiction], catalogue: Catalogue) -> Iterator[str]:
    from model.evaluation.audit import described  # noqa: PLC0415

    for audited in audits:
        yield f"<h2>{escape(audited.name)}</h2>\n"
        if audited.noise is not None:
            yield f"<p>Estimated share of wrong labels, with its 95 % interval: {described(audited.noise)} %.</p>\n"
        if pairs := audited.confusions():
            rows = [[escape(given), escape(true), f"{100 * share:.2f}"] for given, true, share in pairs]
            yield html_table("Which label is given for which", ["given", "should be", "% of listings"], rows)
        shown = list(zip(audited.suspects, audited.listings, strict=True))[:SHOWN]
        rows = [
            [
                str(suspect.rank),
                thumbnail(listing.image, catalogue),
                _listing(listing),
                escape(suspect.label),
                escape(suspect.suggestion or "–"),
                "–" if suspect.score is None else f"{suspect.score:.2f}",
            ]
            for suspect, listing in shown
        ]
        headings = ["rank", "image", "listing", "label", "suggestion", "score"]
        yield html_table("The likeliest errors", headings, rows)
    if found:
        yield "<h2>Labels that contradict each other</h2>\n"
        rows = [_contradiction(each, catalogue) for each in found[:CONTRADICTIONS_SHOWN]]
        yield html_table(
            f"{len(rows)} of {len(found):,} groups", ["attribute", "same", "image", "listings and labels"], rows
        )


def _contradiction(each: Contradiction, catalogue: Catalogue) -> list[str]:
    shown = each.listings[:LISTINGS_SHOWN]
    lines = [f"{_listing(one)}: <strong>{escape(one.labels[each.attribute])}</strong>" for one in shown]
    if len(each.listings) > len(shown):
        lines.append(f"and {len(each.listings) - len(shown)} more")
    return [escape(each.attribute), each.same, thumbnail(shown[0].image, catalogue), "<br>".join(lines)]


def _listing(listing: Listing) -> str:
    return f"{escape(listing.id)} {escape(listing.title or '')}"
