"""A loaded checkpoint that answers listings: prepare (one listing) -> collate (a batch) -> predict.

The only module of `model/` that the service runs. `prepare` works on the CPU in any thread, `collate` moves a
batch to the device and may run beside `predict`, and `predict` runs in one thread at a time. What comes out is
plain numpy, off the device.

Shapes: B listings, S tokens (L of the title, then 1+N of the image), T attributes, C_t labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.calibration import Calibration, softmax
from model.checkpoint import Checkpoint, load_checkpoint, load_weights
from model.cma_clip import CMAClip, build_cma_clip
from model.device import pick_device, serving_dtype
from model.errors import CheckpointError
from model.explain import image_explanation, text_explanation
from model.preprocess import ImageTransform, TitleTokeniser, TokenisedTitle, pad_tokens
from model.readings import AttributeReading, Candidate, Explanation, ModelInfo, Situation
from model.tasks import Task

PADDING_STEP = 8
"""Titles are padded to the next multiple: a handful of shapes to warm up, and few wasted tokens."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One listing, ready to be batched: uint8 pixels `[3, H, W]` and tokens, None where absent."""

    pixels: NDArray[np.uint8] | None
    title: TokenisedTitle | None
    explain: bool

    @property
    def situation(self) -> Situation:
        if self.pixels is None:
            return Situation.TITLE
        return Situation.IMAGE if self.title is None else Situation.BOTH

    @property
    def nbytes(self) -> int:
        """Memory held while the listing waits, in bytes."""
        pixels = 0 if self.pixels is None else self.pixels.nbytes
        title = 0 if self.title is None else self.title.tokens.nbytes + sum(map(len, self.title.words))
        return pixels + title


@dataclass(frozen=True, slots=True)
class Batch:
    """Prepared listings on the device: pixels uint8 `[B, 3, H, W]`, tokens `[B, L]`; None where nobody has any."""

    items: tuple[Prepared, ...]
    pixels: Tensor | None
    tokens: Tensor | None
    has_image: Tensor
    has_title: Tensor


@dataclass(frozen=True, slots=True)
class RawOutputs:
    """What the network said, uncalibrated: logits per attribute `[B, C_t]`, modality attention `[B, T, 2]`
    (image, text), and where asked for the last fusion block's attention `[B, S, S]`."""

    logits: tuple[NDArray[np.float32], ...]
    attention: NDArray[np.float32]
    sequence: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What turns a situation's logits into answers: temperatures and thresholds, by attribute.

    of_label: the thresholds of labels that were certified by themselves, by attribute and label.
    """

    temperature: Mapping[str, float]
    thresholds: Mapping[str, Mapping[float, float | None]]
    of_label: Mapping[str, Mapping[str, Mapping[float, float | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One listing's answer: immutable, off the device. See `model.readings.Prediction`.

    By attribute: confidences `[C_t]`, modality attention (image, text), and the situation's verdicts.
    """

    situation: Situation
    tasks: Mapping[str, Task]
    confidences: Mapping[str, NDArray[np.float64]]
    attention: Mapping[str, tuple[float, float]]
    verdicts: Verdicts
    explanations: Mapping[str, Explanation] | None

    def read(self, attribute: str, *, target_precision: float, top_k: int) -> AttributeReading:
        """Return the answer for `attribute`, judged by the thresholds of this listing's own situation."""
        confidences, labels = self.confidences[attribute], self.tasks[attribute].labels
        # Stable, so that equal confidences are listed in the order of the labels.
        order = np.argsort(-confidences, kind="stable")[: max(1, top_k)]
        candidates = tuple(Candidate(labels[index], float(confidences[index])) for index in order)
        best = candidates[0]
        of_label = self.verdicts.of_label[attribute].get(best.label)
        threshold = (of_label or self.verdicts.thresholds[attribute]).get(target_precision)
        image, text = self.attention[attribute]
        return AttributeReading(
            label=best.label,
            confidence=best.confidence,
            accepted=threshold is not None and best.confidence >= threshold,
            threshold=threshold,
            target_precision=target_precision,
            candidates=candidates[:top_k],
            modality_attention={"image": image, "text": text},
            explanation=self.explanations[attribute] if self.explanations else None,
        )


