"""PyTorch's network to OpenVINO's: image tower, text tower and fusion apart, each for any number of listings.

May import torch, openvino and, to quantise, nncf.

Shapes: B listings, n listings to fuse, H and W pixels, L title tokens, N image patches, S tokens, D fusion width, M = 2
modalities in the order image, text, C_t labels of attribute t.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.checkpoint.compiled import CompiledNetwork, file_digest
from model.checkpoint.folder import Checkpoint
from model.errors import ConfigError
from model.inference.engines.engine import EngineInfo, EngineName
from model.inference.engines.torch_engine import TorchEngine
from model.inputs.normalise import TensorTransform
from model.network.cma_clip import CMAClip

PRECISIONS: Mapping[EngineName, Mapping[str, str]] = {
    EngineName.OPENVINO_F32: {"image": "f32", "text": "f32", "fusion": "f32"},
    # The fusion is a small part of the work, and its sums over a title's tokens are what bfloat16 would round most.
    EngineName.OPENVINO_BF16: {"image": "bf16", "text": "bf16", "fusion": "f32"},
    EngineName.OPENVINO_INT8: {"image": "f32", "text": "f32", "fusion": "f32"},
}
"""The number format of each part, apart from what is quantised to integers."""


class ImageTokens(nn.Module):
    """Pixels uint8 `[B, 3, H, W]` -> the image's projected tokens `[B, 1+N, D]`."""

    def __init__(self, network: CMAClip, transform: TensorTransform) -> None:
        super().__init__()
        self.tower, self.attention, self.transform = network.backbone.image, network.sequence_attention, transform

    def forward(self, pixels: Tensor) -> Tensor:
        return self.attention.project(self.tower(self.transform.normalise(pixels)), None)


class TitleTokens(nn.Module):
    """Token ids int64 `[B, L]` -> the title's projected tokens `[B, L, D]`."""

    def __init__(self, network: CMAClip) -> None:
        super().__init__()
        self.tower, self.attention = network.backbone.text, network.sequence_attention

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention.project(None, self.tower(tokens))


class Fusion(nn.Module):
    """Both modalities' projected tokens -> logits of all attributes `[n, sum of C_t]`, modality attention `[n, T, M]`
    and aggregated embeddings `[n, M, D]`.

    The inputs are those of `model.inference.engines.openvino_engine`: tokens `[n, S, D]`, text first, `mask` `[n, S]`,
    the positions of the representing tokens `pooled` `[n, M]`, and which modalities are there, `here` `[n, M]`.
    """

    def __init__(self, network: CMAClip) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, mask: Tensor, pooled: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.network.fuse(tokens, mask, pooled, here)
        return torch.cat(output.logits, dim=1), output.modality_attention, output.aggregated


def export(engine: TorchEngine, checkpoint: Checkpoint) -> dict[str, ov.Model]:
    """Convert a network that PyTorch has loaded; return its three parts by name: image, text, fusion."""
    network, config = engine.network, checkpoint.config
    height, width = config.preprocess.image_size
    rows, columns = engine.info.grid
    count = 1 + rows * columns
    length = config.preprocess.context_length
    pixels = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    fused = (
        torch.zeros(2, count, config.fusion.width),
        torch.ones(2, count, dtype=torch.bool),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.ones(2, 2, dtype=torch.bool),
    )
    with _plain_tracing():
        return {
            "image": _convert(ImageTokens(network, engine.transform), (pixels,), [[-1, 3, height, width]]),
            "text": _convert(TitleTokens(network), (torch.ones(2, length, dtype=torch.int64),), [[-1, -1]]),
            "fusion": _convert(Fusion(network), fused, [[-1, -1, config.fusion.width], [-1, -1], [-1, 2], [-1, 2]]),
        }


def _convert(module: nn.Module, example: tuple[Tensor, ...], shapes: Sequence[Sequence[int]]) -> ov.Model:
    with torch.no_grad():
        return ov.convert_model(module.eval(), example_input=example, input=[ov.PartialShape(list(s)) for s in shapes])


@contextmanager
def _plain_tracing() -> Iterator[None]:
    """Trace attention as the operations that it stands for, and hide that tracing is deprecated in PyTorch.

    Fused attention of PyTorch's own has no counterpart.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


QUANTISED_AFTER = (0, 4, 10)
"""What is tried for 8-bit integers, the fastest first: how many of the image tower's first convolutions are left as
they are. They see the pixels and have few channels, and their rounding changes more labels than that of all others.
"""


def quantise(parts: Mapping[str, ov.Model], samples: Sequence[NDArray[np.uint8]], kept: int) -> dict[str, ov.Model]:
    """Return a network whose image tower computes in 8-bit integers (static post-training quantisation).

    The image tower is most of the work. samples: pixels of training images, `[1, 3, H, W]` each: the ranges of
    activations are found on them. kept: how many of its first convolutions stay as they are.
    Raises `ConfigError` where nncf is not installed.
    """
    if find_spec("nncf") is None:
        raise ConfigError("quantising needs nncf; install the extra: pip install 'cma-clip[compile]'")
    import nncf  # noqa: PLC0415 - takes seconds

    nncf.set_log_level(logging.ERROR)
    image = parts["image"]
    convolutions = [each for each in image.get_ordered_ops() if "Convolution" in each.get_type_name()]
    names = [each.get_friendly_name() for each in convolutions[:kept]]
    quantised = nncf.quantize(
        image,
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=names) if names else None,
    )
    return {**parts, "image": quantised}


def write_network(
    folder: Path, name: EngineName, parts: Mapping[str, ov.Model], info: EngineInfo, checkpoint: Checkpoint
) -> CompiledNetwork:
    """Write the parts of a network into `folder`, weights in half precision, and return what describes them.

    info: the reference's.
    """
    for part, network in parts.items():
        for suffix in ("xml", "bin"):  # one of that name may be mapped into memory: overwritten, it would change there
            (folder / f"{part}.{suffix}").unlink(missing_ok=True)
        ov.save_model(network, folder / f"{part}.xml", compress_to_fp16=True)
    names = [f"{part}.{suffix}" for part in parts for suffix in ("xml", "bin")]
    return CompiledNetwork(
        name=name,
        version=checkpoint.version,
        made_with=f"openvino {ov.__version__.split('-')[0]}",
        parameters=info.parameters,
        grid=info.grid,
        precision=PRECISIONS[name],
        files={each: file_digest(folder / each) for each in names},
    )
