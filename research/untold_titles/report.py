"""The section of docs/results.md on titles that don't tell, from the JSON files alone.

May import `docs.blocks` besides what `research.study.report` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from docs.blocks import between
from model.errors import ConfigError
from model.situations import Situation
from research.study.cells import Cells, read_cells
from research.study.conditions import clean
from research.study.findings import MEASURE_NAMES, points, verdict
from research.study.results import Estimate, Results
from research.study.runs import Plan
from research.untold_titles.networks import Contender, Patches
from research.untold_titles.plan import (
    ABLATIONS,
    COMPARED,
    MAIN,
    MATCHING,
    MIDDLE,
    PATCHES,
    PROTOCOL,
    RECIPES,
    SEEDS,
    STRENGTHS,
    TITLES,
    Chosen,
    matching_runs,
    trials,
    validated,
)
from research.untold_titles.study import DETAILS, DIAGNOSIS, MATCHES_NAME, READINGS, TRIALS

COMMAND = "research.untold_titles report"
BLOCK = "titles"
BOTH = clean(Situation.IMAGE_AND_TITLE)
MEASURE, LEVEL, AIM = (PROTOCOL["primary"][name] for name in ("measure", "level", "aim"))
TAILS = (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("recall_at_90", "R@90"), ("recall_at_95", "R@95"))


def write_section(results: Path, page: Path) -> Path:
    """Write the section into `page`, between its markers; return the page's path.

    Raises `ConfigError` for a page without these markers.
    """
    text = page.read_text(encoding="utf-8")
    try:
        page.write_text(between(text, BLOCK, section(results), command=COMMAND), encoding="utf-8")
    except ValueError as error:
        raise ConfigError(f"{page}: {error}") from error
    return page


def section(folder: Path) -> str:
    """Return the section; what is not there yet is said to be missing."""
    chosen = Chosen.on_validation(folder / MIDDLE / TRIALS)
    parts = [_readings(folder), _tuning(folder)]
    if chosen is not None:
        plan = chosen.plan()
        results = Results(folder / MIDDLE, plan)
        parts += [_primary(results), _others(results, plan), _once(folder, chosen)]
    parts += [_matching(folder), _weights(folder), _gradients(folder)]
    return "\n\n".join(part for part in parts if part)


# --- readings and tuning -----------------------------------------------------------------------------------


def _readings(folder: Path) -> str:
    path = folder / READINGS
    if not path.is_file():
        return "What each modality alone reads has not been measured yet."
    read = json.loads(path.read_text(encoding="utf-8"))
    names = list(read["titles"]["told"]["accuracy"])
    rows = [
        [
            f"titles, {'as they are' if name == 'told' else name}",
            f"{each['words']:.1f}",
            *_percents(each["accuracy"], names),
        ]
        for name, each in read["titles"].items()
    ]
    rows += [
        [f"images, {'as they are' if name == 'all' else f'{name} rows of pixels'}", "", *_percents(each, names)]
        for name, each in read["images"].items()
    ]
    said = (
        "What each modality alone reads of the test part: accuracy in % of a bag of words, trained on the titles of "
        "that strength, and of linear probes of the locked image tower, trained on images of that detail."
    )
    return "\n".join([said, "", *_table(["read from", "words", *names], rows)])


def _tuning(folder: Path) -> str:
    paths = {run.name: folder / MIDDLE / TRIALS / f"{run.name}.json" for run in trials()}
    there = {name: path for name, path in paths.items() if path.is_file()}
    if not there:
        return "Nothing has been tuned yet."
    rows = (
        [f"`{recipe}`", *(_validated(there.get(f"{contender}-{recipe}")) for contender in COMPARED)]
        for recipe in RECIPES
    )
    said = (
        "Tuning: mean recall at 90 % precision on the validation part, middle strength, patches of the last stage "
        f"({len(there)} of {len(paths)} trials done)."
    )
    return "\n".join([said, "", *_table(["recipe", *(TITLES[contender] for contender in COMPARED)], rows)])


def _validated(path: Path | None) -> str:
    return "-" if path is None else f"{100 * validated(path):.1f}"


# --- the comparison ----------------------------------------------------------------------------------------


def _primary(results: Results) -> str:
    """Return the primary comparison: both contenders on both stages, and the verdict."""
    lines, met = [], []
    for patches in Patches:
        names = [MAIN[contender][patches].name for contender in COMPARED]
        if not all(name in results.runs for name in names):
            continue
        seeds = results.seeds(names[0], names[1])
        difference = results.difference(names[0], names[1], BOTH, MEASURE, level=LEVEL)
        if difference is None:
            continue
        complete = seeds == SEEDS
        met += [difference.value >= AIM and difference.low > 0] if complete else []
        lines.append(
            f"- {PATCHES[patches]}: {MEASURE_NAMES[MEASURE]}, CMA-CLIP against fine-tuned CLIP (means of {seeds} "
            f"{'seeds' if seeds > 1 else 'seed'}), {points(difference)}: {verdict(difference)}"
            f"{'' if complete else f'; **{SEEDS - seeds} of {SEEDS} seeds are missing**'}."
        )
    if not lines:
        return "The primary comparison has not been run yet."
    if len(met) == len(Patches):
        lines.append(
            f"- the aim, at least {100 * AIM:.0f} points at one of the stages: {'met' if any(met) else '**missed**'}."
        )
    said = f"The primary comparison, with intervals at {100 * LEVEL:g} %:"
    return "\n".join([said, "", *lines, "", *_figures(results, [run.name for run in results.plan.runs[:4]])])


def _figures(results: Results, names: Sequence[str]) -> Iterator[str]:
    """Yield a table of runs: the mean over their seeds of each measure, and their range."""
    rows = []
    for name in names:
        if name in results.runs:
            each = [results.by_seed(name, BOTH, measure) for measure, _ in TAILS]
            rows.append([results.title(name), str(len(each[0])), *map(_spread, each)])
    yield from _table(
        ["image and title, means over the attributes", "seeds", *(title for _, title in TAILS)], rows, left=1
    )


def _others(results: Results, plan: Plan) -> str:
    """Return ablations and exploratory runs, each against CMA-CLIP on the same patches."""
    primary = [run.name for run in plan.runs[:4]]
    rows = []
    for name in (*(run.name for run in plan.runs if run.name not in primary), *plan.references):
        if name in results.runs:
            patches = Patches.LAST if name.endswith(Patches.LAST) else Patches.BEFORE
            against = MAIN[Contender.CMA_CLIP][patches].name
            difference = results.difference(name, against, BOTH, MEASURE)
            kind = "ablation" if name in {run.name for run in ABLATIONS} else "exploratory"
            figures = [_spread(results.by_seed(name, BOTH, measure)) for measure, _ in TAILS]
            shown = "-" if difference is None else points(difference)
            rows.append([results.title(name), kind, str(results.seeds(name, against)), *figures, shown])
    if not rows:
        return ""
    headings = ["run", "", "seeds", *(title for _, title in TAILS), "R@90 against CMA-CLIP on the same patches"]
    return "\n".join(["Ablations, and exploratory runs of one seed:", "", *_table(headings, rows, left=2)])


def _once(folder: Path, chosen: Chosen) -> str:
    """Return the difference at each other strength and detail; one seed, exploratory."""
    rows = []
    for name in (*STRENGTHS, *(f"{MIDDLE}-{rows}-rows" for rows in DETAILS)):
        if name != MIDDLE:
            results = Results(folder / name, chosen.once())
            for patches in Patches:
                pair = [MAIN[contender][patches].name for contender in COMPARED]
                if all(each in results.runs for each in pair):
                    values = [_spread(results.by_seed(each, BOTH, MEASURE)) for each in pair]
                    difference = results.difference(pair[0], pair[1], BOTH, MEASURE)
                    shown = "-" if difference is None else points(difference)
                    rows.append([name, PATCHES[patches], *values, shown])
    if not rows:
        return ""
    headings = ["catalogue", "", *(TITLES[contender] for contender in COMPARED), "difference"]
    said = (
        "Other strengths, and images with less detail: mean recall at 90 % precision, one seed, exploratory; the "
        "intervals cover other listings alone, not other seeds."
    )
    return "\n".join([said, "", *_table(headings, rows, left=2)])


# --- the made-up attribute, and why ------------------------------------------------------------------------


def _matching(folder: Path) -> str:
    rows, best = [], {}
    for name, runs in matching_runs().items():
        tried = {run.name: folder / MATCHES_NAME / TRIALS / f"{run.name}.json" for run in runs}
        if all(path.is_file() for path in tried.values()):
            measured = next((run for run in runs if (folder / MATCHES_NAME / f"{run.name}.json").is_file()), None)
            cell = _cell(folder / MATCHES_NAME / f"{measured.name}.json") if measured else None
            best[name] = cell["accuracy"] if cell else None
            title = runs[0].title.partition(",")[0]
            rates = " / ".join(f"{100 * validated(path, 'accuracy'):.1f}" for path in tried.values())
            rows.append([title, rates, _estimate(best[name])])
    if not rows:
        return "The made-up attribute has not been tried yet."
    rates = " / ".join(f"{rate:g}" for rate in MATCHING["learning_rates"])
    lines = list(_table(["contender", f"validation, learning rate {rates}", "test, the better one"], rows))
    said = (
        "The made-up attribute, whether the title names the colour of the image, image and title: accuracy in %, of "
        "which 50 are a guess."
    )
    reached = best.get(str(Contender.CMA_CLIP))
    aim = []
    if reached is not None:
        met = "met" if reached[0] >= MATCHING["aim"] else "**missed**"
        aim = ["", f"The aim, CMA-CLIP right for at least {100 * MATCHING['aim']:.0f} %: {met}."]
    return "\n".join([said, "", *lines, *aim])


def _cell(path: Path) -> Cells:
    cell: Cells = read_cells(path)["conditions"][BOTH]["attributes"]["mean"]
    return cell


def _weights(folder: Path) -> str:
    rows = []
    for path in sorted((folder / DIAGNOSIS).glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for attribute, worth in found.get("weights", {}).items():
            spread = f"{worth['mean']:.2f} ± {worth['deviation']:.2f}"
            shares = (worth[name] for name in ("accuracy", "constant", "best_constant", "oracle"))
            rows.append([f"`{found['run']}`", attribute, spread, *(_percent(share) for share in shares)])
    if not rows:
        return ""
    headings = ["run", "attribute", "image weight", "accuracy", "mean weight", "best constant", "oracle"]
    said = (
        "What the modality weights are worth: the image's weight over listings (mean ± deviation); the accuracy with "
        "the learned weights; with their mean for every listing; with the best single weight for these very listings; "
        "and where one weight at least is right, which no weights of these vectors can surpass."
    )
    return "\n".join([said, "", *_table(headings, rows, left=2)])


def _gradients(folder: Path) -> str:
    lines: list[str] = []
    for path in sorted((folder / DIAGNOSIS).glob("*-gradients.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        layers: dict[str, list[float]] = found["layers"]
        shown = _shown(max(map(len, layers.values()), default=0))
        headings = ["layer", *(f"from step {place * found['interval']:,}" for place in shown)]
        rows = ([layer, *(f"{1000 * values[place]:.2f}" for place in shown)] for layer, values in layers.items())
        said = f"Gradients of `{found['run']}`: their norm in thousandths of the weights' norm, by layer."
        lines += [said, "", *_table(headings, rows), ""]
    return "\n".join(lines).rstrip()


def _shown(intervals: int) -> list[int]:
    """Return which intervals are shown: five of them, evenly spaced."""
    return sorted({round(place) for place in np.linspace(0, intervals - 1, min(5, intervals))}) if intervals else []


# --- Markdown ----------------------------------------------------------------------------------------------


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"| {' | '.join(['---'] * left + ['---:'] * (len(headings) - left))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _percents(shares: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [_percent(shares[name]) for name in names]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _spread(values: Sequence[float]) -> str:
    """Write the mean of a figure over seeds and, where there are several, its range."""
    if not values:
        return "-"
    spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * float(np.mean(values)):.1f}{spread}"


def _estimate(values: Sequence[float] | None) -> str:
    if values is None:
        return "-"
    found = Estimate(*values)
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
