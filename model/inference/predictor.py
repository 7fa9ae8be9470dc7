"""A loaded checkpoint that answers listings: prepare (one listing) -> collate (a batch) -> predict.

The only module of `model/` that the service runs. `prepare` works on the CPU in any thread, `collate` moves a
batch to the device and may run beside `predict`, and `predict` runs in one thread at a time. An engine computes the
network (`model.inference.engines`); all else is numpy (`model.inference.calibrator`). Listings to be explained are
computed again, in variants (`model.inference.explain`): that changes no answer.

Shapes: B listings, L title tokens, T attributes, C_t labels, R variants of a listing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.checkpoint.folder import Checkpoint
from model.errors import ModelError
from model.inference.calibrator import BatchRow, Calibrator
from model.inference.engines.choose import load_engine
from model.inference.engines.engine import Engine, Rows
from model.inference.explain import ImageVariants, TitleVariants, log_odds
from model.inference.predictions import (
    AttributePrediction,
    Explanation,
    Frame,
    ListingWarning,
    ModelInfo,
    SituationOutputs,
    check_target_precision,
)
from model.inference.stream import stream
from model.inputs.decode import Decoded, decode_image, upright_rgb
from model.inputs.preprocess import ImageTransform, ModelImage, Resizing
from model.inputs.tokenizer import TitleTokenizer, TokenizedTitle, pad_tokens
from model.situations import Situation

ImageSource = str | Path | bytes | Image.Image
"""An image as the caller of `Predictor.classify` may have it."""

PADDING_STEP = 8
"""Titles are padded to the next multiple: a handful of shapes to warm up, and few wasted tokens."""

VARIANTS_AT_ONCE = 32
"""Variants of a listing that are run together: they take no more memory than an ordinary batch."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One listing, ready to be batched: uint8 pixels `[3, H, W]`, their place in the image, and tokens.

    None where absent. Implements `model.inference.predictions.Prepared`.
    """

    pixels: NDArray[np.uint8] | None
    frame: Frame | None
    title: TokenizedTitle | None
    warnings: tuple[ListingWarning, ...]
    explain: bool
    work: int
    """How many listings the network computes for it: 1, and all of its variants where it is to be explained."""

    @property
    def situation(self) -> Situation:
        if self.pixels is None:
            return Situation.TITLE
        return Situation.IMAGE if self.title is None else Situation.IMAGE_AND_TITLE

    @property
    def nbytes(self) -> int:
        """Memory held while the listing waits, in bytes."""
        pixels = 0 if self.pixels is None else self.pixels.nbytes
        title = 0 if self.title is None else self.title.tokens.nbytes + sum(map(len, self.title.words))
        return pixels + title


@dataclass(frozen=True, slots=True)
class Batch:
    """Prepared listings, and their pixels and tokens where the engine wants them."""

    items: tuple[ModelInput, ...]
    placed: Any


class Predictor:
    """A checkpoint on an engine. Implements `ListingPredictor` and `RawPredictor` of `model.inference.predictions`."""

    def __init__(self, checkpoint: Checkpoint, engine: Engine) -> None:
        self.checkpoint, self.engine = checkpoint, engine
        self.tasks = checkpoint.tasks
        self.resizing: Resizing = checkpoint.config.preprocess
        self.transform = ImageTransform(self.resizing)
        self.tokenize = TitleTokenizer(checkpoint.config.preprocess)
        self._calibrator = Calibrator(
            checkpoint.tasks, checkpoint.calibration, checkpoint.gate, checkpoint.applicability
        )
        self.info = ModelInfo(
            name=checkpoint.name,
            version=checkpoint.version,
            backbone=checkpoint.config.backbone_name,
            parameters=engine.info.parameters,
            device=engine.info.device,
            dtype=engine.info.dtype,
            image_size=checkpoint.config.preprocess.image_size,
            target_precisions=checkpoint.calibration.target_precisions if checkpoint.calibration else (),
            calibration=checkpoint.calibration_digest,
            engine=engine.info.name,
            scope_gate=checkpoint.gate is not None,
            applicability=checkpoint.applicability,
            metrics=checkpoint.metrics or {},
        )

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto", engine: str = "auto") -> Predictor:
        """Load a checkpoint folder; one that is not calibrated yet answers, but accepts nothing.

        engine: torch, openvino-f32, openvino-bf16 or openvino-int8, the last three as the checkpoint carries them
        (`cma-clip compile`); auto: `model.inference.engines.choose`. device: auto, cpu, cuda or cuda:N. dtype: auto,
        float32, float16 or bfloat16, of PyTorch's towers.
        Raises `CheckpointError` or `ConfigError` with one line that names what is wrong.
        """
        return cls(*load_engine(Path(folder), engine=engine, device=device, dtype=dtype))

    def thresholds(self, attribute: str) -> Mapping[Situation, Mapping[float, float | None]]:
        """Return the threshold of each situation and target precision, None where none could be certified."""
        calibration = self.checkpoint.calibration
        if calibration is None:
            return {situation: {} for situation in Situation}
        return {
            situation: {
                target: None if certificate is None else certificate.threshold
                for target, certificate in attributes[attribute].thresholds.items()
            }
            for situation, attributes in calibration.situations.items()
        }

    def classify(
        self,
        listings: Iterable[tuple[str | None, ImageSource | None]],
        *,
        target_precision: float = 0.95,
        top_k: int = 3,
        explain: bool = False,
        batch_size: int = 32,
    ) -> Iterator[dict[str, AttributePrediction]]:
        """Yield the prediction of every attribute for each listing, in order; lazily, batch by batch.

        A listing is a title and an image, one of which may be None; an image is a file's path, the bytes of an image
        file, or a PIL image.

            predictor = Predictor.load("weights/fashion")
            for answer in predictor.classify([("Men Navy Blue Shirt", "shirt.jpg"), (None, "dress.jpg")]):
                print({name: each.label for name, each in answer.items() if each.accepted})

        Raises `UncalibratedTargetError` for a target precision that was not calibrated (a checkpoint without any
        calibration takes all, and accepts nothing), `ModelError` for an image that cannot be read, and `ValueError`
        for a listing without both.
        """
        if self.info.target_precisions:
            check_target_precision(self.info, target_precision)

        def prepare(listing: tuple[str | None, ImageSource | None]) -> ModelInput:
            title, image = listing
            if image is None:
                return self.prepare(title, None, explain=explain)
            decoded = _opened(image, self.info.image_size)
            return self.prepare(title, decoded.image, explain=explain, warnings=decoded.warnings)

        def compute(items: list[ModelInput]) -> list[BatchRow]:
            return self.predict(self.collate(items))

        return (
            {task.name: row.attribute(task.name, target_precision=target_precision, top_k=top_k) for task in self.tasks}
            for batch in stream(listings, prepare, compute, batch_size=batch_size)
            for row in batch.output or ()
        )

    def prepare(
        self,
        title: str | None,
        image: Image.Image | ModelImage | None,
        *,
        explain: bool = False,
        warnings: Sequence[ListingWarning] = (),
    ) -> ModelInput:
        """Turn a title and an image into model input; on the CPU, in any thread.

        image: RGB, of any size, or what `self.transform.show` makes of one: the decode workers do that.
        `warnings`: those of the steps before, which the answer repeats. A title of white space counts as none. Raises
        `ValueError` when neither is left.
        """
        tokens = self.tokenize(title) if title and title.strip() else None
        if image is None and tokens is None:
            raise ValueError("a listing needs a title or an image")
        if tokens is not None and tokens.truncated:
            warnings = (*warnings, ListingWarning.TITLE_TRUNCATED)
        pixels = frame = None
        if image is not None:
            shown = image if isinstance(image, ModelImage) else self.transform.show(image)
            pixels, frame = shown.pixels, Frame.of_box(shown.box, shown.size)
        item = ModelInput(pixels, frame, tokens, tuple(warnings), explain, work=1)
        if not explain:
            return item
        return replace(item, work=1 + sum(variants.count for variants in self._variants(item) if variants))

    def collate(self, items: Sequence[ModelInput]) -> Batch:
        """Put prepared listings together, titles padded to a fixed size, and move them to the device."""
        pixels = tokens = None
        if any(item.pixels is not None for item in items):
            blank = np.zeros((3, *self.info.image_size), dtype=np.uint8)
            pixels = np.stack([blank if item.pixels is None else item.pixels for item in items])
        if any(item.title is not None for item in items):
            tokens = self._padded([item.title.tokens if item.title else None for item in items])
        return Batch(items=tuple(items), placed=self.engine.place(pixels, tokens))

    def _padded(self, titles: Sequence[NDArray[np.int64] | None]) -> NDArray[np.int64]:
        """Return token rows padded to a fixed size, `[B, L]`."""
        longest = max(len(title) for title in titles if title is not None)
        return pad_tokens(titles, min(-(-longest // PADDING_STEP) * PADDING_STEP, self.tokenize.context_length))

    def outputs(self, batch: Batch) -> Mapping[Situation, SituationOutputs]:
        """Run the network and copy out what it computes in every situation that occurs in the batch.

        The towers run once; only the fusion is repeated. A listing with both modalities is in all three situations.
        """
        within = [item.situation.within for item in batch.items]
        rows = {
            situation: np.array([row for row, each in enumerate(within) if situation in each], dtype=np.intp)
            for situation in Situation
            if any(situation in each for each in within)
        }
        parts = [
            Rows(
                image=places if situation.uses_image else None,
                text=places if situation.uses_title else None,
            )
            for situation, places in rows.items()
        ]
        found = self.engine.fuse(self.engine.encode(batch.placed), parts)
        return {
            situation: SituationOutputs(
                rows=places, raw=raw, titles=tuple(_title(batch.items[row], situation) for row in places.tolist())
            )
            for (situation, places), raw in zip(rows.items(), found, strict=True)
        }

    def predict(self, batch: Batch) -> list[BatchRow]:
        """Answer a batch, in its order: forward, copy out, calibrate, explain the listings that ask for it."""
        answers = self._calibrator.predictions(
            [item.situation for item in batch.items], self.outputs(batch), [item.warnings for item in batch.items]
        )
        return [
            replace(answer, explanations=self._explain(item, answer)) if item.explain else answer
            for item, answer in zip(batch.items, answers, strict=True)
        ]

    def _explain(self, item: ModelInput, answer: BatchRow) -> dict[str, Explanation]:
        """Explain the label that each attribute was given, from what it was answered from."""
        if answer.scope.situation is Situation.IMAGE:
            item = replace(item, title=None)
        of_image, of_title = self._variants(item)
        logits, images = self._variant_logits(of_image, of_title), of_image.count if of_image else 0
        explanations = {}
        for task, variants in zip(self.tasks, logits, strict=True):
            odds = log_odds(variants, answer.best(task.name), multi_valued=task.multi_valued)
            explanations[task.name] = Explanation(
                image=of_image.explain(odds[:images], item.frame) if of_image and item.frame else None,
                text=of_title.explain(odds[images:]) if of_title else None,
            )
        return explanations

    def _variants(self, item: ModelInput) -> tuple[ImageVariants | None, TitleVariants | None]:
        """Return the variants of a listing's image and title, parts of them taken away, that explain it."""
        grid, fill = self.engine.info.grid, self.transform.config.fill
        return (
            ImageVariants(item.pixels, grid, fill) if item.pixels is not None else None,
            TitleVariants(item.title) if item.title is not None else None,
        )

    def _variant_logits(
        self, of_image: ImageVariants | None, of_title: TitleVariants | None
    ) -> tuple[NDArray[np.float32], ...]:
        """Return logits per attribute `[R, C_t]` of each variant of the image beside the unchanged title, then of each
        variant of the title beside the unchanged image.
        """
        images = None if of_image is None else of_image.images
        titles = None if of_title is None else self._padded(of_title.tokens)  # the first of both are unchanged
        runs: list[tuple[NDArray[np.uint8] | None, NDArray[np.int64] | None]] = []
        if images is not None:
            runs += [(some, None if titles is None else titles[:1]) for some in _in_parts(images)]
        if titles is not None:
            runs += [(None if images is None else images[:1], some) for some in _in_parts(titles)]
        parts = [self._crossed_logits(*run) for run in runs]
        return tuple(np.concatenate(scores) for scores in zip(*parts, strict=True))

    def _crossed_logits(
        self, pixels: NDArray[np.uint8] | None, tokens: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], ...]:
        """Return the logits `[R, C_t]` of R images and titles, or of one of either beside R of the other."""
        count = max(0 if each is None else len(each) for each in (pixels, tokens))
        image, text = (
            None if each is None else np.arange(count, dtype=np.intp) % len(each) for each in (pixels, tokens)
        )
        encoded = self.engine.encode(self.engine.place(pixels, tokens))
        return self.engine.fuse(encoded, [Rows(image, text)])[0].logits

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        """Run every padded shape, alone and at `max_batch_size`, and explain a listing; return each one's seconds.

        Where the engine doesn't need all, the longest titles stand for the others.
        """
        seconds = {}

        def run(name: str, items: list[ModelInput]) -> None:
            began = time.perf_counter()
            self.predict(self.collate(items))
            seconds[name] = time.perf_counter() - began

        blank = Image.new("RGB", (self.info.image_size[1], self.info.image_size[0]), "white")
        longest = self.tokenize.context_length
        every = range(PADDING_STEP, longest + PADDING_STEP, PADDING_STEP)
        for length in every if self.engine.info.warms_each_shape else every[-1:]:
            item = self.prepare("a " * min(length - 2, longest - 2), blank)
            for batch_size in sorted({1, max_batch_size}):
                run(f"{batch_size} x {min(length, longest)} tokens", [item] * batch_size)
        run("1 explained", [self.prepare("a a", blank, explain=True)])
        return seconds


def _opened(image: ImageSource, target: tuple[int, int]) -> Decoded:
    """Return an upright RGB image of whatever may be given as one; `target`: the network's input (height, width)."""
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, bytes):
        return decode_image(image, target)
    try:
        return decode_image(Path(image).read_bytes(), target)
    except OSError as error:
        raise ModelError(f"cannot read image {image}: {error.strerror}") from error


def _title(item: ModelInput, situation: Situation) -> str | None:
    return " ".join(item.title.words) if situation.uses_title and item.title else None


def _in_parts(inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """Return `inputs`, `VARIANTS_AT_ONCE` rows at a time."""
    return [inputs[first : first + VARIANTS_AT_ONCE] for first in range(0, len(inputs), VARIANTS_AT_ONCE)]