class Predictor:
    """A checkpoint on a device. See `model.readings.Predictor` for the protocol."""

    def __init__(self, checkpoint: Checkpoint, network: CMAClip, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.tasks = checkpoint.tasks
        self.device, self.dtype = device, dtype
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.transform = ImageTransform(checkpoint.config.preprocess)
        self.tokenise = TitleTokeniser(checkpoint.config.preprocess)
        self._by_name = {task.name: task for task in self.tasks}
        self._verdicts = {
            situation: _verdicts(situation, self.tasks, checkpoint.calibration) for situation in Situation
        }
        self.info = ModelInfo(
            name=checkpoint.name,
            version=checkpoint.version,
            backbone=checkpoint.config.backbone_name,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            image_size=checkpoint.config.preprocess.image_size,
            target_precisions=checkpoint.calibration.target_precisions if checkpoint.calibration else (),
            calibration=checkpoint.calibration.digest if checkpoint.calibration else "",
            metrics=checkpoint.metrics or {},
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", dtype: str = "auto") -> Predictor:
        """Load a checkpoint folder; one that was not calibrated yet answers, but accepts nothing.

        Raises `CheckpointError` or `ConfigError` with one line that names what is wrong.
        """
        target = pick_device(device)
        number_format = serving_dtype(dtype, target)
        checkpoint = load_checkpoint(folder)
        if not checkpoint.tasks:
            raise CheckpointError(f"{folder} holds pre-trained towers without attributes; train on it first")
        network = build_cma_clip(checkpoint.config, checkpoint.tasks)
        load_weights(network, checkpoint)
        return cls(checkpoint, network, target, number_format)

    def thresholds(self, attribute: str) -> Mapping[Situation, Mapping[float, float | None]]:
        """Return the threshold of each situation and target precision, None where none could be certified."""
        return {situation: verdicts.thresholds[attribute] for situation, verdicts in self._verdicts.items()}

    def prepare(self, title: str | None, image: Image.Image | None, *, explain: bool = False) -> Prepared:
        """Turn a title and an RGB image of any size into model input; on the CPU, in any thread.

        A title of white space counts as none. Raises `ValueError` when nothing is left to read.
        """
        tokens = self.tokenise(title) if title and title.strip() else None
        if image is None and tokens is None:
            raise ValueError("a listing needs a title or an image")
        return Prepared(self.transform(image) if image is not None else None, tokens, explain)

    def collate(self, items: Sequence[Prepared]) -> Batch:
        """Put prepared listings together, titles padded to a fixed size, and move them to the device."""
        longest = max((len(item.title.tokens) for item in items if item.title), default=0)
        length = min(-(-longest // PADDING_STEP) * PADDING_STEP, self.tokenise.context_length)
        pixels = tokens = None
        if any(item.pixels is not None for item in items):
            blank = np.zeros((3, *self.info.image_size), dtype=np.uint8)
            stacked = np.stack([blank if item.pixels is None else item.pixels for item in items])
            pixels = torch.from_numpy(stacked).to(self.device)
        if length:
            tokens = pad_tokens([item.title.tokens if item.title else None for item in items], length).to(self.device)
        return Batch(
            items=tuple(items),
            pixels=pixels,
            tokens=tokens,
            has_image=torch.tensor([item.pixels is not None for item in items], device=self.device),
            has_title=torch.tensor([item.title is not None for item in items], device=self.device),
        )

    @torch.inference_mode()
    def logits(self, batch: Batch) -> RawOutputs:
        """Run the network and copy out what it says; a modality that no listing has is not computed at all."""
        explain = any(item.explain for item in batch.items)
        image = text = None
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            if batch.pixels is not None:
                image = self.network.backbone.encode_image(self.transform.normalise(batch.pixels))
                image = image.keep(batch.has_image)
            if batch.tokens is not None:
                text = self.network.backbone.encode_text(batch.tokens).keep(batch.has_title)
            output = self.network(image, text, with_weights=explain)
        sequence = output.sequence_attention[-1].float().cpu().numpy() if output.sequence_attention else None
        return RawOutputs(
            logits=tuple(scores.float().cpu().numpy() for scores in output.logits),
            attention=output.modality_attention.float().cpu().numpy(),
            sequence=sequence,
        )

    def predict(self, batch: Batch) -> list[Prediction]:
        """Answer a batch, in its order: forward, copy out, calibrate."""
        raw = self.logits(batch)
        return [self._prediction(item, raw, row, batch) for row, item in enumerate(batch.items)]

    def _prediction(self, item: Prepared, raw: RawOutputs, row: int, batch: Batch) -> Prediction:
        situation = item.situation
        verdicts = self._verdicts[situation]
        confidences = {
            task.name: softmax(scores[row : row + 1], verdicts.temperature[task.name])[0]
            for task, scores in zip(self.tasks, raw.logits, strict=True)
        }
        attention = {
            task.name: (float(raw.attention[row, t, 0]), float(raw.attention[row, t, 1]))
            for t, task in enumerate(self.tasks)
        }
        return Prediction(
            situation=situation,
            tasks=self._by_name,
            confidences=confidences,
            attention=attention,
            verdicts=verdicts,
            explanations=self._explain(item, raw, row, batch) if item.explain else None,
        )

    def _explain(self, item: Prepared, raw: RawOutputs, row: int, batch: Batch) -> dict[str, Explanation]:
        """Weigh what the aggregated image and text tokens attended to by each attribute's modality attention."""
        length = batch.tokens.shape[1] if batch.tokens is not None else 0
        rows, columns = self.network.backbone.image.grid
        explanations = {}
        for t, task in enumerate(self.tasks):
            focus = None
            if raw.sequence is not None:
                image, text = raw.attention[row, t]
                focus = np.zeros(raw.sequence.shape[-1])
                if item.pixels is not None:
                    focus += image * raw.sequence[row, length]
                if item.title is not None:
                    focus += text * raw.sequence[row, len(item.title.tokens) - 1]
            explanations[task.name] = Explanation(
                image=image_explanation(focus, length, rows, columns) if item.pixels is not None else None,
                text=text_explanation(focus, item.title) if item.title is not None else None,
            )
        return explanations

    def frame(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the part of a picture of `size` that the network sees (`ImageTransform.frame`)."""
        return self.transform.frame(size)

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        """Run every padded shape, alone and at `max_batch_size`; return the seconds of each."""
        seconds = {}
        blank = Image.new("RGB", (self.info.image_size[1], self.info.image_size[0]), "white")
        for length in range(PADDING_STEP, self.tokenise.context_length + PADDING_STEP, PADDING_STEP):
            item = self.prepare("a " * min(length - 2, self.tokenise.context_length - 2), blank, explain=True)
            for batch_size in sorted({1, max_batch_size}):
                began = time.perf_counter()
                self.predict(self.collate([item] * batch_size))
                seconds[f"{batch_size} x {min(length, self.tokenise.context_length)} tokens"] = (
                    time.perf_counter() - began
                )
        return seconds


def _verdicts(situation: Situation, tasks: Sequence[Task], calibration: Calibration | None) -> Verdicts:
    if calibration is None:
        nothing: dict[str, dict[float, float | None]] = {task.name: {} for task in tasks}
        return Verdicts({task.name: 1.0 for task in tasks}, nothing, {task.name: {} for task in tasks})
    attributes, targets = calibration.situations[situation], calibration.target_precisions
    return Verdicts(
        {name: attribute.temperature for name, attribute in attributes.items()},
        {
            name: {
                target: certificate.threshold if certificate else None
                for target, certificate in attribute.thresholds.items()
            }
            for name, attribute in attributes.items()
        },
        {
            name: {
                label: {target: attribute.threshold(target, label) for target in targets} for label in attribute.labels
            }
            for name, attribute in attributes.items()
        },
    )
