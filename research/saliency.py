"""Explanations of one listing's labels: the service's, and the alternatives that it is compared with.

`research/faithfulness.py` tests them, for which a listing is predicted in thousands of variants. So each variant of the
image and of the title is encoded only once, whichever method or situation needs it: without some words, the image's
tokens are the same, and vice versa. Only the fusion is computed for each combination.

Attention rollout (Abnar & Zuidema, arXiv:2005.00928) is not a separate method here: with a single fusion block, as in
`weights/fashion`, it ranks words and parts as attention does.

Shapes: T attributes, N parts of the image, W words, R variants of a listing, S tokens, H heads, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from model.errors import ConfigError
from model.inference.engines.torch_engine import TorchEngine
from model.inference.explain import ImageVariants, TitleVariants, log_odds
from model.inference.predictor import VARIANTS_AT_ONCE, Predictor
from model.inputs.tokenizer import pad_tokens
from model.network.towers import TokenSequence
from model.trust.calibration import softmax
from research.attention_maps import forward_with_attention

Parts = tuple[int, tuple[int, ...]]
"""A variant of the image: the grey level that covers parts of it, and which."""
Tokens = tuple[int, ...]
"""A variant of the title: its tokens with start and end."""
State = TypeVar("State", Parts, Tokens)
Some = TypeVar("Some")


class Variant(NamedTuple):
    """A listing with parts covered or words left out; None for an absent modality."""

    image: Parts | None
    title: Tokens | None


class Listing:
    """A listing with image and title, and the towers' outputs for its variants so far."""

    def __init__(self, predictor: Predictor, title: str, image: Image.Image) -> None:
        self.predictor = predictor
        self.item = predictor.prepare(title, image)
        assert self.item.pixels is not None
        assert self.item.title is not None
        self.title = TitleVariants(self.item.title)
        self.engine = torch_engine(predictor)
        grid, self.fill = self.engine.info.grid, predictor.transform.config.fill
        self.image = ImageVariants(self.item.pixels, grid, self.fill)
        self._images: dict[Parts, TokenSequence] = {}
        self._titles: dict[Tokens, TokenSequence] = {}

    @torch.no_grad()  # not inference mode, since gradients may be taken at the outputs
    def logits(self, variants: Sequence[Variant]) -> tuple[NDArray[np.float32], ...]:
        """Return logits per attribute `[R, C_t]` of variants that all have the same modalities."""
        self._encode(self._images, (each.image for each in variants), self._encode_images)
        self._encode(self._titles, (each.title for each in variants), self._encode_titles)
        found = []
        for some in _in_turn(variants):
            image = _rows([self._images[each.image] for each in some if each.image is not None])
            text = _rows([self._titles[each.title] for each in some if each.title is not None])
            found.append(self.engine.network(image, text).logits)
        return tuple(torch.cat(scores).cpu().numpy() for scores in zip(*found, strict=True))

    def encoded(self, variant: Variant) -> tuple[TokenSequence | None, TokenSequence | None]:
        """Return the towers' outputs for the image and the title, one row each."""
        self.logits([variant])
        return (
            self._images[variant.image] if variant.image is not None else None,
            self._titles[variant.title] if variant.title is not None else None,
        )

    def _encode(
        self,
        known: dict[State, TokenSequence],
        wanted: Iterable[State | None],
        encode: Callable[[Sequence[State]], TokenSequence],
    ) -> None:
        """Add to `known` those of `wanted` that it lacks."""
        new = dict.fromkeys(each for each in wanted if each is not None and each not in known)
        for states in _in_turn(list(new)):
            rows = encode(states)
            for at, state in enumerate(states):
                known[state] = rows.select(torch.tensor([at], device=rows.mask.device))

    def _encode_images(self, states: Sequence[Parts]) -> TokenSequence:
        pixels = np.stack([replace(self.image, fill=cover).covered(parts) for cover, parts in states])
        normalised = self.engine.transform.normalise(torch.from_numpy(pixels).to(self.engine.device))
        return self.engine.network.backbone.encode_image(normalised)

    def _encode_titles(self, states: Sequence[Tokens]) -> TokenSequence:
        # No variant is longer than the whole title: all are padded to its length, so that any of them can be batched.
        tokens = torch.from_numpy(pad_tokens([np.array(state) for state in states], len(self.title.title.tokens)))
        return self.engine.network.backbone.encode_text(tokens.to(self.engine.device))


