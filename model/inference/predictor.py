"""A loaded checkpoint that answers listings: prepare (one listing) -> collate (a batch) -> predict.

The only module of `model/` that the service runs. `prepare` works on the CPU in any thread, `collate` moves a
batch to the device and may run beside `predict`, and `predict` runs in one thread at a time. What comes out is
plain numpy, off the device (`model.inference.calibrator`). Listings to be explained are computed again, in variants
(`model.inference.explain`): that changes no answer.

Shapes: B listings, L title tokens, T attributes, C_t labels, R variants of a listing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.checkpoint.folder import CONFIG, Checkpoint, load_checkpoint, load_weights
from model.device import pick_device, serving_dtype
from model.errors import CheckpointError, ConfigError, ModelError
from model.inference.calibrator import BatchRow, Calibrator
from model.inference.explain import ImageVariants, TitleVariants, log_odds
from model.inference.predictions import (
    AttributePrediction,
    Explanation,
    Frame,
    ListingWarning,
    ModelInfo,
    RawOutputs,
    SituationOutputs,
    check_target_precision,
)
from model.inference.stream import stream
from model.inputs.decode import Decoded, decode_image, upright_rgb
from model.inputs.normalise import TensorTransform
from model.inputs.preprocess import ModelImage, Resizing
from model.inputs.tokenizer import TitleTokenizer, TokenizedTitle, pad_tokens
from model.network.cma_clip import CMAClip, build_cma_clip
from model.network.towers import TokenSequence
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
    """Prepared listings on the device: pixels uint8 `[B, 3, H, W]`, tokens `[B, L]`; None where no listing has any."""

    items: tuple[ModelInput, ...]
    pixels: Tensor | None
    tokens: Tensor | None


class Predictor:
    """A checkpoint on a device. Implements `ListingPredictor` and `RawPredictor` of `model.inference.predictions`."""

    def __init__(self, checkpoint: Checkpoint, network: CMAClip, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.tasks = checkpoint.tasks
        self.device, self.dtype = device, dtype
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.transform = TensorTransform(checkpoint.config.preprocess)
        self.resizing: Resizing = checkpoint.config.preprocess
        self.tokenize = TitleTokenizer(checkpoint.config.preprocess)
        self._calibrator = Calibrator(checkpoint.tasks, checkpoint.calibration, checkpoint.gate)
        self.info = ModelInfo(
            name=checkpoint.name,
            version=checkpoint.version,
            backbone=checkpoint.config.backbone_name,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            image_size=checkpoint.config.preprocess.image_size,
            target_precisions=checkpoint.calibration.target_precisions if checkpoint.calibration else (),
            calibration=checkpoint.calibration_digest,
            scope_gate=checkpoint.gate is not None,
            metrics=checkpoint.metrics or {},
        )

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> Predictor:
        """Load a checkpoint folder; one that is not calibrated yet answers, but accepts nothing.

        device: auto, cpu, cuda or cuda:N. dtype: auto, float32, float16 or bfloat16, of the towers.
        Raises `CheckpointError` or `ConfigError` with one line that names what is wrong.
        """
        folder = Path(folder)
        target = pick_device(device)
        number_format = serving_dtype(dtype, target)
        checkpoint = load_checkpoint(folder)
        if not checkpoint.tasks:
            raise CheckpointError(f"{folder} holds pre-trained towers without attributes; train on it first")
        try:
            network = build_cma_clip(checkpoint.config, checkpoint.tasks)
        except ConfigError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
        load_weights(network, checkpoint)
        return cls(checkpoint, network, target, number_format)

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
        longest = max((len(item.title.tokens) for item in items if item.title), default=0)
        length = self._padded(longest)
        pixels = tokens = None
        if any(item.pixels is not None for item in items):
            blank = np.zeros((3, *self.info.image_size), dtype=np.uint8)
            stacked = np.stack([blank if item.pixels is None else item.pixels for item in items])
            pixels = torch.from_numpy(stacked).to(self.device)
        if length:
            tokens = pad_tokens([item.title.tokens if item.title else None for item in items], length).to(self.device)
        return Batch(items=tuple(items), pixels=pixels, tokens=tokens)

    def _padded(self, length: int) -> int:
        return min(-(-length // PADDING_STEP) * PADDING_STEP, self.tokenize.context_length)

    @torch.inference_mode()
    def outputs(self, batch: Batch) -> Mapping[Situation, SituationOutputs]:
        """Run the network and copy out what it computes in every situation that occurs in the batch.

        The towers run once; only the fusion is repeated. A listing with both modalities is in all three situations.
        """
        image = text = None
        with self._precision():
            if batch.pixels is not None:
                image = self._encode_image(batch.pixels)
            if batch.tokens is not None:
                text = self.network.backbone.encode_text(batch.tokens)
            found = {}
            for situation in Situation:
                rows = [row for row, item in enumerate(batch.items) if situation in item.situation.within]
                if rows:
                    of_image = image if situation.uses_image else None
                    of_title = text if situation.uses_title else None
                    titles = [batch.items[row].title if of_title else None for row in rows]
                    found[situation] = SituationOutputs(
                        rows=np.array(rows, dtype=np.intp),
                        raw=self._fuse(of_image, of_title, rows),
                        titles=tuple(" ".join(title.words) if title else None for title in titles),
                    )
        return found

    def _fuse(self, image: TokenSequence | None, text: TokenSequence | None, rows: list[int]) -> RawOutputs:
        """Compute the listings at `rows` of a batch from one or both modalities, all of which they have."""
        chosen = torch.tensor(rows, device=self.device)
        output = self.network(image and image.select(chosen), text and text.select(chosen))
        return RawOutputs(
            logits=tuple(scores.float().cpu().numpy() for scores in output.logits),
            attention=output.modality_attention.float().cpu().numpy(),
            embeddings=output.aggregated.float().cpu().numpy(),
        )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _encode_image(self, pixels: Tensor) -> TokenSequence:
        return self.network.backbone.encode_image(self.transform.normalise(pixels))

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
            odds = log_odds(variants, answer.best(task.name))
            explanations[task.name] = Explanation(
                image=of_image.explain(odds[:images], item.frame) if of_image and item.frame else None,
                text=of_title.explain(odds[images:]) if of_title else None,
            )
        return explanations

    def _variants(self, item: ModelInput) -> tuple[ImageVariants | None, TitleVariants | None]:
        """Return the variants of a listing's image and title, parts of them taken away, that explain it."""
        grid, fill = self.network.backbone.image.grid, self.transform.config.fill
        return (
            ImageVariants(item.pixels, grid, fill) if item.pixels is not None else None,
            TitleVariants(item.title) if item.title is not None else None,
        )

    @torch.inference_mode()
    def _variant_logits(
        self, of_image: ImageVariants | None, of_title: TitleVariants | None
    ) -> tuple[NDArray[np.float32], ...]:
        """Return logits per attribute `[R, C_t]` of each variant of the image beside the unchanged title, then of each
        variant of the title beside the unchanged image.
        """
        image = text = None
        with self._precision():
            if of_image is not None:
                image = _in_parts(self._encode_image, torch.from_numpy(of_image.images).to(self.device))
            if of_title is not None:
                tokens = pad_tokens(of_title.tokens, self._padded(len(of_title.title.tokens))).to(self.device)
                text = _in_parts(self.network.backbone.encode_text, tokens)
            images, titles = (len(each.mask) if each else 0 for each in (image, text))
            image_rows = torch.tensor([*range(images), *[0] * titles], device=self.device)
            text_rows = torch.tensor([*[0] * images, *range(titles)], device=self.device)
            parts = [
                self.network(image and image.select(image_row), text and text.select(text_row)).logits
                for image_row, text_row in zip(
                    torch.split(image_rows, VARIANTS_AT_ONCE), torch.split(text_rows, VARIANTS_AT_ONCE), strict=True
                )
            ]
        return tuple(torch.cat(scores).float().cpu().numpy() for scores in zip(*parts, strict=True))

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        """Run every padded shape, alone and at `max_batch_size`, and explain a listing; return each one's seconds."""
        seconds = {}

        def run(name: str, items: list[ModelInput]) -> None:
            began = time.perf_counter()
            self.predict(self.collate(items))
            seconds[name] = time.perf_counter() - began

        blank = Image.new("RGB", (self.info.image_size[1], self.info.image_size[0]), "white")
        longest = self.tokenize.context_length
        for length in range(PADDING_STEP, longest + PADDING_STEP, PADDING_STEP):
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


def _in_parts(encode: Callable[[Tensor], TokenSequence], inputs: Tensor) -> TokenSequence:
    """Encode `inputs`, `VARIANTS_AT_ONCE` rows at a time."""
    parts = [encode(some) for some in torch.split(inputs, VARIANTS_AT_ONCE)]
    return TokenSequence(
        embeddings=torch.cat([part.embeddings for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        pooled=torch.cat([part.pooled for part in parts]),
    )
