"""The engine of CPUs: a compiled network in OpenVINO. Needs no torch.

A batch is cut into slices that are computed side by side, one thread each: two threads on one batch waste a third of
what two batches on one thread each do. A single listing's image and title are computed side by side, too.

Shapes: B listings, n listings to fuse, L title tokens, 1+N image tokens, S = L + 1 + N, D fusion width, M = 2
modalities in the order image, text, C_t labels of attribute t.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from model.checkpoint.compiled import CompiledNetwork
from model.checkpoint.folder import Checkpoint
from model.errors import CheckpointError
from model.inference.engines.engine import EngineInfo, EngineName, Rows
from model.inference.predictions import RawOutputs
from model.threads import thread_count

DTYPES = {
    EngineName.OPENVINO_F32: "float32",
    EngineName.OPENVINO_BF16: "bfloat16",
    EngineName.OPENVINO_INT8: "int8",
}

SMALLEST_SLICE, LARGEST_SLICE = 4, 8
"""Rows of a batch that are worth a thread of their own, and that are computed at once: more are no faster, and take
memory in proportion."""

Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A batch: pixels uint8 `[B, 3, H, W]`, tokens int64 `[B, L]`; None where no listing has any."""

    pixels: NDArray[np.uint8] | None
    tokens: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """Projected tokens, float32: of images `[B, 1+N, D]`, of titles `[B, L, D]`; and the title's end, `[B]`."""

    image: NDArray[np.float32] | None
    text: NDArray[np.float32] | None
    end: NDArray[np.int64] | None


class OpenVinoEngine:
    """Implements `model.inference.engines.engine.Engine`."""

    def __init__(
        self, compiled: CompiledNetwork, folder: Path, labels: Sequence[int], *, end: int, threads: int = 0
    ) -> None:
        """
        folder: where the network's files are
        labels: how many each attribute has
        end: the token that ends a title
        threads: 0 for `model.threads.thread_count`

        Raises `CheckpointError` for files that OpenVINO cannot read.
        """
        name = EngineName(compiled.name)
        self.info = EngineInfo(
            name=name,
            device="cpu",
            dtype=DTYPES[name],
            parameters=compiled.parameters,
            grid=compiled.grid,
            warms_each_shape=False,  # milliseconds
        )
        threads = thread_count(threads)
        core = _core()
        self._image, self._text, self._fusion = (
            _Network(core, folder / f"{part}.xml", compiled.precision[part], threads)
            for part in ("image", "text", "fusion")
        )
        self._ends, self._end = np.cumsum(labels)[:-1], end

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> OpenVinoEngine:
        """Load the compiled network of a checkpoint. Raises `CheckpointError` where it cannot be read."""
        assert checkpoint.compiled is not None
        labels = [len(task.labels) for task in checkpoint.tasks]
        return cls(checkpoint.compiled, checkpoint.home, labels, end=checkpoint.config.preprocess.end)

    def place(self, pixels: NDArray[np.uint8] | None, tokens: NDArray[np.int64] | None) -> Placed:
        return Placed(pixels, tokens)

    def encode(self, placed: Placed) -> Encoded:
        runs = []
        if placed.pixels is not None:
            runs.append(_Run(self._image, (placed.pixels,)))
        if placed.tokens is not None:
            runs.append(_Run(self._text, (placed.tokens,)))
        found = iter(_run_together(runs))
        return Encoded(
            image=None if placed.pixels is None else next(found)[0],
            text=None if placed.tokens is None else next(found)[0],
            end=None if placed.tokens is None else (placed.tokens == self._end).argmax(axis=1),
        )

    def fuse(self, encoded: Encoded, parts: Sequence[Rows]) -> list[RawOutputs]:
        """Fuse all parts at once: what is absent in one of them is masked, and changes nothing."""
        inputs = [_fusion_inputs(encoded, rows) for rows in parts]
        ((logits, attention, embeddings),) = _run_together(
            [_Run(self._fusion, tuple(map(np.concatenate, zip(*inputs, strict=True))))]
        )
        cuts = np.cumsum([len(each[0]) for each in inputs])[:-1]
        return [
            RawOutputs(logits=tuple(np.split(scores, self._ends, axis=1)), attention=weights, embeddings=aggregated)
            for scores, weights, aggregated in zip(
                *(np.split(each, cuts) for each in (logits, attention, embeddings)), strict=True
            )
        ]


