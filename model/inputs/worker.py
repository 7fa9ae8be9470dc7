"""A process that decodes images for another one, so that whatever an image does to it harms nobody else.

    python -m model.inputs.worker CHANNEL PIXELS

`model.inputs.pool` starts it, anew and never as a copy of itself. It reads a job from the socket of number CHANNEL, one
message of JSON, and the image file from the file in memory of number PIXELS; it writes the model's pixels there, and
one message of JSON as the answer. It ends when the socket is closed, so also when the process that started it dies.

What an image may take is bounded by the kernel: memory by RLIMIT_AS, CPU time by a timer whose signal ends the process.
Both follow from the image's header. Imports Pillow and numpy alone, and knows no secret: not even of its environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,  # noqa: F401 - loaded now rather than while a caller waits, like the following
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from model.errors import ImageError
from model.inputs.decode import decode_image
from model.inputs.limits import Cost, Limits, TooLargeForNowError
from model.inputs.preprocess import ImageTransform, Resizing

MESSAGE_BYTES = 4096
"""The longest message, either way."""

DETAIL = 500
"""Characters of an error's message."""

READY = b"ready"

LARGEST_PIXELS = 2**28
"""Bytes that a worker may write into a file: the pixels of one image at the model's size."""

KEPT_BYTES = 2**20
"""A file in memory that has been larger than this is emptied once it has been read."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a job says of `Resizing`."""

    image_size: tuple[int, int]
    resize: Literal["longest", "shortest", "squash"]
    fill: int
    interpolation: Literal["bicubic", "bilinear"]
    framing: Literal["product", "whole"]


@dataclass(frozen=True, slots=True)
class Job:
    """An image file of `nbytes` bytes, and the `memory` in bytes that has been set aside for it."""

    nbytes: int
    memory: int
    limits: Limits
    resizing: Resizing

    def encode(self) -> bytes:
        limits, to = self.limits, self.resizing
        what = (self.nbytes, self.memory, limits.max_pixels, limits.any_format)
        return json.dumps((*what, *to.image_size, to.resize, to.fill, to.interpolation, to.framing)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Job:
        nbytes, memory, max_pixels, any_format, height, width, *fitting = json.loads(message)
        limits = Limits(max_pixels=max_pixels, any_format=any_format)
        return cls(nbytes, memory, limits, Fitting((height, width), *fitting))


class AddressSpace:
    """The size of this process's address space, which RLIMIT_AS bounds."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/statm", os.O_RDONLY)
        self._page = resource.getpagesize()
        _, self._most = resource.getrlimit(resource.RLIMIT_AS)
        self._baseline = self.nbytes

    @property
    def nbytes(self) -> int:
        return int(os.pread(self._file, 100, 0).split()[0]) * self._page

    def allow(self, nbytes: int) -> None:
        """Let it grow by so much beyond what it was at the start; beyond what it is, if that is more."""
        resource.setrlimit(resource.RLIMIT_AS, (max(self._baseline, self.nbytes) + nbytes, self._most))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (self._most, self._most))


def main() -> None:
    """Answer job after job until the other side closes the socket, or is gone."""
    channel, file = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    settle()
    space = AddressSpace()
    with contextlib.suppress(ConnectionError):
        channel.send(READY)
        while message := channel.recv(MESSAGE_BYTES):
            answer = perform(Job.decode(message), file, space)
            channel.send(json.dumps(answer).encode())
            if answer.get("error") == "memory":  # libraries may have lost what they held when an allocation failed
                return


def settle() -> None:
    """Set what holds for all jobs."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a terminal, of a service: it ends by EOF
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is doing
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_PIXELS, LARGEST_PIXELS))
    warnings.simplefilter("ignore")  # Pillow's, of metadata that it cannot read
    Image.MAX_IMAGE_PIXELS = None  # the limit comes with each job
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a worker for each core


def perform(job: Job, file: int, space: AddressSpace) -> dict[str, Any]:
    """Decode the image that lies in the file in memory, leave the model's pixels there, and return the answer."""
    data = os.pread(file, job.nbytes, 0)
    if job.nbytes > KEPT_BYTES:
        os.ftruncate(file, 0)

    def admit(cost: Cost) -> None:
        if cost.nbytes > job.memory:
            raise TooLargeForNowError(cost.nbytes)
        space.allow(cost.nbytes)
        signal.setitimer(signal.ITIMER_PROF, cost.seconds)

    try:
        decoded = decode_image(data, job.resizing.image_size, job.limits, admit=admit)
        shown = ImageTransform(job.resizing).show(decoded.image)
        os.pwrite(file, shown.pixels.data, 0)
        return {"box": shown.box, "size": shown.size, "warnings": decoded.warnings}
    except TooLargeForNowError as error:
        return {"needs": error.nbytes}
    except MemoryError:
        return {"error": "memory", "detail": "decoding the image takes more memory than an image of its size may"}
    except ImageError as error:
        return {"error": type(error).__name__, "detail": str(error)[:DETAIL]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        space.lift()


if __name__ == "__main__":
    main()
