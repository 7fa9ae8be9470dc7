"""Do explanations mean something? The deletion test, for what the service says and for what it could have said.

    python -m benchmarks.faithfulness [--checkpoint weights/fashion] [--listings 400] [--json FILE]

On test listings, the words (the parts of the picture) that an explanation gives the greatest weight are taken away,
and as many random ones instead: if the weights mean something, the confidence of the predicted label falls further.
A word is taken away by leaving it out of the title. A part of the picture is covered with what pictures are padded
with, white here, since that is what stands behind a product; a grey square would be an object of its own. Since the
service's own weights come from covering with white, grey is measured too.

Shapes: T attributes, N parts of the picture, W words, S tokens, H heads, K steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from model.catalogue import Catalogue, Part
from model.errors import ModelError
from model.explain import PictureVariants
from model.predictor import Predictor, Prepared
from model.preprocess import decode_image

Returned = TypeVar("Returned")

SHARES = (0.1, 0.25, 0.5)
"""Of the words or parts, how many are taken away: one at least, and never all."""
RANDOM_DRAWS = 5
GREY = 128
Z = 1.96
"""Intervals are of 95 %, by the normal approximation over listings."""


@dataclass(frozen=True)
class Weights:
    """What one method says of one listing; greater is more, below zero is none. None for an absent modality."""

    parts: NDArray[np.float64] | None
    """`[T, N]`"""
    words: NDArray[np.float64] | None
    """`[T, W]`, of all the title's words"""


@dataclass(frozen=True)
class Question:
    """A listing, the labels `[T]` that it was given, and what it takes to ask again."""

    predictor: Predictor
    item: Prepared
    labels: tuple[int, ...]

    @property
    def picture(self) -> PictureVariants | None:
        config, grid = self.predictor.transform.config, self.predictor.network.backbone.image.grid
        return PictureVariants(self.item.pixels, grid, config.fill) if self.item.pixels is not None else None

    @property
    def size(self) -> dict[str, int]:
        """How many words and parts there are to take away."""
        words = len(self.item.title.words) if self.item.title else 0
        return {"words": words, "parts": self.picture.count - 1 if self.picture else 0}

    def without(self, what: str, gone: Sequence[int], cover: int) -> Prepared:
        """Return the listing without these words, or with these parts covered."""
        if what == "words":
            assert self.item.title is not None
            left = " ".join(word for at, word in enumerate(self.item.title.words) if at not in gone)
            return replace(self.item, title=self.predictor.tokenise(left))
        assert self.picture is not None
        return replace(self.item, pixels=replace(self.picture, fill=cover).covered(gone))

    def confidences(self, items: Sequence[Prepared]) -> NDArray[np.float64]:
        """Return the calibrated confidence of the listing's own labels in other listings, `[len(items), T]`."""
        found = []
        for first in range(0, len(items), 64):
            for answer in self.predictor.predict(self.predictor.collate(items[first : first + 64])):
                found.append([c[label] for c, label in zip(answer.confidences.values(), self.labels, strict=True)])
        return np.array(found)


# --- the methods -------------------------------------------------------------------------------------------


def served(question: Question) -> Weights:
    """What the service answers (`model/explain.py`)."""
    predictor = question.predictor
    (answer,) = predictor.predict(predictor.collate([replace(question.item, explain=True)]))
    assert answer.explanations is not None
    found = list(answer.explanations.values())
    return Weights(
        np.array([np.ravel(each.image.weights) for each in found if each.image]) if found[0].image else None,
        np.array([[word.weight for word in each.text] for each in found if each.text]) if found[0].text else None,
    )


def left_out(question: Question) -> Weights:
    """What confidence loses without each word or part alone."""
    whole = question.confidences([question.item])
    losses: dict[str, NDArray[np.float64] | None] = {"parts": None, "words": None}
    for what, size in question.size.items():
        if size > 1:
            fill = question.predictor.transform.config.fill
            without = [question.without(what, [at], fill) for at in range(size)]
            losses[what] = (whole - question.confidences(without)).T
        elif size:
            losses[what] = np.ones((len(question.labels), 1))
    return Weights(**losses)


def attention(question: Question) -> Weights:
    """The last fusion block's attention of the aggregated tokens, weighted by the attribute's modality attention."""
    run = Run(question)
    last = run.attentions[-1].detach().mean(dim=1)[0]
    return run.weights([last] * len(question.labels))


def rollout(question: Question) -> Weights:
    """The same, followed through the fusion blocks (Abnar & Zuidema, arXiv:2005.00928)."""
    run = Run(question)
    rolled = torch.eye(run.attentions[0].shape[-1])
    for each in run.attentions:
        rolled = (0.5 * torch.eye(len(rolled)) + 0.5 * each.detach().mean(dim=1)[0]) @ rolled
    return run.weights([rolled] * len(question.labels))


