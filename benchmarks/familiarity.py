"""Measures of familiarity compared: which tells listings of other fields from those that a model knows?

    python -m benchmarks.familiarity [--checkpoint weights/fashion] [--catalogue benchmarks/fashion.toml]
        [--unfamiliar furniture.toml] [--held-out-classes 10 --run runs/held-out] [--out familiarity.json]

What is fitted is fitted on the train part and on made-up outliers of one family (`model.inputs.outliers`). Limits are
from the validation part, one listing for each group. False alarms are measured on the test part, and what is caught on
the other family of outliers, which shares nothing with the first, and on each catalogue that `--unfamiliar` names. With
`--held-out-classes` a network is trained by a short recipe on a catalogue without that many labels of an attribute, and
the test listings that bear them are judged too, by the methods and by the calibrated checkpoint itself.

Shapes: n listings, D fusion width, C_t labels.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import FASHION
from benchmarks.mismatched import figures
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import ModelError
from model.evaluation.fit_gate import features_of_pairs
from model.inference.predictor import Predictor
from model.inputs.decode import decode_image
from model.inputs.outliers import Family, draw_outliers
from model.progress import progress_bar
from model.situations import Situation
from model.training.recipe import Recipe, run_recipe
from model.trust.conformal import one_per_group
from model.trust.scope import (
    Features,
    KnownWords,
    distances,
    doubt,
    fit_scope,
    fit_weights,
    quantised,
)

HELD_OUT_RECIPE = FASHION.with_name("held_out_classes.toml")

Floats = NDArray[np.float64]
Score = Callable[[Features], Floats]
"""How untypical each of n listings is, `[n]`."""

FALSE_ALARMS = (0.01, 0.02)

REFERENCES = 5_000
"""Train listings that the distances of the methods compared are measured to, at most."""

NEIGHBOURS = 10
"""The nearest references that these distances are the mean over."""


@dataclass(frozen=True)
class Sample:
    """Listings as a model sees them in every situation; `kinds`, where there are any, names what each one is."""

    features: Mapping[Situation, Features]
    kinds: Mapping[Situation, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One method in one situation; shares in percent, by the limit of each of `FALSE_ALARMS`."""

    situation: str
    method: str
    refused: tuple[float, ...]
    """Of in-scope test listings."""
    caught: Mapping[str, tuple[float, ...]]
    """By kind of outlier; "all" made-up ones together."""
    auroc: float
    """Of made-up outliers against in-scope test listings."""
    milliseconds: float
    """CPU time a listing, in batches of 32."""


# --- reading -----------------------------------------------------------------------------------------------

Pair = tuple[str, Image.Image]


def read(predictor: Predictor, words: KnownWords, pairs: Iterable[Pair], total: int, console: Console) -> Sample:
    """Run the network over titles and images, in every situation."""
    with progress_bar(console) as progress:
        tracked = progress.track(pairs, total=total, description="listings")
        return Sample(features_of_pairs(predictor, words, tracked), {})


def complete(listings: Sequence[Listing], most: int) -> list[Listing]:
    """Return at most `most` listings that have both modalities, one for each group, in an order by hash."""
    both = [each for each in listings if each.title and each.image]
    drawn = one_per_group([each.id for each in both], [each.group for each in both])
    return [both[row] for row in drawn[:most]]


def pairs_of(catalogue: Catalogue, listings: Sequence[Listing], size: tuple[int, int]) -> Iterator[Pair]:
    """Yield title and image of complete listings; `size`: the network's input (height, width)."""
    for each in listings:
        assert each.title is not None
        assert each.image is not None
        yield each.title, decode_image(catalogue.image_bytes(each.image), size).image


# --- methods -----------------------------------------------------------------------------------------------


def methods(train_part: Features, outliers: Features, validation: Features) -> dict[str, Score]:
    """Fit every method; what is compared needs no limit yet."""
    references = quantised(train_part[:REFERENCES].embeddings).astype(np.float32)
    mahalanobis = class_means(train_part)
    single: dict[str, Score] = {
        "nearest neighbours": lambda some: distances(quantised(some.embeddings), references, NEIGHBOURS),
        "Mahalanobis": mahalanobis,
        "energy": energy,
        "mean confidence": lambda some: doubt(some.logits),
        "unseen words": lambda some: some.unseen,
    }
    split = 2 * len(train_part) // 3
    halves = train_part[:split], train_part[split:]
    near = quantised(halves[0].embeddings).astype(np.float32)
    parts = {**single, "nearest neighbours": lambda some: distances(quantised(some.embeddings), near, NEIGHBOURS)}
    combined = {
        "neighbours and confidence": ("nearest neighbours", "mean confidence"),
        "neighbours, confidence, unseen words": ("nearest neighbours", "mean confidence", "unseen words"),
        "all five": tuple(single),
    }
    fitted = {
        name: combination([parts[each] for each in chosen], halves[1], outliers) for name, chosen in combined.items()
    }
    return {**single, **fitted, "the gate": fit_scope(train_part, outliers, validation).score}


