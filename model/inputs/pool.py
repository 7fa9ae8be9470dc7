"""Images decoded in processes that can be killed: bytes in, the model's pixels out.

    with DecodePool(workers=2, memory=memory_for(max_pixels)) as pool:
        decoded = pool.decode(data, limits, resizing)       # blocks; from any thread
        decoded.image.pixels                                # uint8 [3, H, W]

Each worker (`model.inputs.worker`) is a process of its own and decodes one image at a time within limits of memory and
CPU time, which follow from the image's header. One that exceeds them, or dies, is replaced; the image at fault raises
`UndecodableError`, and an image whose worker was killed from outside is decoded by the next one.

Small images (`SMALL_BYTES`) never wait for large ones. Those share `memory` bytes, first come, first served, and leave
one worker to the small ones. `decode` waits for that memory; a caller that must not block does it in two steps:

    try:
        decoded = pool.attempt(data, limits, resizing)
    except TooLargeForNowError as error:                    # told from the header, before anything was decoded
        with pool.memory.take(error.nbytes).result():       # a `concurrent.futures.Future`
            decoded = pool.attempt(data, limits, resizing, memory=error.nbytes)

Pixels pass through a file in memory, never through pickle. It is read and written, never mapped: a worker that shrank
it could kill the process that maps it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from model.errors import DecodingStoppedError, ImageError, ImageFormatError, ImageSizeError, UndecodableError
from model.inputs.limits import BYTES_PER_PIXEL, FILE_COPIES, MEBI, OPENING_BYTES, Limits, TooLargeForNowError
from model.inputs.preprocess import ModelImage, Resizing
from model.inputs.worker import MESSAGE_BYTES, READY, Job
from model.situations import ListingWarning

SMALL_BYTES = 128 * MEBI
"""An image that may take this much memory is small: a photo of 3 megapixels, a baseline JPEG of any size."""

START_SECONDS = 60.0
"""A worker that is not ready by then never will be."""

WALL_SECONDS = 60.0
"""A worker that is at one image for this long is killed, though it has used less CPU time than it may: it has been
stopped, or the machine is hopelessly overloaded."""

STUCK_SECONDS = 15.0
"""When every worker is at one image for this long, no image is being answered. Longer than any may take of CPU time."""

END_SECONDS = 2.0
"""How long workers have to end by themselves when the pool is closed."""

TRIES = 2
"""Workers that an image is given to: it may not be to blame for the death of the first."""

START_TRIES = 5
"""Workers that are started one after the other until one gets ready: somebody, or a system short of memory, may kill
one while it starts."""

INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""What a worker has of this process's environment, besides coverage's variables: no secret."""

WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    # Large blocks go back to the system at once, so that what one image took is not counted against the next.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * MEBI),
    "MALLOC_TRIM_THRESHOLD_": str(16 * MEBI),
}

TOO_LONG = "decoding the image takes longer than an image of its size may"

ERRORS = {error.__name__: error for error in (ImageError, ImageFormatError, ImageSizeError, UndecodableError)}


class Kill(StrEnum):
    """Why a worker ended before its time."""

    CPU_TIME = "cpu_time"
    """The image took more CPU time than it may."""
    WALL_TIME = "wall_time"
    """It was at one image for `WALL_SECONDS`."""
    MEMORY = "memory"
    """The image took more memory than it may."""
    CRASH = "crash"
    """Anything else: a decoder's bug, the system short of memory, somebody's `kill`."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """The model's pixels of an image, and what a caller should know about how it was read."""

    image: ModelImage
    warnings: tuple[ListingWarning, ...]


def memory_for(max_pixels: int, nbytes: int = 0) -> int:
    """Return the memory that the costliest accepted image of so many pixels and bytes may take."""
    return OPENING_BYTES + max(BYTES_PER_PIXEL.values()) * max_pixels + FILE_COPIES * nbytes


def worker_count(threads: int) -> int:
    """Return the number of workers for a number of threads: at least two, since one is left to small images."""
    return max(2, min(8, threads))


