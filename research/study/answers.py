"""A network's outputs on the test part under any condition: clean or corrupted, with both modalities or one.

Shapes: n listings, L text tokens, T attributes, M = 2 modalities in the order image, text, C_t labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.config import PreprocessConfig
from model.device import training_precision
from model.errors import CatalogueError, ModelError
from model.evaluation.heldout import evidence_groups
from model.inputs.decode import decode_image
from model.inputs.normalise import TensorTransform
from model.inputs.tokenizer import TitleTokenizer, pad_tokens
from model.network.towers import TokenSequence
from model.tasks import Task
from research.study.networks import AttributeNetwork

BATCH = 256

Corrupt = Callable[[Listing, Image.Image], Image.Image]

ImageCache = dict[str, TokenSequence]
"""Encoded images of the test part by condition: networks that share an image tower encode them only once."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Logits (or log-probabilities) per attribute `[n, C_t]` and modality attention `[n, T, M]`."""

    logits: tuple[NDArray[np.float32], ...]
    attention: NDArray[np.float32]


class TestPart:
    """The listings that everything is measured on: those of the test part with a title and a readable image.

    The same for every situation and every network, so that figures can be compared listing by listing. `part` may be
    another one: recipes are chosen on the validation part. Raises `CatalogueError` where there is no such listing.
    """

    __test__ = False  # pytest would collect it by its name

    def __init__(self, catalogue: Catalogue, tasks: Sequence[Task], part: Part = Part.TEST) -> None:
        self.catalogue, self.tasks = catalogue, tuple(tasks)
        self.listings = tuple(listing for listing in catalogue.part(part) if listing.title and self._readable(listing))
        if not self.listings:
            raise CatalogueError(f"the {part} part holds no listing with both a title and an image")
        self.group = evidence_groups(self.listings)
        self.labels = np.array(
            [[task.encode(listing.labels.get(task.name)) for task in self.tasks] for listing in self.listings]
        )
        """Class indices `[n, T]`, as `Task.encode` gives them."""

    def image(self, listing: Listing) -> Image.Image:
        """Read and decode a listing's image."""
        assert listing.image is not None
        return decode_image(self.catalogue.image_bytes(listing.image)).image

    def _readable(self, listing: Listing) -> bool:
        if listing.image is None:
            return False
        try:
            self.image(listing)
        except ModelError:
            return False
        return True

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify these listings, in this order."""
        return hashlib.sha256("\n".join(listing.id for listing in self.listings).encode()).hexdigest()[:12]

    def subset(self, size: int) -> NDArray[np.int64]:
        """Return the positions of `size` listings (or all), drawn by a hash of their ids: the same ones each time."""
        drawn = sorted(
            range(len(self.listings)),
            # The prefix is part of the draw: another one would be another subset than that of the committed figures.
            key=lambda row: hashlib.sha256(f"spoilt/{self.listings[row].id}".encode()).digest(),
        )
        return np.array(sorted(drawn[:size]), dtype=np.int64)


class Inference:
    """Runs a network in steps, so that images and titles that are encoded once can be fused several times.

    fast: compute in the number format of training, where the device has one that is faster than float32.
    cache: images that networks with the same image tower have encoded; new ones are added. None: keep nothing.
    """

    def __init__(
        self,
        network: AttributeNetwork,
        preprocess: PreprocessConfig,
        device: torch.device,
        *,
        fast: bool = False,
        cache: ImageCache | None = None,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.transform, self.tokenize = TensorTransform(preprocess), TitleTokenizer(preprocess)
        self.device, self.fast = device, fast
        self.cache = cache

    def cached_images(
        self, key: str, part: TestPart, listings: Sequence[Listing], corrupt: Corrupt | None = None
    ) -> TokenSequence:
        """Encode images as `encode_images` does, or return those that the cache holds under `key`."""
        if self.cache is None:
            return self.encode_images(part, listings, corrupt)
        key = f"{key}, {'fast' if self.fast else 'exact'}"
        if key not in self.cache:
            self.cache[key] = self.encode_images(part, listings, corrupt)
        return self.cache[key]

    def encode_images(
        self, part: TestPart, listings: Sequence[Listing], corrupt: Corrupt | None = None
    ) -> TokenSequence:
        """Encode each listing's image, corrupted by `corrupt` where given."""

        def pixels(listing: Listing) -> NDArray[np.uint8]:
            image = part.image(listing)
            return self.transform(corrupt(listing, image) if corrupt else image)

        encoded = []
        with ThreadPoolExecutor() as pool:
            for batch in _batches(listings):
                stacked = torch.from_numpy(np.stack(list(pool.map(pixels, batch)))).to(self.device)
                encoded.append(
                    self._run(lambda x: self.network.backbone.encode_image(self.transform.normalise(x)), stacked)
                )
        return _joined(encoded)

    def encode_titles(self, titles: Sequence[str | None]) -> TokenSequence:
        """Encode titles, all padded to the longest; None is an absent title, an empty one a title without words."""
        tokens = [None if title is None else self.tokenize(title).tokens for title in titles]
        longest = max((len(each) for each in tokens if each is not None), default=1)
        encoded = []
        for batch in _batches(tokens):
            stacked = torch.from_numpy(pad_tokens(batch, longest)).to(self.device)
            here = torch.tensor([each is not None for each in batch], device=self.device)
            encoded.append(self._run(self.network.backbone.encode_text, stacked).keep(here))
        return _joined(encoded)

    def predict(self, image: TokenSequence | None, text: TokenSequence | None) -> Answers:
        """Fuse encoded modalities; one that is to be ignored is None."""
        given = image or text
        assert given is not None
        logits: list[tuple[NDArray[np.float32], ...]] = []
        attention = []
        for batch in _batches(range(len(given.pooled))):
            rows = torch.tensor(batch, device=self.device)
            parts = tuple(sequence.select(rows) if sequence else None for sequence in (image, text))
            output = self._run(lambda both: self.network(*both), parts)
            logits.append(tuple(scores.float().cpu().numpy() for scores in output.logits))
            attention.append(output.modality_attention.float().cpu().numpy())
        return Answers(
            logits=tuple(np.concatenate(column) for column in zip(*logits, strict=True)),
            attention=np.concatenate(attention),
        )

    def _run(self, step: Callable[[Any], Any], given: Any) -> Any:
        with torch.inference_mode(), training_precision(self.device) if self.fast else nullcontext():
            return step(given)


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[first : first + BATCH] for first in range(0, len(items), BATCH))


def _joined(parts: Sequence[TokenSequence]) -> TokenSequence:
    return TokenSequence(
        torch.cat([part.embeddings for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat([part.pooled for part in parts]),
    )


# --- answers on disk ---------------------------------------------------------------------------------------


def save_answers(path: Path, answers: Mapping[str, Answers]) -> None:
    """Write answers by condition, compressed, atomically."""
    columns = {
        f"{condition}|{column}": values
        for condition, each in answers.items()
        for column, values in (
            ("attention", each.attention),
            *((str(t), logits) for t, logits in enumerate(each.logits)),
        )
    }
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **columns)
    temporary.replace(path)


def load_answers(path: Path) -> dict[str, Answers]:
    """Read what `save_answers` wrote."""
    columns: dict[str, dict[str, NDArray[np.float32]]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            condition, column = key.split("|")
            columns.setdefault(condition, {})[column] = file[key]
    return {
        condition: Answers(
            logits=tuple(values[str(t)] for t in range(len(values) - 1)),
            attention=values["attention"],
        )
        for condition, values in columns.items()
    }
