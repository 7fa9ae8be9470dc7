"""Writes the README's figures, scores, kept promises and an answer, and those of docs/train.md about small catalogues.

They come from the checkpoint's metrics.json and the baselines' JSON; the answer is computed anew.

python -m docs.figures
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from docs.blocks import between
from model.inference.predictor import Predictor
from service.schemas import ClassifyReply

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "README.md"
TRAINING = ROOT / "docs" / "train.md"
RESULTS = ROOT / "docs" / "results.md"
CHECK = ROOT / "docs" / "check.md"
REVIEWS = ROOT / "docs" / "reviews.md"
SITUATIONS = {"image_and_title": "image and title", "title": "title alone", "image": "image alone"}


def main() -> None:
    """Write the figures into the pages."""
    page = with_scores(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(_written(page, "answer", f"```json\n{answer()}\n```"), encoding="utf-8")
    TRAINING.write_text(with_small_catalogues(TRAINING.read_text(encoding="utf-8")), encoding="utf-8")
    RESULTS.write_text(with_accepted(RESULTS.read_text(encoding="utf-8")), encoding="utf-8")
    CHECK.write_text(with_tables(CHECK.read_text(encoding="utf-8")), encoding="utf-8")
    REVIEWS.write_text(with_reviewing(with_live_precision(REVIEWS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(PAGE, TRAINING, RESULTS, CHECK, REVIEWS, sep="\n")


def with_scores(page: str) -> str:
    """Return `page` with the table of scores and the promises between their markers."""
    return _written(_written(page, "scores", scores()), "promises", promises())


def with_small_catalogues(page: str) -> str:
    """Return `page` with the table of what `benchmarks.baselines small` measured."""
    draws = _read("benchmarks/results/small_catalogue.json")
    listings = " ".join(f"{draw['train_listings']:,}" for draw in draws).replace(" ", ", ")
    lines = ["| accuracy, % | bag of words | default training | difference | by draw |", "| --- |" + " ---: |" * 4]
    for name in draws[0]["network"]:
        words, network = ([100 * draw[side][name] for draw in draws] for side in ("bag_of_words", "network"))
        apart = [ours - theirs for ours, theirs in zip(network, words, strict=True)]
        means = (sum(each) / len(draws) for each in (words, network))
        cells = [f"{mean:.1f}" for mean in means]
        by_draw = ", ".join(f"{each:+.1f}" for each in apart)
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(apart) / len(apart):+.1f} | {by_draw} |")
    tested = f"{draws[0]['test_listings']:,} test listings"
    said = f"Means of {len(draws)} draws of 2,000 rows ({listings} training listings), on {tested}."
    return _written(page, "small", "\n".join([*lines, "", said]))


TASKS = {
    "read": "reading, as `label` does",
    "check": "`check`",
    "label": "`label`, with a model that costs nothing",
    "open": "opening it to train",
}


FORMS = {"zip": "CSV, and a zip of as many images", "titles": "parquet, ids and titles alone"}


def with_tables(page: str) -> str:
    """Return docs/check.md with the speed and memory that `benchmarks.tables` measured."""
    lines = ["| table | | rows | rows/s | MiB at the start | at the peak |", "| --- | --- |" + " ---: |" * 4]
    for each in _read("benchmarks/results/tables.json"):
        figures = [each[name] for name in ("rows", "rows_per_second", "start_mebibytes", "peak_mebibytes")]
        form = FORMS.get(each["form"], each["form"])
        lines.append(f"| {form} | {TASKS[each['task']]} | {' | '.join(f'{figure:,}' for figure in figures)} |")
    return _written(page, "tables", "\n".join(lines))


def with_live_precision(page: str) -> str:
    """Return docs/reviews.md with how soon `benchmarks.live_precision` found a broken promise to be noticed."""
    found = _read("benchmarks/results/live_precision.json")
    lines = [
        "| sequences | start | judged until noticed, median | in 9 of 10 cases | within 300, % | within 1,000, % |",
        "|" + " ---: |" * 6,
    ]
    for each in found["noticed"]:
        counts = [each[name] for name in ("sequences", "start", "median", "nine_in_ten")]
        shares = [f"{100 * each['within'][judged]:.1f}" for judged in ("300", "1000")]
        lines.append(f"| {' | '.join([*(f'{count:,}' for count in counts), *shares])} |")
    alarms = max(each["all_sequences"] for each in found["false_alarms"])
    said = f"False alarms within {found['looks']:,} looks, where every precision is exactly what was promised: at most "
    said += f"{100 * alarms:.2f} %, over all {found['sequences']} sequences."
    return _written(page, "live precision", "\n".join([*lines, "", said]))


def with_reviewing(page: str) -> str:
    """Return docs/reviews.md with what `benchmarks.reviewing` measured."""
    found = _read("benchmarks/results/reviewing.json")
    said = f"{found['decisions']} decisions took a scripted reviewer {found['keys']} keys, "
    said += f"{found['keys_most']} at most for one of them. "
    said += f"The next pair was there after {found['wait_seconds_median']:.2f} s (median), "
    said += f"{found['wait_seconds_largest']:.2f} s at most. So somebody who needs no more than "
    said += f"{found['seconds_left_for_each']:.1f} s for each pair judges {found['decisions']} in ten minutes."
    return _written(page, "reviewing", textwrap.fill(said, 120))


# --- accepted labels on other listings ---------------------------------------------------------------------


def with_accepted(page: str) -> str:
    """Return docs/results.md with what the benchmarks of accepted labels measured, before and after the gate."""
    for name, table in (
        ("photos", photos()),
        ("mismatched", mismatched()),
        ("familiarity", familiarity()),
        ("held-out classes", held_out_classes()),
    ):
        page = _written(page, name, table)
    return page


def photos() -> str:
    """Return what becomes of the same photos in other formats, image alone, before and now, as a table in %."""
    before, now = (_read(f"benchmarks/results/{name}.json") for name in ("photos_before", "photos"))
    lines = [
        "| image alone, % | articleType right | coverage | precision | labels changed |",
        "| --- |" + " ---: |" * 4,
    ]
    for name in now["formats"]:
        each = [found["formats"].get(name, {}).get("image") for found in (before, now)]
        cells = [
            " → ".join(_percent(found[of][figure]) if found else "-" for found in each)
            for of, figure in (
                ("articleType", "accuracy"),
                ("all", "coverage"),
                ("all", "precision"),
                ("all", "changed"),
            )
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    said = f"{before['listings']:,} → {now['listings']:,} test listings; checkpoint {before['model']['version']} →"
    return "\n".join([*lines, "", f"{said} {now['model']['version']}."])


PAIRS = {
    "itself": "its own title",
    "another_type": "the title of another article type",
    "the_same_type": "another title of the same article type",
    "german": "a made-up title in German",
    "other_languages": "in French, Italian, Turkish, Japanese or Arabic",
    "codes": "keyboard noise, codes, placeholders",
}
"""Titles that an image is sent beside; those from German on were not measured before the gate."""


def mismatched() -> str:
    """Return what is accepted of an image beside another title, before and now, as Markdown tables in %."""
    before, now = (_read(f"benchmarks/results/{name}.json") for name in ("mismatched_before", "mismatched"))
    names = list(now["itself"]["attributes"])
    lines = [f"| accepted, % | nothing accepted | {' | '.join(names)} |", "| --- |" + " ---: |" * (1 + len(names))]
    for kind, words in PAIRS.items():
        each = [found[kind] for found in (before, now) if kind in found]
        cells = [" → ".join(_percent(found["nothing_accepted"]) for found in each)]
        cells += [" → ".join(_percent(found["attributes"][name]["accepted"]) for found in each) for name in names]
        lines.append(f"| {words} | {' | '.join(cells)} |")
        right = [" → ".join(_percent(found["attributes"][name]["either"]) for found in each) for name in names]
        lines.append(f"| of these right, for either owner | | {' | '.join(right)} |")
    ignored = ", ".join(_percent(now[kind]["title_ignored"]) for kind in ("german", "other_languages", "codes"))
    said = f"Of the made-up titles {ignored} % are ignored, and the image is answered alone; the rest is refused."
    return "\n".join([*lines, "", said, "", *_levels(now)])


def _levels(now: Mapping[str, Any]) -> list[str]:
    """Return the share of listings whose image and title are taken to contradict each other, by the conflict level."""
    levels = list(now["itself"]["disagree"])
    lines = [f"| contradictory at a level of | {' | '.join(levels)} |", "| --- |" + " ---: |" * len(levels)]
    for kind in ("itself", "the_same_type", "another_type"):
        shares = (_percent(now[kind]["disagree"][level]) for level in levels)
        lines.append(f"| {PAIRS[kind]}, % | {' | '.join(shares)} |")
    return [*lines, "", "The level is the share of validation listings that may be taken so; the checkpoint's is 0.01."]


def familiarity() -> str:
    """Return what the gate refuses, by situation, beside single measures, as a Markdown table in %."""
    found = _read("benchmarks/results/familiarity.json")
    lines = [
        "| situation | measure | in-scope test listings refused | made-up listings refused | AUROC | ms a listing |",
        "| --- | --- |" + " ---: |" * 4,
    ]
    for each in found["results"]:
        refused, caught = (
            " / ".join(f"{share:.1f}" for share in pair) for pair in (each["refused"], each["caught"]["all"])
        )
        lines.append(
            f"| {SITUATIONS[each['situation']]} | {each['method']} | {refused} | {caught} | {each['auroc']:.3f} "
            f"| {each['milliseconds']:.2f} |"
        )
    levels = " / ".join(f"{100 * level:g} %" for level in found["false_alarms"])
    return "\n".join([*lines, "", f"At limits of {levels} on validation listings; checkpoint {found['checkpoint']}."])


def held_out_classes() -> str:
    """Return what becomes of listings of article types that a network was not trained on, as Markdown tables in %."""
    document = _read("benchmarks/results/held_out_classes.json")
    found, kind = document["held_out_classes"], "held-out classes"
    accepted = found["accepted"]
    names = list(accepted["attributes"])
    rows = [accepted["attributes"][name] for name in names]
    lines = [
        f"{accepted['listings']:,} test listings of {', '.join(found['labels'])}.",
        "",
        f"| image and title, at a target of 0.95 | {' | '.join(names)} |",
        "| --- |" + " ---: |" * len(names),
        f"| accepted | {' | '.join(_percent(row['accepted']) for row in rows)} |",
        f"| of these right | {' | '.join(_percent(row['image']) for row in rows)} |",
        "",
        "| refused by the gate | in-scope test listings | these |",
        "| --- | ---: | ---: |",
    ]
    for each in document["results"]:
        if each["method"] == "the gate":
            shares = [" / ".join(f"{share:.1f}" for share in pair) for pair in (each["refused"], each["caught"][kind])]
            lines.append(f"| {SITUATIONS[each['situation']]} | {' | '.join(shares)} |")
    nothing = _percent(accepted["nothing_accepted"])
    return "\n".join([*lines, "", f"Nothing is accepted for {nothing} %. Limits and levels as above."])


def _written(page: str, name: str, text: str) -> str:
    return between(page, name, text, command="docs.figures")


def answer() -> str:
    """Return what the shipped checkpoint replies to the README's request, to three places, a few lines long."""
    predictor = Predictor.load(ROOT / "weights" / "fashion", device="cpu")
    image = Image.open(ROOT / "examples" / "images" / "navy-shirt.jpg").convert("RGB")
    batch = predictor.collate([predictor.prepare("Turtle Check Men Navy Blue Shirt", image)])
    (prediction,) = predictor.predict(batch)
    colour = prediction.attribute("baseColour", target_precision=0.95, top_k=2)
    reply = _rounded(ClassifyReply.of(None, predictor.info, prediction, {"baseColour": colour}).model_dump(mode="json"))
    said = reply["attributes"]["baseColour"]
    verdict = {name: said[name] for name in ("label", "confidence", "accepted", "abstention")}
    target = {name: said[name] for name in ("threshold", "target_precision")}
    return "\n".join(
        [
            f'{{"id": null,\n "model": {json.dumps(reply["model"])},\n "scope": {json.dumps(reply["scope"])},',
            f' "warnings": {json.dumps(reply["warnings"])},\n "attributes": {{\n   "baseColour": {{',
            f"     {json.dumps(verdict)[1:-1]},\n     {json.dumps(target)[1:-1]},",
            f'     "candidates": {json.dumps(said["candidates"])},',
            f'     "modality_attention": {json.dumps(said["modality_attention"])}}}}}}}',
        ]
    )


def _rounded(value: Any) -> Any:
    match value:
        case dict():
            return {name: _rounded(each) for name, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
        case float():
            return round(value, 3)
    return value


def promises() -> str:
    """Say in how many cases accepted labels of the test part met their target precision, and where they didn't."""
    situations = _read("weights/fashion/metrics.json")["situations"]
    cases = [
        (f"{attribute}, {name}, at {target}", 100 * (point["precision"] - float(target)))
        for situation, name in SITUATIONS.items()
        for attribute, each in situations[situation]["attributes"].items()
        for target, point in each["accepted"].items()
        if point
    ]
    missed = [f"{case} ({-margin:.2f} points short)" for case, margin in cases if margin < 0]
    kept = f"Accepted labels met their certified target in {len(cases) - len(missed)} of {len(cases)} cases"
    return f"{kept}; not in {'; '.join(missed)}." if missed else f"{kept}."


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
    for situation, name in SITUATIONS.items():
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