def torch_engine(predictor: Predictor) -> TorchEngine:
    """Return the predictor's engine, whose network and gradients are looked into."""
    if not isinstance(predictor.engine, TorchEngine):
        raise ConfigError(f"{predictor.info.engine} shows nothing of the network; load the checkpoint with torch")
    return predictor.engine


def _in_turn(those: Sequence[Some]) -> Iterator[Sequence[Some]]:
    """Yield as many at a time as the network is given at once."""
    for first in range(0, len(those), VARIANTS_AT_ONCE):
        yield those[first : first + VARIANTS_AT_ONCE]


def _rows(sequences: Sequence[TokenSequence]) -> TokenSequence | None:
    """Concatenate single rows; None if there are none."""
    if not sequences:
        return None
    columns = zip(*((each.embeddings, each.mask, each.pooled) for each in sequences), strict=True)
    return TokenSequence(*(torch.cat(column) for column in columns))


class Question:
    """A listing in one situation, with its predicted labels `[T]`, to be predicted again in variants."""

    def __init__(self, listing: Listing, *, image: bool, title: bool) -> None:
        self.listing, self.predictor, self.engine = listing, listing.predictor, listing.engine
        self.item = replace(
            listing.item,
            pixels=listing.item.pixels if image else None,
            title=listing.item.title if title else None,
        )
        self.whole = Variant((listing.fill, ()) if image else None, self._tokens(()) if title else None)
        self.labels = tuple(int(scores[0].argmax()) for scores in listing.logits([self.whole]))

    @property
    def size(self) -> dict[str, int]:
        """How many words and parts there are to remove."""
        words = len(self.item.title.words) if self.item.title else 0
        return {"words": words, "parts": self.listing.image.count - 1 if self.whole.image else 0}

    def without(self, what: str, gone: Sequence[int], cover: int | None = None) -> Variant:
        """Return the listing without these words, or with these parts covered, by the padding's colour by default."""
        if what == "words":
            return self.whole._replace(title=self._tokens(gone))
        return self.whole._replace(image=(self.listing.fill if cover is None else cover, tuple(gone)))

    def _tokens(self, gone: Sequence[int]) -> Tokens:
        """Return the tokens of the title without these words; words beyond the context move up, as in a request."""
        words = self.listing.title.title.words
        left = self.predictor.tokenize(" ".join(word for at, word in enumerate(words) if at not in gone))
        return tuple(left.tokens.tolist())

    def odds(self, variants: Sequence[Variant]) -> NDArray[np.float64]:
        """Return the log-odds of the listing's own labels in its variants, `[R, T]`."""
        logits = self.listing.logits(variants)
        return np.stack([log_odds(scores, label) for scores, label in zip(logits, self.labels, strict=True)], axis=1)

    def confidences(self, variants: Sequence[Variant]) -> NDArray[np.float64]:
        """Return the calibrated confidence of the listing's own labels in its variants, `[R, T]`."""
        logits = zip(self._temperatures, self.listing.logits(variants), self.labels, strict=True)
        return np.stack([softmax(scores, heat)[:, label] for heat, scores, label in logits], axis=1)

    @cached_property
    def _temperatures(self) -> list[float]:
        calibration, tasks = self.predictor.checkpoint.calibration, self.predictor.tasks
        if calibration is None:
            return [1.0] * len(tasks)
        return [calibration.situations[self.item.situation][task.name].temperature for task in tasks]


def questions(predictor: Predictor, title: str, image: Image.Image) -> dict[str, Question]:
    """Return a listing's questions with both modalities, with its title alone and with its image alone."""
    listing = Listing(predictor, title, image)
    return {
        "both": Question(listing, image=True, title=True),
        "title alone": Question(listing, image=False, title=True),
        "image alone": Question(listing, image=True, title=False),
    }