def gradient_weighted_attention(question: Question) -> Weights:
    """The same, where it raises the label's log-odds (Chefer et al., arXiv:2103.15679)."""
    run = Run(question)
    relevances = []
    for gradients in run.gradients(run.attentions):
        identity = torch.eye(run.attentions[0].shape[-1])
        relevance = identity
        for each, gradient in zip(run.attentions, gradients, strict=True):
            relevance = relevance + (each.detach() * gradient).clamp(min=0).mean(dim=1)[0] @ relevance
        relevances.append(relevance - identity)
    return run.weights(relevances)


def gradient_times_input(question: Question) -> Weights:
    """Gradients at pixels and word embeddings, times their distance from nothing."""
    return Run(question, (1.0,)).along()


def integrated_gradients(question: Question) -> Weights:
    """The same, averaged over four steps on the way from nothing (Sundararajan et al., arXiv:1703.01365)."""
    return Run(question, (0.125, 0.375, 0.625, 0.875)).along()


Method = Callable[[Question], Weights]
METHODS: Mapping[str, Method] = {
    "served": served,
    "left out one by one": left_out,
    "integrated gradients": integrated_gradients,
    "gradient x input": gradient_times_input,
    "gradient-weighted attention": gradient_weighted_attention,
    "attention rollout": rollout,
    "attention": attention,
}