def energy(some: Features) -> Floats:
    """Return the mean over attributes of -log sum exp of the logits, `[n]` (Liu et al., arXiv:2010.03759)."""
    tops = [each.max(axis=1).astype(np.float64) for each in some.logits]
    sums = [np.exp(each - top[:, None]).sum(axis=1) for each, top in zip(some.logits, tops, strict=True)]
    return np.asarray(-np.mean([top + np.log(each) for top, each in zip(tops, sums, strict=True)], axis=0))


def class_means(train_part: Features) -> Score:
    """Return the Mahalanobis distance to the nearest class mean, with one covariance (Lee et al., arXiv:1807.03888).

    The classes are the labels that the network gives train listings for the attribute with the most labels.
    """
    labels = max((each for each in train_part.logits), key=lambda each: each.shape[1]).argmax(axis=1)
    rows = train_part.embeddings.reshape(len(train_part), -1).astype(np.float64)
    classes = [label for label in np.unique(labels) if (labels == label).sum() >= 5] or [labels[0]]
    means = np.stack([rows[labels == label].mean(axis=0) for label in classes])
    kept = np.isin(labels, classes)
    inside = rows[kept] - means[np.searchsorted(classes, labels[kept])]
    covariance = inside.T @ inside / len(inside)
    ridge = 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whiten = np.linalg.inv(np.linalg.cholesky(covariance + ridge)).T
    centres = means @ whiten

    def score(some: Features) -> Floats:
        white = some.embeddings.reshape(len(some), -1) @ whiten
        squares = (white**2).sum(axis=1)[:, None] - 2 * white @ centres.T + (centres**2).sum(axis=1)
        return np.asarray(np.sqrt(squares.min(axis=1).clip(min=0)))

    return score


def combination(scores: Sequence[Score], typical: Features, outliers: Features) -> Score:
    """Return a weighted sum of scores, its weights fitted by logistic regression."""
    weights = fit_weights([score(typical) for score in scores], [score(outliers) for score in scores])

    def score(some: Features) -> Floats:
        return np.stack([each(some) for each in scores], axis=1) @ weights

    return score


# --- measuring ---------------------------------------------------------------------------------------------


def judge(situation: Situation, name: str, score: Score, samples: Mapping[str, Sample]) -> Result:
    """Measure a method: limits on "validation", false alarms on "test", the rest of `samples` are outliers."""
    limits = np.quantile(score(samples["validation"].features[situation]), [1 - each for each in FALSE_ALARMS])
    test = samples["test"].features[situation]
    began = time.process_time()
    for first in range(0, len(test), 32):
        score(test[first : first + 32])
    milliseconds = 1000 * (time.process_time() - began) / len(test)
    inside, made_up = score(test), score(samples["made up"].features[situation])
    caught = {"all": _above(made_up, limits)}
    kinds = np.array(samples["made up"].kinds[situation])
    caught |= {str(kind): _above(made_up[kinds == kind], limits) for kind in np.unique(kinds)}
    for other in samples.keys() - {"validation", "test", "made up"}:
        caught[other] = _above(score(samples[other].features[situation]), limits)
    return Result(
        situation=situation,
        method=name,
        refused=_above(inside, limits),
        caught=caught,
        auroc=round(auroc(inside, made_up), 4),
        milliseconds=round(milliseconds, 4),
    )


def _above(scores: Floats, limits: Floats) -> tuple[float, ...]:
    return tuple(round(100 * float((scores > limit).mean()), 1) for limit in limits)


def auroc(inside: Floats, outside: Floats) -> float:
    """Return the chance that an outlier scores higher than an in-scope listing; ties count half."""
    ordered = np.sort(inside)
    below, at_most = (np.searchsorted(ordered, outside, side=side) for side in ("left", "right"))
    return float((below + at_most).mean() / (2 * len(inside)))


