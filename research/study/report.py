"""docs/results.md, from the JSON files alone: findings, tables, plots, times and commands."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from model.evaluation.evaluate import HEADINGS
from model.situations import Situation
from research.certificates import (
    DELTA,
    WAYS,
    JointOutcome,
    JointTrial,
    LabelTrial,
    Outcome,
    Trial,
    joint_summary,
    label_summary,
    summary,
)
from research.study import findings
from research.study.cells import Cells
from research.study.conditions import UNCORRUPTED, Condition, clean
from research.study.corruptions import CORRUPTIONS, MISMATCHED_IMAGE
from research.study.figures import save_figures
from research.study.results import Estimate, Results, both
from research.study.runs import ABLATIONS, CLIP_FINETUNED, CMA_CLIP
from research.study.study import all_names

COMMANDS = """```console
$ .venv/bin/cma-clip pretrain benchmarks/fashion.toml --init weights/fashion --out runs/towers
$ .venv/bin/python -m research.study run --init runs/towers/checkpoint --runs runs/study
$ .venv/bin/python -m research.study shipped weights/fashion
$ .venv/bin/cma-clip evaluate weights/fashion benchmarks/fashion.toml --scores runs/scores.npz
$ .venv/bin/python -m research.certificates runs/scores.npz --per-label \\
    --json research/results/study/certificates.json
$ .venv/bin/python -m research.study report
```"""

INTRODUCTION = """# Results