class Run:
    """One listing through the network with gradients, at `steps` between nothing (0) and all of it (1).

    Nothing is a picture that is covered whole, and the average word in each place.
    """

    def __init__(self, question: Question, steps: Sequence[float] = (1.0,)) -> None:
        self.question, self.network = question, question.predictor.network
        item, count = question.item, len(steps)
        share = torch.tensor(steps, device=question.predictor.device)
        image = text = None
        self.inputs: list[Tensor] = []
        self.distances: list[Tensor] = []
        if question.picture is not None:
            normalise = question.predictor.transform.normalise
            covered = question.picture.covered(range(question.picture.count - 1))
            variants = torch.from_numpy(np.stack([covered, question.picture.pixels])).to(share.device)
            nothing, whole = normalise(variants).split(1)
            self._start(nothing, whole, share)
            image = self.network.backbone.encode_image(self.inputs[-1])
        self.title_length = 0
        if item.title is not None:
            tokens = torch.from_numpy(item.title.tokens).to(share.device).expand(count, -1)
            self.title_length = tokens.shape[1]
            with self._embeddings(share):
                text = self.network.backbone.encode_text(tokens)
        output = self.network(image, text, with_weights=True)
        self.logits, self.attentions = output.logits, output.sequence_attention
        self.modalities = output.modality_attention[0].detach().cpu().numpy()

    def _start(self, nothing: Tensor, whole: Tensor, share: Tensor) -> None:
        """Begin the graph at points between nothing and the whole input, `[K, …]`."""
        distance = whole - nothing
        self.distances.append(distance)
        self.inputs.append((nothing + share.view(-1, *[1] * (whole.ndim - 1)) * distance).detach().requires_grad_())

    @contextmanager
    def _embeddings(self, share: Tensor) -> Iterator[None]:
        """Let the text tower read embeddings on the way from the average word; start and end stay what they are."""
        table = self.network.backbone.text.text.token_embedding

        def replace_output(module: Any, inputs: Any, output: Tensor) -> Tensor:
            nothing = output[:1].clone()
            nothing[:, 1:-1] = module.weight.mean(dim=0)
            self._start(nothing, output[:1], share)
            return self.inputs[-1]

        handle = table.register_forward_hook(replace_output)
        try:
            yield
        finally:
            handle.remove()

    def gradients(self, of: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield each attribute's gradients of its label's log-odds, summed over the steps."""
        for scores, label in zip(self.logits, self.question.labels, strict=True):
            others = torch.cat([scores[:, :label], scores[:, label + 1 :]], dim=1)
            odds = (scores[:, label] - others.logsumexp(dim=1)).sum()
            yield torch.autograd.grad(odds, of, retain_graph=True)

    def along(self) -> Weights:
        """Gradients averaged over the steps, times the whole distance."""
        parts, words = [], []
        for gradients in self.gradients(self.inputs):
            relevances = [
                (gradient.mean(dim=0) * distance[0]).cpu().double().numpy()
                for gradient, distance in zip(gradients, self.distances, strict=True)
            ]
            if (picture := self.question.picture) is not None:
                pixels = relevances.pop(0)
                parts.append([pixels[picture.place(part)].sum() for part in range(picture.count - 1)])
            if relevances:
                words.append(self._of_words(relevances[0].sum(axis=1)))
        return Weights(np.array(parts) if parts else None, np.array(words) if words else None)

    def weights(self, relevances: Sequence[Tensor]) -> Weights:
        """Read attributes' relevances `[S, S]` at the aggregated tokens, weighted by the modality attention."""
        parts, words = [], []
        for relevance, (image, text) in zip(relevances, self.modalities, strict=True):
            rows = relevance.cpu().double().numpy()
            focus = np.zeros(len(rows))
            if self.question.picture is not None:
                focus += image * rows[self.title_length]
            if self.title_length:
                focus += text * rows[self.title_length - 1]
                words.append(self._of_words(focus[: self.title_length]))
            if self.question.picture is not None:
                parts.append(self._of_parts(focus[self.title_length + 1 :]))
        return Weights(np.array(parts) if parts else None, np.array(words) if words else None)

    def _of_words(self, of_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        title = self.question.item.title
        assert title is not None
        of_words = np.zeros(len(title.words))
        np.add.at(of_words, list(title.word_of_token), of_tokens[1 : 1 + len(title.word_of_token)])
        return of_words

    def _of_parts(self, of_patches: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add up the patches of each part; where there are few, they are the parts."""
        assert self.question.picture is not None
        (rows, columns), (part_rows, part_columns) = self.question.picture.grid, self.question.picture.parts
        row, column = np.divmod(np.arange(rows * columns), columns)
        part = (2 * row + 1) * part_rows // (2 * rows) * part_columns + (2 * column + 1) * part_columns // (2 * columns)
        return np.bincount(part, of_patches, minlength=part_rows * part_columns)


# --- the test ----------------------------------------------------------------------------------------------

Drops = dict[tuple[str, float, str], list[NDArray[np.float64]]]
"""By panel, share and method: for each listing what confidence loses, `[T]`."""


def questions(predictor: Predictor, title: str, image: Image.Image) -> Iterator[tuple[str, Question]]:
    """Yield a listing with both modalities, by its title alone and by its image alone."""
    both = predictor.prepare(title, image)
    alone = {"title alone": replace(both, pixels=None), "image alone": replace(both, title=None)}
    for situation, item in {"both": both, **alone}.items():
        raw = predictor.logits(predictor.collate([item]))
        yield situation, Question(predictor, item, tuple(int(scores[0].argmax()) for scores in raw.logits))


@dataclass
class DeletionTest:
    """Takes away what each method gives the greatest weight, and random words and parts, listing by listing."""

    methods: Mapping[str, Method]
    generator: np.random.Generator
    drops: Drops = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of each method, on listings with both modalities."""

    def ask(self, situation: str, question: Question) -> None:
        """Note what confidence loses, and how long the methods took."""
        times = self.seconds if situation == "both" else defaultdict(list)
        whole = _timed(times["plain answer"], question.confidences, [question.item])
        said = {name: _timed(times[name], method, question) for name, method in self.methods.items()}
        fill = question.predictor.transform.config.fill
        for what, cover in dict.fromkeys((("words", fill), ("parts", fill), ("parts", GREY))):
            if question.size[what] < 2:
                continue
            panel = f"{what}{'' if cover == fill else ', grey'}, {situation}"
            chosen = self._choose(said, what, question.size[what])
            kinds = sorted({gone for *_, gone in chosen})
            left = question.confidences([question.without(what, gone, cover) for gone in kinds])
            loss = dict(zip(kinds, whole - left, strict=True))
            found: dict[tuple[float, str], list[list[float]]] = defaultdict(lambda: [[] for _ in question.labels])
            for share, name, t, gone in chosen:
                found[share, name][t].append(loss[gone][t])
            for (share, name), each in found.items():
                self.drops[panel, share, name].append(np.array([np.mean(values) for values in each]))

    def _choose(
        self, said: Mapping[str, Weights], what: str, size: int
    ) -> list[tuple[float, str, int, tuple[int, ...]]]:
        """Return for each share, method and attribute which words or parts to take away."""
        chosen = []
        for share in SHARES:
            count = min(max(1, round(share * size)), size - 1)
            for name, weights in said.items():
                of_all = weights.parts if what == "parts" else weights.words
                assert of_all is not None
                for t, each in enumerate(of_all):
                    # Equal weights, as of everything at or below zero, are taken in random order.
                    order = np.lexsort((self.generator.random(size), -each.clip(min=0)))
                    chosen.append((share, name, t, tuple(sorted(order[:count].tolist()))))
            for _ in range(RANDOM_DRAWS):
                gone = tuple(sorted(self.generator.permutation(size)[:count].tolist()))
                chosen += [(share, "random", t, gone) for t in range(len(of_all))]
        return chosen


def _timed(seconds: list[float], call: Callable[..., Returned], *arguments: Any) -> Returned:
    began = time.perf_counter()
    returned = call(*arguments)
    seconds.append(time.perf_counter() - began)
    return returned


@dataclass(frozen=True)
class Interval:
    """A mean in points of confidence, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Interval:
        """Of independent values `[n]`, shares of 1."""
        mean, margin = 100 * values.mean(), 100 * Z * values.std(ddof=1) / np.sqrt(len(values))
        return cls(*(round(float(value), 2) for value in (mean, mean - margin, mean + margin)))


def summary(drops: Drops, attributes: Sequence[str]) -> dict[str, Any]:
    """Return by panel, method and share what confidence loses, and how much more that is than at random."""
    panels: dict[str, Any] = {}
    for (panel, share, method), found in drops.items():
        losses, random = np.stack(found), np.stack(drops[panel, share, "random"])
        by_attribute = {name: vars(Interval.of(losses[:, t])) for t, name in enumerate(attributes)}
        entry = {"drop": vars(Interval.of(losses.mean(axis=1))), "by_attribute": by_attribute}
        if method != "random":
            more = losses - random
            entry["more_than_random"] = vars(Interval.of(more.mean(axis=1)))
            entry["more_than_random_by_attribute"] = {
                name: vars(Interval.of(more[:, t])) for t, name in enumerate(attributes)
            }
        methods = panels.setdefault(panel, {"listings": len(found), "methods": {}})["methods"]
        methods.setdefault(method, {})[f"{share:g}"] = entry
    return panels


def tables(panels: Mapping[str, Any], milliseconds: Mapping[str, float]) -> Iterator[Table]:
    """Yield a table per panel: the mean drop over the attributes, in points, by method and share."""
    for panel, found in panels.items():
        table = Table(title=f"{panel}: points of confidence lost, {found['listings']} listings", title_justify="left")
        for heading in ("taken away by", *(f"{100 * share:g} %" for share in SHARES), "ms a listing"):
            table.add_column(heading, justify="left" if heading == "taken away by" else "right")
        rows = found["methods"].items()
        for method, shares in sorted(rows, key=lambda row: -sum(each["drop"]["mean"] for each in row[1].values())):
            drops = [each["drop"] for each in shares.values()]
            cells = [f"{drop['mean']:.1f} ± {drop['high'] - drop['mean']:.1f}" for drop in drops]
            table.add_row(method, *cells, f"{milliseconds[method]:.0f}" if method in milliseconds else "")
        yield table


def measure(
    predictor: Predictor, catalogue: Catalogue, *, listings: int, seed: int, console: Console
) -> dict[str, Any]:
    """Run the test on that many listings of the test part, chosen at random; return the document."""
    predictor.network.requires_grad_(False)
    generator = np.random.default_rng(seed)
    whole = [each for each in catalogue.part(Part.TEST) if each.title and each.image]
    chosen = [whole[at] for at in generator.permutation(len(whole))[:listings]]
    test = DeletionTest(METHODS, generator)
    for listing in track(chosen, "deleting", console=console):
        assert listing.title is not None
        assert listing.image is not None
        image = decode_image(catalogue.image_bytes(listing.image))
        for situation, question in questions(predictor, listing.title, image):
            test.ask(situation, question)
    return {
        "data": f"the test part of {catalogue.report.table}",
        "model": {"name": predictor.info.name, "version": predictor.info.version},
        "listings": len(chosen),
        "seed": seed,
        "random_draws": RANDOM_DRAWS,
        "unit": "points of calibrated confidence of the predicted label; intervals of 95 % over listings",
        "milliseconds": {name: round(1000 * statistics.median(each), 1) for name, each in test.seconds.items()},
        "panels": summary(test.drops, [task.name for task in predictor.tasks]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test and print it; exit status 2 where the checkpoint or the catalogue cannot be used."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/fashion"))
    parser.add_argument("--catalogue", type=Path, default=Path(__file__).with_name("fashion.toml"))
    parser.add_argument("--listings", type=int, default=400, help="of the test part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        predictor = Predictor.load(options.checkpoint, dtype="float32")
        catalogue = Catalogue.open(options.catalogue)
        found = measure(
            predictor, catalogue, listings=options.listings, seed=options.seed, console=Console(stderr=True)
        )
    except ModelError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    for table in tables(found["panels"], found["milliseconds"]):
        console.print(table)
    console.print(f"a plain answer takes {found['milliseconds']['plain answer']:.0f} ms", highlight=False)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