def without_classes(catalogue: Catalogue, attribute: str, n: int) -> tuple[Catalogue, list[Listing]]:
    """Return the catalogue without `n` labels of an attribute, and the test listings that bear them.

    The labels are spread over the attribute's frequencies: every so many of them, from the commonest down.
    """
    counts: dict[str, int] = {}
    for each in catalogue.part(Part.TRAIN):
        if attribute in each.labels:
            counts[each.labels[attribute]] = counts.get(each.labels[attribute], 0) + 1
    common = sorted(
        (label for label, count in counts.items() if count >= 50), key=lambda label: (-counts[label], label)
    )
    held_out = set(common[1 :: max(1, len(common) // n)][:n])
    kept = tuple(each for each in catalogue.listings if each.labels.get(attribute) not in held_out)
    unseen = [each for each in catalogue.part(Part.TEST) if each.labels.get(attribute) in held_out]
    return replace(catalogue, listings=kept), unseen


# --- the command -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many listings of each sample are read."""

    train: int = 7_500
    validation: int = 2_000
    test: int = 1_500
    outliers: int = 2_000


def measure(
    predictor: Predictor,
    catalogue: Catalogue,
    counts: Counts,
    unfamiliar: Mapping[str, tuple[Catalogue, Sequence[Listing]]],
    console: Console,
) -> list[Result]:
    """Read all samples, fit and judge every method; `unfamiliar`: other listings to judge by, by name."""
    size, rng = predictor.info.image_size, random.Random(0)  # noqa: S311 - a sample, no secret
    train_listings = complete(catalogue.part(Part.TRAIN), counts.train)
    words = KnownWords.of(each.title or "" for each in complete(catalogue.part(Part.TRAIN), len(catalogue.listings)))

    def sample(source: Catalogue, listings: Sequence[Listing]) -> Sample:
        return read(predictor, words, pairs_of(source, listings, size), len(listings), console)

    photos = [image for _, image in pairs_of(catalogue, train_listings[-50:], size)]

    def made_up(family: Family) -> Sample:
        drawn = list(draw_outliers(family, counts.outliers, rng, photos))
        found = read(predictor, words, ((each.title, each.image) for each in drawn), len(drawn), console)
        titles, images = [each.title_kind for each in drawn], [each.image_kind for each in drawn]
        kinds = {Situation.TITLE: titles, Situation.IMAGE: images, Situation.IMAGE_AND_TITLE: titles}
        return replace(found, kinds=kinds)

    trained, outliers = sample(catalogue, train_listings), made_up(Family.FITTING)
    samples = {
        "validation": sample(catalogue, complete(catalogue.part(Part.VALIDATION), counts.validation)),
        "test": sample(catalogue, complete(catalogue.part(Part.TEST), counts.test)),
        "made up": made_up(Family.JUDGING),
        **{name: sample(source, complete(listings, counts.test)) for name, (source, listings) in unfamiliar.items()},
    }
    return [
        judge(situation, name, score, samples)
        for situation in Situation
        for name, score in methods(
            trained.features[situation], outliers.features[situation], samples["validation"].features[situation]
        ).items()
    ]


def table(results: Sequence[Result], shown: Sequence[str]) -> Table:
    """Return what is caught of `shown` at each rate of false alarms, by situation and method."""
    found = Table(title="caught at 1 / 2 % false alarms, in %")
    for column in ("situation", "method", "in scope", *shown, "AUROC", "ms"):
        found.add_column(column, justify="left" if column in ("situation", "method") else "right")
    for each in results:
        rates = (
            " / ".join(f"{rate:.1f}" for rate in pair) for pair in (each.refused, *(each.caught[k] for k in shown))
        )
        found.add_row(each.situation, each.method, *rates, f"{each.auroc:.3f}", f"{each.milliseconds:.3f}")
    return found


def main(
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("weights/fashion"),
    catalogue: Annotated[Path, typer.Option(help="TOML file")] = FASHION,
    unfamiliar: Annotated[list[Path] | None, typer.Option(help="a catalogue of another field; repeatable")] = None,
    held_out_classes: Annotated[int, typer.Option(min=0, help="train a network without so many labels first")] = 0,
    attribute: Annotated[str, typer.Option(help="whose labels are held out")] = "articleType",
    recipe: Annotated[Path, typer.Option(help="how that network is trained")] = HELD_OUT_RECIPE,
    run: Annotated[Path, typer.Option(help="where it is trained")] = Path("runs/held-out-classes"),
    train_listings: Annotated[int, typer.Option(min=10)] = Counts.train,
    outliers: Annotated[int, typer.Option(min=10, help="made-up listings of each family")] = Counts.outliers,
    device: str = "auto",
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Compare measures of familiarity."""
    console, accepted = Console(stderr=True), None
    try:
        known, others = Catalogue.open(catalogue), {toml.stem: Catalogue.open(toml) for toml in unfamiliar or ()}
        judged_on = {name: (each, each.listings) for name, each in others.items()}
        if held_out_classes:
            whole, (known, unseen) = known, without_classes(known, attribute, held_out_classes)
            checkpoint = run_recipe(Recipe.load(recipe), run, catalogue=known, device=device, console=console)
            judged_on["held-out classes"] = (whole, tuple(unseen))
        predictor = Predictor.load(checkpoint, device=device)
        if held_out_classes:
            sent = complete(unseen, len(unseen))
            accepted = figures(predictor, whole, [(each, each.title or "", each) for each in sent])
        results = measure(predictor, known, Counts(train=train_listings, outliers=outliers), judged_on, console)
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(2) from None
    Console().print(table(results, ["all", *judged_on]))
    if out:
        document: dict[str, Any] = {
            "checkpoint": predictor.info.version,
            "data": known.report.table,
            "false_alarms": FALSE_ALARMS,
            "results": [asdict(each) for each in results],
        }
        if accepted:
            document["held_out_classes"] = {
                "labels": sorted({each.labels[attribute] for each in sent}),
                "accepted": asdict(accepted),
            }
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