def _fusion_inputs(encoded: Encoded, rows: Rows) -> Arrays:
    """Return the fusion's inputs for n listings: tokens `[n, S, D]`, text first, which of them are there `[n, S]` bool,
    where the image's and the title's representing tokens are `[n, M]` int64, and which modalities are there
    `[n, M]` bool. An absent modality has placeholders.
    """
    count = max(0 if each is None else len(each) for each in (rows.image, rows.text))
    tokens, masks = [], []
    pooled, here = np.zeros((count, 2), np.int64), np.zeros((count, 2), np.bool_)
    nothing = np.zeros(count, np.intp)
    if encoded.text is not None and encoded.end is not None:
        length = encoded.text.shape[1]
        tokens.append(encoded.text[nothing if rows.text is None else rows.text])
        masks.append(np.zeros((count, length), np.bool_))
        pooled[:, 0] = length
        if rows.text is not None:
            end = encoded.end[rows.text]
            masks[-1] = np.arange(length) <= end[:, None]
            pooled[:, 1], here[:, 1] = end, True
    if encoded.image is not None:
        tokens.append(encoded.image[nothing if rows.image is None else rows.image])
        masks.append(np.full((count, encoded.image.shape[1]), rows.image is not None))
        here[:, 0] = rows.image is not None
    else:
        pooled[:, 0] = 0
    return np.concatenate(tokens, axis=1), np.concatenate(masks, axis=1), pooled, here


@functools.cache
def _core() -> ov.Core:
    """Return the process's only one, which is never freed.

    OpenVINO gives the thread that loads its CPU plugin another stack for signal handlers, and frees it with the plugin,
    in whichever thread: the next signal would end the process.
    """
    return ov.Core()


class _Network:
    """One of the compiled networks, and what computes the slices of a batch, as many as there are."""

    def __init__(self, core: ov.Core, path: Path, precision: str, threads: int) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "ENABLE_CPU_PINNING": False,  # the decode workers and the event loop use the same cores
        }
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", options)
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be used: {_last_line(error)}") from error
        self.threads = threads
        self.outputs = len(self._compiled.outputs)
        self._requests: list[ov.InferRequest] = []

    def requests(self, count: int) -> list[ov.InferRequest]:
        """Return so many requests. They hold inputs and outputs; all else is the threads', and is shared."""
        while len(self._requests) < count:
            self._requests.append(self._compiled.create_infer_request())
        return self._requests[:count]


@dataclass(frozen=True, slots=True)
class _Run:
    """A network and its inputs, which have the same number of rows, one at least."""

    network: _Network
    inputs: Arrays

    def slices(self) -> list[tuple[ov.InferRequest, Arrays]]:
        """Return what computes each slice of the rows: as many slices for each thread, as far as they are worth it."""
        rows, threads = len(self.inputs[0]), self.network.threads
        rounds = -(-rows // (LARGEST_SLICE * threads))
        count = max(1, min(rounds * threads, rows // SMALLEST_SLICE))
        cuts = np.linspace(0, rows, count + 1).astype(int).tolist()
        return [
            (request, tuple(each[first:last] for each in self.inputs))
            for request, first, last in zip(self.network.requests(count), cuts, cuts[1:], strict=False)
        ]

    def outputs(self) -> Arrays:
        """Return copies of the outputs: the requests' own are overwritten by their next run."""
        requests = [request for request, _ in self.slices()]
        return tuple(
            np.concatenate([request.get_output_tensor(output).data for request in requests])
            for output in range(self.network.outputs)
        )


def _run_together(runs: Sequence[_Run]) -> list[Arrays]:
    """Compute all slices of all runs side by side, and return each run's outputs."""
    slices = [each for run in runs for each in run.slices()]
    if len(slices) == 1 or runs[0].network.threads == 1:
        for request, inputs in slices:
            request.infer(list(inputs), share_inputs=True, share_outputs=True)
    else:
        for request, inputs in slices:
            request.start_async(list(inputs), share_inputs=True)
        for request, _ in slices:
            request.wait()
    return [run.outputs() for run in runs]


def _last_line(error: Exception) -> str:
    return [line for line in str(error).splitlines() if line.strip()][-1]