Written by `python -m research.study report` from the JSON files in `research/results/study`; every figure, and every
sentence that contains one, is computed. How the study is run: [train.md](train.md#the-study).

All figures are in %, with 95 % intervals in brackets, from a bootstrap over titles, since listings that share a title
are not independent. Differences are computed on the same listings, resampled in the same way. Recall at p % precision
is the share of listings that is accepted and right at the best threshold for these same listings, as in the paper;
confidences are the networks' own, before any temperature. A difference whose interval contains 0 is not significant.
CMA-CLIP and the fine-tuned CLIP were trained with several seeds: the difference between these two is that of their
means, and its interval covers other listings and other seeds. Everything else was trained once and is compared with
seed 0 alone; its intervals are widened by the variation between seeds in the runs with several. All runs share an image
tower that was trained on the labels beforehand, and is locked: the comparison is of how networks combine its output
with the title.
"""


def write_report(results: Results, page: Path) -> list[Path]:
    """Write the page, and its plots into the folder `study` beside it; return the paths."""
    plots = save_figures(results, page.parent / "study")
    text = render(results, [plot.name for plot in plots])
    page.write_text(f"{text}{_other_part(page)}", encoding="utf-8")
    return [page, *plots]


KEPT = "\n## Accepted labels on other listings\n"
"""Where the part of the page begins that `python -m docs.figures` writes."""


def _other_part(page: Path) -> str:
    """Return the end of an earlier page, which this command does not write."""
    _, begin, rest = page.read_text(encoding="utf-8").partition(KEPT) if page.is_file() else ("", "", "")
    return f"{begin}{rest}"


def render(results: Results, plots: Sequence[str]) -> str:
    """Return the page; `plots` are the names of the plots that exist."""
    parts = [
        INTRODUCTION,
        _findings(results),
        _budget(results),
        _clean(results),
        _seeds(results),
        _ablations(results),
        _trials(results),
        _corrupted(results, plots),
        _weights(results, plots),
        _calibration(results, plots),
        _certificates(results),
        _commands(results),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _findings(results: Results) -> str:
    lines = ["## Findings", ""]
    for subject, sentences in findings.sentences(results).items():
        lines += [f"**{subject}**", "", *(f"- {sentence}." for sentence in sentences), ""]
    if len(lines) == 2:
        lines += ["No run is finished.", ""]
    return "\n".join(lines)


def _budget(results: Results) -> str:
    lines = ["## Runs", ""]
    if budget := results.budget:
        lines += [
            f"Each run: {budget['epochs']} epochs of {budget['train_listings']:,} listings in batches of "
            f"{budget['batch_size']}, {budget['steps']:,} steps, from the same towers (`{budget['towers']}`), on the "
            "same split, with seed 0 unless its name says otherwise. Measured on "
            f"{budget['test_listings']:,} test listings that have both title and image; under corruptions, on a fixed "
            f"{budget['corrupted_listings']:,} of them (corruption seed {budget['corruption_seed']}), in the number "
            "format of training.",
            "",
        ]
        headings = ["run", "", "parameters", "training", "date"]
        lines += _table(headings, (_run_row(name, cells) for name, cells in results.trained.items()), left=2)
        machines = sorted({cells["machine"] for cells in results.trained.values()})
        lines += ["", f"Training times are in minutes, measured on: {'; '.join(machines)}.", ""]
    if results.missing:
        lines += [f"**Not run**: {', '.join(f'`{name}`' for name in results.missing)}.", ""]
    return "\n".join(lines)


def _run_row(name: str, cells: Cells) -> list[str]:
    parameters = f"{cells['parameters'] / 1e6:.1f} M" if "parameters" in cells else "-"
    return [f"`{name}`", cells["title"], parameters, f"{cells['training_seconds'] / 60:.1f}", cells["date"]]


def _clean(results: Results) -> str:
    lines = []
    for situation in Situation:
        key = clean(situation)
        names = [name for name in _compared(results) if results.cell(name, key)]
        if names:
            lines += [f"### {HEADINGS[situation]}", ""]
            headings = ["run", "accuracy", "macro F1", "R@90", "R@95"]
            measures = tuple(findings.MEASURE_NAMES)
            rows = (
                [results.title(name), *(_cell(results.estimate(name, key, measure)) for measure in measures)]
                for name in names
            )
            lines += [*_table(headings, rows), ""]
    if not lines:
        return ""
    for measure, heading in (("accuracy", "accuracy"), ("recall_at_95", "recall at 95 % precision")):
        lines += [f"### {heading.capitalize()} by attribute, image and title", ""]
        rows = (
            [
                results.title(name),
                *(_cell(results.estimate(name, findings.BOTH, measure, attribute)) for attribute in results.attributes),
            ]
            for name in _compared(results)
            if results.cell(name, findings.BOTH)
        )
        lines += [*_table(["run", *results.attributes], rows), ""]
    return "\n".join(["## Clean listings", "", "Means over the attributes.", "", *lines])


def _compared(results: Results) -> list[str]:
    """Return the names of the main tables' rows: all except the ablations."""
    ablations = {run.name for run in ABLATIONS}
    return [name for name in all_names() if name in results.runs and name not in ablations]


def _seeds(results: Results) -> str:
    pair = CMA_CLIP.name, CLIP_FINETUNED.name
    seeds = results.seeds(*pair)
    if seeds < 2:
        return ""
    rows = []
    for attribute in (*results.attributes, "mean"):
        difference = results.difference(*pair, findings.BOTH, "accuracy", attribute)
        each = [results.by_seed(name, findings.BOTH, "accuracy", attribute)[:seeds] for name in pair]
        spreads = [" to ".join(f"{100 * share:.2f}" for share in (min(of), max(of))) for of in each]
        means = [f"{100 * float(np.mean(of)):.2f} ({spread})" for of, spread in zip(each, spreads, strict=True)]
        rows.append([attribute, *means, "-" if difference is None else findings.points(difference, digits=2)])
    headings = ["attribute", *(results.title(name) for name in pair), "difference of the means"]
    lines = [
        "## Seeds",
        "",
        f"Accuracy on clean listings with image and title: the mean of {seeds} seeds, and their range.",
        "",
        *_table(headings, rows),
        "",
    ]
    return "\n".join(lines)


def _ablations(results: Results) -> str:
    rows = []
    for run in (CMA_CLIP, *ABLATIONS):
        if run.name in results.runs:
            differences = [
                results.difference(run.name, CMA_CLIP.name, findings.BOTH, measure)
                for measure in ("accuracy", "recall_at_95")
            ]
            rows.append(
                [
                    run.title,
                    *(_cell(results.estimate(run.name, findings.BOTH, each)) for each in findings.MEASURE_NAMES),
                    *("-" if each is None or run is CMA_CLIP else findings.points(each) for each in differences),
                ]
            )
    if len(rows) < 2:
        return ""
    headings = ["run", "accuracy", "macro F1", "R@90", "R@95", "accuracy, against CMA-CLIP", "R@95, against CMA-CLIP"]
    return "\n".join(
        ["## Ablations", "", "Image and title; means over the attributes.", "", *_table(headings, rows), ""]
    )


TRIED = (
    ("accuracy", findings.BOTH, "accuracy"),
    ("R@95", findings.BOTH, "recall_at_95"),
    ("R@95, label words removed", findings.WITHOUT_LABEL_WORDS, "recall_at_95"),
    ("accuracy, mismatched title", findings.WITH_MISMATCHED_TITLE, "accuracy"),
    ("accuracy, mismatched image", both(MISMATCHED_IMAGE, 1.0), "accuracy"),
    ("accuracy, image alone", clean(Situation.IMAGE), "accuracy"),
    ("accuracy, title alone", clean(Situation.TITLE), "accuracy"),
)


def _trials(results: Results) -> str:
    if not results.trials:
        return ""
    budget = next(iter(results.trials.values()))["budget"]
    rows = (
        [f"`{name}`", *(_percent(results.tried(name, key, measure)) for _, key, measure in TRIED), _settings(cells)]
        for name, cells in results.trials.items()
    )
    lines = [
        "## Recipes tried",
        "",
        f"The recipe was chosen on {budget['test_listings']:,} listings of the validation part, "
        f"{budget['steps']:,} steps each from the towers `{budget['towers']}` "
        "(`python -m research.study trial NAME --set ...`). Means over the attributes.",
        "",
        *_table(["recipe", *(heading for heading, *_ in TRIED), "settings"], rows),
        "",
    ]
    return "\n".join(lines)


def _settings(cells: Cells) -> str:
    settings = {name: value for name, value in cells["settings"].items() if name not in ("network", "text")}
    return ", ".join(f"`{name}={value}`" for name, value in settings.items()) or "the defaults"


def _corrupted(results: Results, plots: Sequence[str]) -> str:
    names = [name for name in all_names() if results.cell(name, both(UNCORRUPTED, 0.0))]
    if not names:
        return ""
    lines = ["## Corrupted listings", ""]
    for measure, heading in (("accuracy", "Mean accuracy"), ("recall_at_95", "Mean recall at 95 % precision")):
        lines += [f"{heading}, each corruption at its strongest:", ""]
        strongest = [(UNCORRUPTED, 0.0), *((each.name, each.strengths[-1]) for each in CORRUPTIONS)]
        rows = [
            [
                f"{corruption}, {strength:g}" if strength else corruption,
                *(_percent(results.on_curve(name, corruption, strength, measure)) for name in names),
            ]
            for corruption, strength in strongest
        ]
        lines += [*_table(["", *(f"`{name}`" for name in names)], rows), ""]
    lines += _images(plots, ("curves_accuracy.png", "curves_recall.png"))
    return "\n".join(lines)


def _weights(results: Results, plots: Sequence[str]) -> str:
    rows = []
    for attribute in results.attributes:
        if (row := findings.costs(results, attribute)) is not None:
            needed = findings.needed_weights(results).get(attribute)
            shares = (*row, *(needed or (None, None)))
            rows.append([attribute, *(_percent(share) for share in shares)])
    if not rows:
        return ""
    headings = [
        "attribute",
        "image weight",
        "accuracy lost without the image",
        "accuracy lost without the title",
        "image weight where only the image is right",
        "where only the title is right",
    ]
    lines = ["## Modality weights", "", "CMA-CLIP, clean listings, image and title.", "", *_table(headings, rows), ""]
    lines += ["Under the corruptions (dashed: the mean over attributes):", "", *_images(plots, ("weights.png",))]
    return "\n".join(lines)


def _calibration(results: Results, plots: Sequence[str]) -> str:
    shipped = results.shipped
    if shipped is None:
        return ""
    conditions = shipped["conditions"]
    attributes = list(next(iter(conditions.values()))["attributes"])
    lines = [
        "## Calibration of the shipped checkpoint",
        "",
        f"`{shipped['checkpoint']}`, version `{shipped['version']}`. Expected calibration error, before > after the "
        "temperature, on clean listings:",
        "",
    ]
    rows = [[HEADINGS[situation], *_errors(conditions[clean(situation)], attributes)] for situation in Situation]
    lines += [*_table(["situation", *attributes], rows), "", *_images(plots, ("reliability.png",))]
    target = f"{100 * shipped['target_precision']:g}"
    lines += [
        "Under the corruptions at their strongest: coverage / precision of the labels that the thresholds certified at "
        f"{target} % accept. The calibration part contained no corruptions, so no precision is guaranteed here.",
        "",
    ]
    for situation in Situation:
        corrupted = [
            (each.name, Condition(situation=situation, corruption=each.name, strength=each.strengths[-1]).key)
            for each in CORRUPTIONS
        ]
        known = [(UNCORRUPTED, Condition(situation=situation, corruption=UNCORRUPTED).key), *corrupted]
        rows = [
            [name, _mean_error(conditions[key]), *_kept(conditions[key], attributes)]
            for name, key in known
            if key in conditions
        ]
        lines += [f"### {HEADINGS[situation]}", "", *_table(["", "ECE, mean", *attributes], rows), ""]
        below = sum(
            cell["precision"] is not None and cell["precision"] < shipped["target_precision"]
            for name, key in corrupted
            if key in conditions
            for cell in conditions[key]["attributes"].values()
        )
        cases = sum(len(conditions[key]["attributes"]) for _, key in corrupted if key in conditions)
        lines += [f"Precision of the accepted labels is below {target} % in {below} of {cases} corrupted cases.", ""]
    return "\n".join([*lines, *_images(plots, ("reliability_corrupted.png",))])


def _errors(condition: Mapping[str, Mapping[str, Mapping[str, float]]], attributes: Iterable[str]) -> list[str]:
    return [
        f"{_percent(cell['error_before'])} > {_percent(cell['error_after'])}"
        for cell in (condition["attributes"][attribute] for attribute in attributes)
    ]


def _mean_error(condition: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    means = [
        np.mean([cell[name] for cell in condition["attributes"].values()]) for name in ("error_before", "error_after")
    ]
    return " > ".join(_percent(float(mean)) for mean in means)


def _kept(condition: Mapping[str, Mapping[str, Mapping[str, float]]], attributes: Iterable[str]) -> list[str]:
    return [
        f"{_percent(cell['coverage'])} / {_percent(cell['precision'])}" if cell["precision"] is not None else "abstains"
        for cell in (condition["attributes"][attribute] for attribute in attributes)
    ]


CASE = ("situation", "attribute", "target")


def _certificates(results: Results) -> str:
    document = results.certificates
    if document is None:
        return ""
    trials = [Trial(**{**each, **{way: Outcome(**each[way]) for way in WAYS}}) for each in document["trials"]]
    labels = [LabelTrial(**each) for each in document["label_trials"]]
    joint = [
        JointTrial(**{**each, **{way: JointOutcome(**each[way]) for way in ("single", "together")}})
        for each in document["joint_trials"]
    ]
    lines = [
        "## Certified thresholds",
        "",
        f"{document['splits']} random splits into halves of the listings that were used neither for training nor for "
        "the temperatures: certified on one half, measured on the other. A promise is kept if at most "
        f"{100 * DELTA:g} % of the splits break it.",
        "",
        "Certified: splits with a threshold. Broken: splits with a precision below the target. Lost: points of "
        "coverage against the oracle threshold, the best one for all listings together.",
        "",
        *(f"- {line}." for line in summary(trials).splitlines()),
        *(f"- {line}." for line in joint_summary(joint).splitlines()),
        *(f"- {line}." for line in (label_summary(labels).splitlines() if labels else ())),
        "",
    ]
    headings = [*CASE, "certified", "broken", "coverage", "lost"]
    headings += [f"{way}: {what}" for way in WAYS[1:] for what in ("broken", "lost")]
    rows = [
        [
            trial.situation.replace("_", " "),
            trial.attribute,
            f"{100 * trial.target:g}",
            *map(_percent, (trial.certified.certified, trial.certified.broken, trial.certified.coverage)),
            *map(_percent, (trial.certified.lost, trial.naive.broken, trial.naive.lost)),
            *map(_percent, (trial.unadjusted.broken, trial.unadjusted.lost)),
        ]
        for trial in trials
    ]
    lines += [*_table(headings, rows, left=2), ""]
    if labels:
        headings = [*CASE, "labels", "kept", "broken, mean", "broken, worst", "attribute broken", "coverage"]
        rows = [
            [
                each.situation.replace("_", " "),
                each.attribute,
                f"{100 * each.target:g}",
                str(each.labels),
                str(each.kept),
                *map(_percent, (each.broken, each.worst_broken, each.attribute_broken, each.coverage)),
            ]
            for each in labels
        ]
        note = (
            "Label by label: how many labels had their own threshold in at least one split; for how many of them the "
            "promise was kept; the share of broken splits; and the splits in which the precision of the whole "
            "attribute, including labels that use its threshold, was below the target, which thresholds by "
            "label do not promise."
        )
        lines += [note, "", *_table(headings, rows, left=2), ""]
    return "\n".join(lines)


def _commands(results: Results) -> str:
    epochs = results.budget.get("epochs")
    note = f" The runs of this report were trained with `--epochs {epochs}`." if epochs else ""
    return "\n".join(
        [
            "## Commands",
            "",
            f"An interrupted study is resumed, and finished runs are left unchanged.{note}",
            "",
            COMMANDS,
            "",
        ]
    )


# --- Markdown ----------------------------------------------------------------------------------------------


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"| {' | '.join(['---'] * left + ['---:'] * (len(headings) - left))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _images(plots: Sequence[str], names: Sequence[str]) -> list[str]:
    shown = [name for name in names if name in plots]
    return list(itertools.chain.from_iterable((f"![{name.removesuffix('.png')}](study/{name})", "") for name in shown))


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
