"""The reference engine: the network in PyTorch, on a CPU or a GPU. May import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint.folder import CONFIG, Checkpoint
from model.checkpoint.weights import load_weights
from model.device import pick_device, serving_dtype, use_threads
from model.errors import CheckpointError, ConfigError
from model.inference.engines.engine import EngineInfo, EngineName, Rows
from model.inference.predictions import RawOutputs
from model.inputs.normalise import TensorTransform
from model.network.cma_clip import CMAClip, build_cma_clip
from model.network.towers import TokenSequence


@dataclass(frozen=True, slots=True)
class Placed:
    """A batch on the device: pixels uint8 `[B, 3, H, W]`, tokens int64 `[B, L]`; None where no listing has any."""

    pixels: Tensor | None
    tokens: Tensor | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the towers make of it."""

    image: TokenSequence | None
    text: TokenSequence | None


class TorchEngine:
    """Implements `model.inference.engines.engine.Engine`."""

    def __init__(self, network: CMAClip, transform: TensorTransform, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.info = EngineInfo(
            name=EngineName.TORCH,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            grid=network.backbone.image.grid,
            warms_each_shape=True,
        )
        self.transform, self._dtype = transform, dtype

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto") -> TorchEngine:
        """Build the checkpoint's network; device: auto, cpu, cuda or cuda:N; dtype: auto, float32, float16 or bfloat16.

        On a CPU it computes with `model.threads.thread_count` threads. Raises `CheckpointError` or `ConfigError` with
        one line that names what is wrong.
        """
        use_threads()
        target = pick_device(device)
        number_format = serving_dtype(dtype, target)
        try:
            network = build_cma_clip(checkpoint.config, checkpoint.tasks)
        except ConfigError as error:
            raise CheckpointError(f"{checkpoint.folder / CONFIG}: {error}") from error
        load_weights(network, checkpoint)
        return cls(network, TensorTransform(checkpoint.config.preprocess), target, number_format)

    def place(self, pixels: NDArray[np.uint8] | None, tokens: NDArray[np.int64] | None) -> Placed:
        return Placed(
            pixels=None if pixels is None else torch.from_numpy(pixels).to(self.device),
            tokens=None if tokens is None else torch.from_numpy(tokens).to(self.device),
        )

    @torch.inference_mode()
    def encode(self, placed: Placed) -> Encoded:
        backbone, image, text = self.network.backbone, None, None
        with self._precision():
            if placed.pixels is not None:
                image = backbone.encode_image(self.transform.normalise(placed.pixels))
            if placed.tokens is not None:
                text = backbone.encode_text(placed.tokens)
        return Encoded(image, text)

    @torch.inference_mode()
    def fuse(self, encoded: Encoded, parts: Sequence[Rows]) -> list[RawOutputs]:
        with self._precision():
            return [self._fuse(encoded, rows) for rows in parts]

    def _fuse(self, encoded: Encoded, rows: Rows) -> RawOutputs:
        output = self.network(
            _select(encoded.image, rows.image, self.device), _select(encoded.text, rows.text, self.device)
        )
        return RawOutputs(
            logits=tuple(scores.float().cpu().numpy() for scores in output.logits),
            attention=output.modality_attention.float().cpu().numpy(),
            embeddings=output.aggregated.float().cpu().numpy(),
        )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not torch.float32)


def _select(
    sequence: TokenSequence | None, rows: NDArray[np.intp] | None, device: torch.device
) -> TokenSequence | None:
    """Return the listings at `rows`; None where they are not answered from this modality."""
    if sequence is None or rows is None:
        return None
    return sequence.select(torch.from_numpy(rows).to(device))