class WorkerDiedError(Exception):
    """A worker ended, or was killed, while it was at an image."""

    def __init__(self, reason: Kill) -> None:
        super().__init__(reason)
        self.reason = reason


class DecodePool:
    """Decode workers, and the memory that large images share. All methods may be called in any thread."""

    def __init__(
        self,
        workers: int,
        *,
        memory: int,
        on_kill: Callable[[Kill], None] = lambda reason: None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        """
        workers: how many, at least two
        memory: bytes that large images may take together; one that may take more is decoded alone
        on_kill, on_restart: called when a worker has ended before its time, and when another has taken its place
        """
        if workers < 2:
            raise ValueError("a pool needs two workers at least: one is left to small images")
        self.memory = MemoryBudget(memory, places=workers - 1)
        self._slots = [_Slot(on_kill, on_restart) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Slot] = queue.LifoQueue()  # the latest one's caches are warm
        for slot in self._slots:
            self._idle.put(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def workers(self) -> int:
        return len(self._slots)

    def start(self, *, wait: bool = True) -> None:
        """Start every worker now instead of when it is first needed, and `wait` until they are ready.

        Raises `DecodingStoppedError`.
        """
        for slot in self._slots:
            slot.start()
        for slot in self._slots if wait else ():
            slot.running()

    def decode(self, data: bytes, limits: Limits, resizing: Resizing) -> DecodedImage:
        """Decode an image file to the model's pixels; waits for a worker, and for memory if the image is large.

        Raises `ImageFormatError`, `ImageSizeError`, `UndecodableError`, or `DecodingStoppedError`.
        """
        try:
            return self.attempt(data, limits, resizing)
        except TooLargeForNowError as error:
            needed = error.nbytes
        with self.memory.take(needed).result():
            return self.attempt(data, limits, resizing, memory=needed)

    def attempt(self, data: bytes, limits: Limits, resizing: Resizing, *, memory: int = SMALL_BYTES) -> DecodedImage:
        """Decode an image as `decode` does, within so much memory, which the caller has taken from `self.memory`.

        Raises `TooLargeForNowError` if its header says that it needs more.
        """
        job = Job(len(data), memory, limits, resizing)
        slot = self._idle.get()
        try:
            for _ in range(TRIES):
                try:
                    return slot.run(job, data)
                except WorkerDiedError as death:
                    if death.reason is not Kill.CRASH:
                        raise UndecodableError(
                            "decoding the image takes longer than an image of its size may"
                        ) from None
            raise UndecodableError("the image makes its decoder crash")
        finally:
            self._idle.put(slot)

    def tend(self) -> None:
        """Replace workers that have died while idle; to be called now and then where nobody may be asking for one."""
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._idle.get_nowait())
        for slot in idle:
            slot.tend()
            self._idle.put(slot)

    @property
    def trouble(self) -> str | None:
        """Say in a few words why images cannot be decoded at present; None while they can."""
        if all(slot.failed for slot in self._slots):
            return "no decode worker can be started"
        if all(slot.busy_for > STUCK_SECONDS for slot in self._slots):
            return "all decode workers hang"
        return None

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers that have been started."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    @property
    def resident_bytes(self) -> int:
        """Resident memory of all workers; their shared parts are counted in each."""
        pages = 0
        for pid in self.processes:
            with contextlib.suppress(OSError):  # it has just ended
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End all workers; what is being decoded raises `DecodingStoppedError`."""
        for slot in self._slots:
            slot.hang_up()
        ends = time.monotonic() + END_SECONDS
        for slot in self._slots:
            slot.end(ends - time.monotonic())


class MemoryBudget:
    """Memory that is shared, first come, first served, by so many holders at most."""

    def __init__(self, nbytes: int, *, places: int) -> None:
        self._free, self._nbytes = nbytes, nbytes
        self._places = places
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Future[Reservation]]] = deque()

    def take(self, nbytes: int) -> Future[Reservation]:
        """Return what becomes a reservation of so many bytes; of everything, where there is less. May be cancelled."""
        wanted: Future[Reservation] = Future()
        with self._lock:
            self._waiting.append((min(nbytes, self._nbytes), wanted))
        self._grant()
        return wanted

    def give_back(self, nbytes: int) -> None:
        with self._lock:
            self._free += nbytes
            self._places += 1
        self._grant()

    def _grant(self) -> None:
        granted = []
        with self._lock:
            while self._waiting and self._places and self._waiting[0][0] <= self._free:
                nbytes, wanted = self._waiting.popleft()
                if wanted.set_running_or_notify_cancel():
                    self._free -= nbytes
                    self._places -= 1
                    granted.append((wanted, Reservation(self, nbytes)))
        for wanted, reservation in granted:  # without the lock: its callbacks may come back here
            wanted.set_result(reservation)


class Reservation:
    """Memory that somebody holds until `release`, or until the end of its context."""

    def __init__(self, budget: MemoryBudget, nbytes: int) -> None:
        self._budget, self.nbytes = budget, nbytes
        self._held = True

    def release(self) -> None:
        """Give the memory back; once, however often it is called."""
        if self._held:
            self._held = False
            self._budget.give_back(self.nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class _Slot:
    """The place of one worker: who holds it, one thread at a time, runs jobs; a worker that ends is replaced."""

    def __init__(self, on_kill: Callable[[Kill], None], on_restart: Callable[[], None]) -> None:
        self._on_kill, self._on_restart = on_kill, on_restart
        self._worker: _Worker | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._began = math.inf
        self.failed = False
        """Whether the latest start of a worker failed."""

    @property
    def busy_for(self) -> float:
        """Seconds for which it has been at one image; negative while it is at none."""
        return time.monotonic() - self._began

    @property
    def pid(self) -> int | None:
        worker = self._worker
        return None if worker is None else worker.pid

    def start(self) -> None:
        """Start a worker unless there is one. Raises `DecodingStoppedError`."""
        with self._lock:
            if self._closed:
                raise DecodingStoppedError("the decode workers have been stopped")
            if self._worker is None:
                try:
                    self._worker = _Worker()
                except OSError as error:
                    self.failed = True
                    raise DecodingStoppedError(f"no decode worker can be started: {error.strerror}") from error

    def running(self) -> _Worker:
        """Return a worker that is ready. Raises `DecodingStoppedError`."""
        for _ in range(START_TRIES):
            self.start()
            worker = self._worker
            if worker is not None and worker.becomes_ready():
                self.failed = False
                return worker
            self._replace(Kill.CRASH)
        self.failed = True
        raise DecodingStoppedError("no decode worker can be started: it ends before it is ready")

    def run(self, job: Job, data: bytes) -> DecodedImage:
        """Run a job. Raises `WorkerDiedError`, after which the next job finds another worker."""
        worker = self.running()
        self._began = time.monotonic()
        try:
            answer = worker.ask(job, data)
            if answer.get("error") == "memory":
                self._replace(Kill.MEMORY)
                raise UndecodableError(str(answer["detail"]))
            return _understood(answer, worker, job)
        except WorkerDiedError as death:
            self._replace(death.reason)
            raise
        finally:
            self._began = math.inf

    def tend(self) -> None:
        """Replace the worker if it has ended, or could not be started."""
        worker = self._worker
        if worker is not None and worker.ended:
            self.failed = not worker.ready
            self._replace(Kill.CRASH)
        elif worker is None:
            if self.failed:
                with contextlib.suppress(DecodingStoppedError):
                    self.start()
        elif worker.is_ready():
            self.failed = False

    def _replace(self, reason: Kill) -> None:
        self._end_worker()
        if self._closed:
            return
        self._on_kill(reason)
        with contextlib.suppress(DecodingStoppedError):  # the next job tries again, and says so
            self.start()  # not waiting until it is ready: whoever asked is answered first
            self._on_restart()

    def _end_worker(self, seconds: float = 0.0) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.end(seconds)

    def hang_up(self) -> None:
        """Start no other worker, and let this one end."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.hang_up()

    def end(self, seconds: float) -> None:
        """Kill the worker unless it ends by itself within so many seconds."""
        self._end_worker(seconds)


def interpreter() -> str:
    """Return the program of another Python process: this process's own where its path can't be walked any more.

    A process may have been started with more rights than it has now, from a folder that its user may not enter.
    """
    with contextlib.suppress(FileNotFoundError):
        try:
            os.stat(sys.executable)
        except PermissionError:
            return "/proc/self/exe"
    return sys.executable


class _Worker:
    """A worker process, the socket to it, and the file in memory that images and pixels pass through."""

    def __init__(self) -> None:
        """Start the process; raises `OSError`."""
        self.ready = False
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pixels = os.memfd_create("cma-clip-image")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this project's program
                [sys.executable, "-m", "model.inputs.worker", str(theirs.fileno()), str(self._pixels)],
                executable=interpreter(),
                pass_fds=(theirs.fileno(), self._pixels),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def becomes_ready(self) -> bool:
        """Wait until the worker is ready; False if it ends before."""
        return self.ready or self._hears_of_it(START_SECONDS)

    def is_ready(self) -> bool:
        """Whether the worker is ready by now."""
        return self.ready or self._hears_of_it(0)

    def _hears_of_it(self, seconds: float) -> bool:
        self._channel.settimeout(seconds)
        with contextlib.suppress(OSError):  # among them a time-out
            self.ready = self._channel.recv(MESSAGE_BYTES) == READY
        return self.ready

    def ask(self, job: Job, data: bytes) -> dict[str, Any]:
        """Give the worker a job and return its answer. Raises `WorkerDiedError`."""
        self._channel.settimeout(WALL_SECONDS)
        try:
            self._write(data)
            self._channel.send(job.encode())
            message = self._channel.recv(MESSAGE_BYTES)
        except TimeoutError:
            raise WorkerDiedError(Kill.WALL_TIME) from None
        except OSError:
            message = b""
        try:
            answer = json.loads(message) if message else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise WorkerDiedError(self._why_it_ended())
        return answer

    def _write(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            at += os.pwrite(self._pixels, data[at:] if at else data, at)

    def _why_it_ended(self) -> Kill:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.wait(END_SECONDS) == -signal.SIGPROF:
                return Kill.CPU_TIME
        return Kill.CRASH

    def read(self, nbytes: int) -> bytes:
        """Read what the worker has left in the file."""
        return os.pread(self._pixels, nbytes, 0)

    def hang_up(self) -> None:
        """Let the worker end once it has finished what it is at; whoever waits for an answer gets none."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def end(self, seconds: float) -> None:
        """Kill the worker unless it ends by itself within so many seconds, and let go of everything."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        self._channel.close()
        if self._pixels >= 0:
            os.close(self._pixels)
            self._pixels = -1


def _environment() -> dict[str, str]:
    """Return what a worker may know: where to find the same code, and no secret."""
    kept = {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith("COVERAGE_")}
    places = [str(Path(__file__).parents[2]), *(os.path.abspath(place) for place in sys.path if place)]
    found = {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **WORKER_ENVIRONMENT, **found}


def _understood(answer: dict[str, Any], worker: _Worker, job: Job) -> DecodedImage:
    """Make sense of an answer, which a decoder that was taken over may have written."""
    if "needs" in answer:
        raise TooLargeForNowError(int(answer["needs"]))
    if "error" in answer:
        raise ERRORS.get(answer["error"], UndecodableError)(str(answer["detail"]))
    height, width = job.resizing.image_size
    pixels = worker.read(3 * height * width)
    try:
        left, upper, right, lower = (float(edge) for edge in answer["box"])
        across, down = (int(side) for side in answer["size"])
        image = ModelImage(
            np.frombuffer(pixels, dtype=np.uint8).reshape(3, height, width), (left, upper, right, lower), (across, down)
        )
        return DecodedImage(image, tuple(ListingWarning(warning) for warning in answer["warnings"]))
    except (KeyError, TypeError, ValueError):
        raise WorkerDiedError(Kill.CRASH) from None