# --- the methods -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """One method's weights for one listing; weights below zero count as zero. None for an absent modality."""

    parts: NDArray[np.float64] | None
    """`[T, N]`"""
    words: NDArray[np.float64] | None
    """`[T, W]`, for all words of the title"""


def served(question: Question) -> Weights:
    """The service's explanation (`model/inference/explain.py`)."""
    listing, parts, words = question.listing, None, None
    if question.item.pixels is not None and question.item.frame is not None:
        covered = [question.without("parts", [part]) for part in range(question.size["parts"])]
        odds, frame = question.odds([question.whole, *covered]), question.item.frame
        parts = np.array([np.ravel(listing.image.explain(each, frame).weights) for each in odds.T])
    if question.item.title is not None:
        titles = [question.whole._replace(title=tuple(tokens.tolist())) for tokens in listing.title.tokens]
        explained = [listing.title.explain(each) for each in question.odds(titles).T]
        words = np.array([[word.weight for word in each] for each in explained])
    return Weights(parts, words)


def left_out(question: Question) -> Weights:
    """The loss of confidence without each single word or part."""
    whole = question.confidences([question.whole])
    losses: dict[str, NDArray[np.float64] | None] = {"parts": None, "words": None}
    for what, size in question.size.items():
        if size > 1:
            losses[what] = (whole - question.confidences([question.without(what, [at]) for at in range(size)])).T
        elif size:
            losses[what] = np.ones((len(question.labels), 1))
    return Weights(**losses)


def attention(question: Question) -> Weights:
    """The last fusion block's attention at the pooled tokens, weighted by the attribute's modality attention."""
    run = Run.of(question)
    last = run.attentions[-1].detach().mean(dim=1)[0]
    return run.weights([last] * len(question.labels))


def gradient_weighted_attention(question: Question) -> Weights:
    """Attention through all blocks where it raises the label's log-odds (Chefer et al., arXiv:2103.15679)."""
    run = Run.of(question)
    relevances = []
    for gradients in run.gradients(run.attentions):
        identity = torch.eye(run.attentions[0].shape[-1], device=question.engine.device)
        relevance = identity
        for each, gradient in zip(run.attentions, gradients, strict=True):
            relevance = relevance + (each.detach() * gradient).clamp(min=0).mean(dim=1)[0] @ relevance
        relevances.append(relevance - identity)
    return run.weights(relevances)


def integrated_gradients(question: Question) -> Weights:
    """Integrated gradients (Sundararajan et al., arXiv:1703.01365) at pixels and word embeddings, with four steps."""
    return Run.along(question, (0.125, 0.375, 0.625, 0.875)).integrated()


Method = Callable[[Question], Weights]
METHODS: Mapping[str, Method] = {
    "served": served,
    "left out one by one": left_out,
    "integrated gradients": integrated_gradients,
    "gradient-weighted attention": gradient_weighted_attention,
    "attention": attention,
}


class Path:
    """The straight line from a baseline (0) to an input (1): `points` `[K, …]` at `steps`, `distance` `[1, …]`."""

    def __init__(self, baseline: Tensor, whole: Tensor, steps: Sequence[float]) -> None:
        self.distance = whole - baseline
        share = torch.tensor(steps, device=whole.device).view(-1, *[1] * (whole.ndim - 1))
        self.points = (baseline + share * self.distance).detach().requires_grad_()


