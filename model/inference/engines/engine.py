"""The interface of engines: numpy arrays in, numpy arrays out. No torch, no OpenVINO, no files.

Scores of another engine or number format are other scores: each engine has temperatures, limits and certificates of its
own (DESIGN: `engines/<name>/` in the checkpoint).

Shapes: B listings of a batch, n rows of it, H and W pixels, L title tokens, T attributes, C_t labels, D fusion width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.inference.predictions import RawOutputs


class EngineName(StrEnum):
    """The engines, by the names that settings, replies and the folders under `engines/` have."""

    TORCH = "torch"
    OPENVINO_F32 = "openvino-f32"
    OPENVINO_BF16 = "openvino-bf16"
    OPENVINO_INT8 = "openvino-int8"


@dataclass(frozen=True, slots=True)
class Rows:
    """Listings to fuse: from which rows of the encoded batch each takes its image and its title, `[n]` of either.

    None for a modality that none of them is answered from; otherwise all of them have it.
    """

    image: NDArray[np.intp] | None
    text: NDArray[np.intp] | None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, for `ModelInfo` and for explanations."""

    name: EngineName
    device: str
    dtype: str
    """The number format that most is computed in: float32, bfloat16, float16, int8."""
    parameters: int
    """Of the network."""
    grid: tuple[int, int]
    """Rows and columns of the image tower's patches."""
    warms_each_shape: bool
    """Whether the first batch of each shape takes much longer than the next one, so that all are run at the start."""


class Engine(Protocol):
    """Computes the network. `place` may run beside the others, which run in one thread at a time.

    The towers run once a batch, and the fusion once for each situation. What `place` and `encode` return is private to
    the engine. A listing's outputs are the same alone and in any batch.
    """

    @property
    def info(self) -> EngineInfo: ...

    def place(self, pixels: NDArray[np.uint8] | None, tokens: NDArray[np.int64] | None) -> Any:
        """Move a batch to the device: pixels `[B, 3, H, W]`, tokens `[B, L]` padded with zeros; not both None.

        A listing without one of them has a placeholder there, which is never looked at.
        """
        ...

    def encode(self, placed: Any) -> Any:
        """Run the towers."""
        ...

    def fuse(self, encoded: Any, parts: Sequence[Rows]) -> list[RawOutputs]:
        """Fuse the encoded modalities of each part's listings and copy out their logits, weights and embeddings."""
        ...
