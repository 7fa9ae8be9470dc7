"""What `cma-clip check` found, as a page: on the terminal, in HTML and in JSON.

All three are made from the same sections, so that none says what another does not. The HTML is one file that loads
nothing, in the design of the playground; every text from the table is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.catalogue.check import AttributeFacts, CatalogueCheck, Evidence, Finding, Severity
from model.situations import Situation
from model.trust.applicability import Applicability

if TYPE_CHECKING:
    from model.training.advice import Advice

LABELS_SHOWN = 8
"""Labels of an attribute that the terminal names; the HTML page has them all."""

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}

SITUATIONS = {
    Situation.IMAGE_AND_TITLE: "image and title",
    Situation.IMAGE: "image alone",
    Situation.TITLE: "title alone",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, columns and rows of text; `numbers` are the columns of figures."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    remark: str = ""


def verdict(check: CatalogueCheck) -> str:
    """Return in one line whether training would take the catalogue."""
    if check.errors:
        return "Training would refuse this catalogue."
    if not check.config.attributes:
        return "This catalogue can be labelled; there is nothing to train on."
    return "Training would take this catalogue" + (", with warnings." if check.warnings else ".")


def sections(check: CatalogueCheck, advice: Advice | None, *, labels_shown: int | None) -> Iterator[Section]:
    """Yield the page's sections; of an attribute's labels `labels_shown` are named (None: all)."""
    yield _rows(check)
    if check.report.left_out or check.report.repaired:
        yield _problems(check)
    yield _parts(check)
    if check.attributes:
        yield _attributes(check)
        yield _labels(check, labels_shown)
    if check.applicability is not None:
        yield _applicability(check.applicability)
    if advice:
        yield _advice(check, advice)


def _rows(check: CatalogueCheck) -> Section:
    report, images = check.report, check.report.images
    rows = [
        ("rows read", f"{report.rows:,}", f"as {report.form}" if report.form else ""),
        ("listings", f"{report.listings:,}", ""),
        ("repaired", f"{report.repaired:,}", "commas or quotes put right where that is certain"),
        ("left out", f"{report.left_out.total():,}", ""),
        ("without title", f"{report.without_title:,}", "empty, or a placeholder"),
        ("without image", f"{report.without_image:,}", ""),
        ("images named", f"{images.named:,}", ""),
        ("images found", f"{images.found:,}", ""),
        ("images not found", f"{images.not_found:,}", "first paths tried: " + ", ".join(images.missing)),
    ]
    rows[-1] = (*rows[-1][:2], rows[-1][2] if images.missing else "")
    return Section(heading="Table and images", columns=("", "", ""), rows=rows, numbers=frozenset({1}))


def _problems(check: CatalogueCheck) -> Section:
    report = check.report
    kinds = [("repaired", report.repaired, report.repaired_lines, "")] if report.repaired else []
    kinds += [
        (f"left out: {reason}", count, report.left_out_lines[reason], report.left_out_examples.get(reason, ""))
        for reason, count in report.left_out.most_common()
    ]
    rows = [
        (what, f"{count:,}", ", ".join(map(str, lines)) + (", …" if count > len(lines) else ""), example)
        for what, count, lines, example in kinds
    ]
    columns = ("rows", "count", "lines", "example")
    return Section(heading="Rows that did not fit", columns=columns, rows=rows, numbers=frozenset({1}))


def _parts(check: CatalogueCheck) -> Section:
    grouped = f"grouped by {', '.join(check.config.group)}" if check.config.group else "not grouped"
    rows = [(part.value, f"{count:,}") for part, count in check.parts.items()]
    shared = (
        f"In several parts: {check.titles.apart:,} of {check.titles.keys:,} titles, "
        f"{check.images.apart:,} of {check.images.keys:,} images ({check.images_compared:,} files compared)."
    )
    heading = f"Parts, {grouped}"
    return Section(heading=heading, columns=("part", "listings"), rows=rows, numbers=frozenset({1}), remark=shared)


def _attributes(check: CatalogueCheck) -> Section:
    needed = ", ".join(f"{count} for {target:g}" for target, count in check.needed.items())
    rows = [
        (
            f"{facts.name} (several)" if facts.multi_valued else facts.name,
            f"{facts.labelled:,}",
            f"{len(facts.learned):,}",
            f"{len(facts.rare):,}",
            f"{len(facts.spellings):,}",
            *(_certifiable(facts.evidence[situation], check.needed) for situation in SITUATIONS),
        )
        for facts in check.attributes
    ]
    columns = ("attribute", "labelled", "labels", "too rare", "joined", *SITUATIONS.values())
    remark = (
        "The last three columns: the highest precision that can be certified in each situation, and the labelled "
        "calibration listings (their labels, where a listing may have several). Needed, if all answers are right: "
        f"{needed}."
    )
    return Section(
        heading="Attributes", columns=columns, rows=rows, numbers=frozenset(range(1, len(columns))), remark=remark
    )


def _certifiable(evidence: Evidence, needed: Mapping[float, int]) -> str:
    best = evidence.certifiable(needed)
    return f"{'none' if best is None else f'{best:g}'} ({evidence.rows:,})"


def _labels(check: CatalogueCheck, shown: int | None) -> Section:
    rows = [(facts.name, _counts(facts, shown)) for facts in check.attributes]
    return Section(heading="Labels, in the whole table", columns=("attribute", "labels"), rows=rows)


def _counts(facts: AttributeFacts, shown: int | None) -> str:
    counts = [f"{label} {count:,}" for label, count in facts.labels.items()]
    return ", ".join(counts[:shown]) + (f", … ({len(counts):,} in all)" if shown and len(counts) > shown else "")


def _applicability(found: Applicability) -> Section:
    rows = [
        (attribute, ", ".join(f"{kind} ({each.labelled:,} of {each.listings:,})" for kind, each in types.items()))
        for attribute, types in found.never.items()
    ]
    remark = "In brackets: how many of their training listings have a label." if rows else "Every attribute may apply."
    return Section(
        heading="Not applicable",
        columns=("attribute", f"to these labels of {found.product_type}"),
        rows=rows,
        remark=remark,
    )


def _advice(check: CatalogueCheck, advice: Advice) -> Section:
    toml = check.config.path
    commands = [f"cma-clip train {toml} --out runs/{toml.stem}"]
    if advice.pretrain:
        commands = [
            f"cma-clip pretrain {toml} --out runs/{toml.stem}-towers",
            f"{commands[0]} --init runs/{toml.stem}-towers/checkpoint",
        ]
    rows = [("run", command) for command in commands]
    rows.append(
        ("defaults for this size", f"{advice.epochs} epochs of batches of {advice.batch_size}, {advice.steps:,} steps")
    )
    rows.append(("start", "the towers just pre-trained" if advice.pretrain else advice.start))
    if advice.minutes is not None:
        rows.append(("training takes here", f"about {_time(advice.minutes)}: {advice.basis}"))
    return Section(heading="Recommendation", columns=("", ""), rows=rows)


def _time(minutes: float) -> str:
    if minutes < 90:
        return f"{max(1, round(minutes))} minutes"
    return f"{minutes / 60:.1f} hours"


# --- the terminal ------------------------------------------------------------------------------------------


def draw(check: CatalogueCheck, advice: Advice | None, console: Console | None = None) -> None:
    """Print the page."""
    console = console or Console()
    console.print(Text(check.report.table, "bold"), Text(verdict(check), "red" if check.errors else ""))
    for finding in check.findings:
        text = Text.assemble((f"{finding.severity.value:<8}", STYLES[finding.severity]), finding.text)
        console.print(text)
        if finding.advice:
            console.print(Text(f"        {finding.advice}", "dim"))
    for section in sections(check, advice, labels_shown=LABELS_SHOWN):
        console.print()
        console.print(_terminal_table(section))
        if section.remark:
            console.print(Text(section.remark, "dim"))


def _terminal_table(section: Section) -> Table:
    table = Table(
        title=Text(section.heading, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=any(section.columns),
    )
    for at, column in enumerate(section.columns):
        table.add_column(Text(column), justify="right" if at in section.numbers else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*map(Text, row))
    return table


# --- JSON --------------------------------------------------------------------------------------------------


def as_json(check: CatalogueCheck, advice: Advice | None) -> dict[str, Any]:
    """Return the facts as JSON content."""
    report = check.report
    return {
        "table": report.table,
        "form": report.form,
        "trainable": not check.errors and bool(check.config.attributes),
        "findings": [asdict(finding) for finding in check.findings],
        "rows": report.rows,
        "listings": report.listings,
        "repaired": report.repaired,
        "left_out": {
            reason: {
                "rows": count,
                "lines": report.left_out_lines[reason],
                "example": report.left_out_examples.get(reason),
            }
            for reason, count in report.left_out.items()
        },
        "images": asdict(report.images) | {"not_found": report.images.not_found},
        "without_image": report.without_image,
        "without_title": report.without_title,
        "parts": {part.value: count for part, count in check.parts.items()},
        "shared_titles": asdict(check.titles),
        "shared_images": asdict(check.images),
        "images_compared": check.images_compared,
        "needed": {str(target): count for target, count in check.needed.items()},
        "attributes": {facts.name: _facts_json(facts, check.needed) for facts in check.attributes},
        "not_applicable": asdict(check.applicability)["never"] if check.applicability else None,
        "recommendation": asdict(advice) if advice else None,
    }


def _facts_json(facts: AttributeFacts, needed: Mapping[float, int]) -> dict[str, Any]:
    return {
        "labelled": facts.labelled,
        "labels": facts.labels,
        "rare": facts.rare,
        "spellings": facts.spellings,
        "multi_valued": facts.multi_valued,
        "too_many": facts.too_many,
        "certifiable": {
            situation.value: asdict(evidence) | {"target_precision": evidence.certifiable(needed)}
            for situation, evidence in facts.evidence.items()
        },
    }


# --- HTML --------------------------------------------------------------------------------------------------

_STYLE = Path(__file__).parents[1] / "static" / "check.css"


def as_html(check: CatalogueCheck, advice: Advice | None) -> str:
    """Return the page as one HTML document that loads nothing."""
    name, style = escape(check.report.table), _STYLE.read_text(encoding="utf-8")
    findings = "".join(map(_finding, check.findings)) or "<li><p>Nothing to mend.</p></li>"
    body = "".join(map(_section, sections(check, advice, labels_shown=None)))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{name} · catalogue check · CMA-CLIP</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<p class="brand">CMA-CLIP catalogue check</p>\n<h1>{name}</h1>\n<p class="lead">'
        f"{escape(verdict(check))}</p>\n<h2>Findings</h2>\n<ul>{findings}</ul>\n{body}</main>\n</body>\n</html>\n"
    )


def _finding(finding: Finding) -> str:
    advice = f'<p class="advice">{escape(finding.advice)}</p>' if finding.advice else ""
    kind = finding.severity.value
    return f'<li class="{kind}"><p><strong>{kind}:</strong> {escape(finding.text)}</p>{advice}</li>\n'


def _section(section: Section) -> str:
    heading = escape(section.heading)
    head = ""
    if any(section.columns):
        cells = "".join(_cell("th", text, at in section.numbers, "col") for at, text in enumerate(section.columns))
        head = f"<thead><tr>{cells}</tr></thead>"
    rows = "".join(
        "<tr>"
        + "".join(
            _cell("td" if at else "th", text, at in section.numbers, "" if at else "row") for at, text in enumerate(row)
        )
        + "</tr>\n"
        for row in section.rows
    )
    remark = f'<p class="remark">{escape(section.remark)}</p>' if section.remark else ""
    return (
        f'<section aria-label="{heading}"><h2>{heading}</h2>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{heading}, table">'
        f"<table>{head}<tbody>{rows}</tbody></table></div>{remark}</section>\n"
    )


def _cell(tag: str, text: str, number: bool, scope: str) -> str:
    scoped = f' scope="{scope}"' if scope else ""
    kind = ' class="number"' if number else ""
    return f"<{tag}{scoped}{kind}>{escape(text)}</{tag}>"