class Run:
    """The network's output for a listing, with gradients: at the towers' outputs, or along `paths` to its inputs."""

    def __init__(
        self, question: Question, image: TokenSequence | None, text: TokenSequence | None, paths: Sequence[Path] = ()
    ) -> None:
        self.question, self.paths = question, paths
        output, self.attentions = forward_with_attention(question.engine.network, image, text)
        self.logits = output.logits
        self.modalities = output.modality_attention[0].detach().cpu().numpy()
        self.title_length = text.mask.shape[1] if text else 0

    @classmethod
    def of(cls, question: Question) -> Run:
        """Run from the towers' outputs, which are cached."""
        encoded = question.listing.encoded(question.whole)
        image, text = (each and replace(each, embeddings=each.embeddings.clone().requires_grad_()) for each in encoded)
        return cls(question, image, text)

    @classmethod
    def along(cls, question: Question, steps: Sequence[float]) -> Run:
        """Run from pixels and word embeddings along the path from a baseline: a covered image, average words."""
        listing, backbone, device = question.listing, question.engine.network.backbone, question.engine.device
        image = text = None
        paths: list[Path] = []
        if question.item.pixels is not None:
            covered = listing.image.covered(range(question.size["parts"]))
            ends = torch.from_numpy(np.stack([covered, listing.image.pixels])).to(device)
            normalised = question.engine.transform.normalise(ends)
            paths.append(Path(normalised[:1], normalised[1:], steps))
            image = backbone.encode_image(paths[-1].points)
        if question.item.title is not None:
            tokens = torch.from_numpy(question.item.title.tokens).to(device).expand(len(steps), -1)
            with _embeddings(backbone.text.text.token_embedding, steps, paths):
                text = backbone.encode_text(tokens)
        return cls(question, image, text, paths)

    def gradients(self, of: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield each attribute's gradients of its label's log-odds, summed over the steps."""
        for scores, label in zip(self.logits, self.question.labels, strict=True):
            others = torch.cat([scores[:, :label], scores[:, label + 1 :]], dim=1)
            odds = (scores[:, label] - others.logsumexp(dim=1)).sum()
            yield torch.autograd.grad(odds, of, retain_graph=True)

    def integrated(self) -> Weights:
        """Return the gradients averaged over the steps, times the distance."""
        parts, words = [], []
        image = self.question.listing.image
        for gradients in self.gradients([path.points for path in self.paths]):
            relevances = [
                (gradient.mean(dim=0) * path.distance[0]).cpu().double().numpy()
                for gradient, path in zip(gradients, self.paths, strict=True)
            ]
            if self.question.item.pixels is not None:
                pixels = relevances.pop(0)
                parts.append([pixels[image.place(part)].sum() for part in range(image.count - 1)])
            if relevances:
                words.append(self._of_words(relevances[0].sum(axis=1)))
        return Weights(np.array(parts) if parts else None, np.array(words) if words else None)

    def weights(self, relevances: Sequence[Tensor]) -> Weights:
        """Return the weights from attributes' relevances `[S, S]` at the pooled tokens, by the modality attention."""
        parts, words = [], []
        for relevance, (image, text) in zip(relevances, self.modalities, strict=True):
            rows = relevance.cpu().double().numpy()
            focus = np.zeros(len(rows))
            if self.question.item.pixels is not None:
                focus += image * rows[self.title_length]
            if self.title_length:
                focus += text * rows[self.title_length - 1]
                words.append(self._of_words(focus[: self.title_length]))
            if self.question.item.pixels is not None:
                parts.append(self._of_parts(focus[self.title_length + 1 :]))
        return Weights(np.array(parts) if parts else None, np.array(words) if words else None)

    def _of_words(self, of_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        title = self.question.listing.title.title
        of_words = np.zeros(len(title.words))
        np.add.at(of_words, list(title.word_of_token), of_tokens[1 : 1 + len(title.word_of_token)])
        return of_words

    def _of_parts(self, of_patches: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum the patches of each part; where there are few patches, each is a part."""
        image = self.question.listing.image
        (rows, columns), (part_rows, part_columns) = image.grid, image.parts
        row, column = np.divmod(np.arange(rows * columns), columns)
        part = (2 * row + 1) * part_rows // (2 * rows) * part_columns + (2 * column + 1) * part_columns // (2 * columns)
        return np.asarray(np.bincount(part, of_patches, minlength=part_rows * part_columns), dtype=np.float64)


@contextmanager
def _embeddings(table: nn.Module, steps: Sequence[float], paths: list[Path]) -> Iterator[None]:
    """Give the text tower embeddings along the path from the average word; start and end are unchanged."""

    def replace_output(module: Any, inputs: Any, output: Tensor) -> Tensor:
        baseline = output[:1].clone()
        baseline[:, 1:-1] = module.weight.mean(dim=0)
        paths.append(Path(baseline, output[:1], steps))
        return paths[-1].points

    handle = table.register_forward_hook(replace_output)
    try:
        yield
    finally:
        handle.remove()
