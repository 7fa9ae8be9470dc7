"""Decode workers: the same pixels, whatever an image does, and whatever happens to the worker."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.config import PreprocessConfig
from model.errors import DecodingStoppedError, ImageFormatError, ImageSizeError, UndecodableError
from model.inputs import pool as pool_module
from model.inputs.decode import decode_image
from model.inputs.limits import CATALOGUE, Limits, TooLargeForNowError
from model.inputs.pool import SMALL_BYTES, DecodePool, Kill, MemoryBudget, Reservation, memory_for, worker_count
from model.inputs.preprocess import ImageTransform
from model.situations import ListingWarning

LIMITS = Limits(max_pixels=50_000_000)
SERVING = PreprocessConfig(image_size=(128, 96), context_length=8, framing="product")
ROOT = Path(__file__).parents[2]


class Watched(DecodePool):
    """Workers of which is known what became of them."""

    def __init__(self, workers: int = 2, memory: int = memory_for(LIMITS.max_pixels)) -> None:
        self.kills: list[Kill] = []
        self.restarts = 0
        super().__init__(workers, memory=memory, on_kill=self.kills.append, on_restart=self._restarted)

    def _restarted(self) -> None:
        self.restarts += 1


@pytest.fixture(scope="module")
def workers() -> Iterator[Watched]:
    with Watched() as pool:
        yield pool


@pytest.fixture(autouse=True)
def _forgotten(workers: Watched) -> None:
    workers.kills.clear()
    workers.restarts = 0


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(width: int = 60, height: int = 80, mode: str = "RGB") -> Image.Image:
    """Noise in a frame, so that there is something to trim, as sharp as an image can be."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    framed = Image.new("RGB", (width + 20, height + 10), "white")
    framed.paste(Image.fromarray(noise), (10, 5))
    return framed.convert(mode)


PLAIN = encoded(photo())


def until(condition: Callable[[], object]) -> None:
    """Wait for something that must come."""
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


# ── hostile files ────────────────────────────────────────────────────────────────────────────────────────────────


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def avif_that_lies(width: int, height: int) -> bytes:
    """A file whose `ispe` says 64 × 64, and whose stream is as large as given; a plain one, so it has few bytes."""
    data = encoded(Image.new("RGB", (width, height), "blue"), "AVIF", speed=10, subsampling="4:4:4")
    at = data.index(b"ispe") + 8
    assert data[at : at + 8] == struct.pack(">II", width, height)
    return data[:at] + struct.pack(">II", 64, 64) + data[at + 8 :]


def webp_of_38_bytes(side: int) -> bytes:
    """A lossless file of one colour, as large as WebP can be: its header, cut to the bits that say one colour."""
    data = encoded(Image.new("RGB", (4, 4)), "WEBP", lossless=True)
    size = struct.unpack_from("<I", data, 21)[0] & ~0xFFFFFFF | (side - 1) | (side - 1) << 14
    return data[:21] + struct.pack("<I", size) + data[25:]


def jpeg_of_hidden_scans(side: int) -> bytes:
    """A progressive file with thousands of scans that no reader of segments sees, in 60 kB.

    Before a restart marker stands `ff 02 ff ff`: by the standard a segment of 65,535 bytes, which libjpeg, looking for
    the restart, does not take for one.
    """
    data = encoded(Image.new("L", (side, side), 99), "JPEG", progressive=True, restart_marker_blocks=20_000)
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    assert scan.count(b"\xff\xd0") == 1
    return data[:start] + scan.replace(b"\xff\xd0", b"\xff\x02\xff\xff\xd0") + scan * (60_000 // len(scan)) + data[-2:]


# ── the same pixels ──────────────────────────────────────────────────────────────────────────────────────────────

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SIDEWAYS = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
LARGE = photo(2500, 1800)
FILES = {
    "JPEG": encoded(photo(), "JPEG"),
    "JPEG, drafted": encoded(photo(900, 1200), "JPEG"),
    "JPEG, progressive": encoded(photo(900, 1200), "JPEG", progressive=True),
    "JPEG, CMYK": encoded(photo(mode="CMYK"), "JPEG"),
    "JPEG, on its side": encoded(
        photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    ),
    "PNG": PLAIN,
    "PNG, transparent": encoded(photo(mode="RGBA")),
    "PNG, palette": encoded(photo(mode="P"), transparency=3),
    "PNG, 16 bits": encoded(Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(80, 60) * 13)),
    "PNG, profile": encoded(photo(), icc_profile=PROFILE),
    "PNG, broken profile": encoded(photo(), icc_profile=b"no profile"),
    "PNG, large": encoded(LARGE, compress_level=1),
    "WEBP": encoded(photo(), "WEBP"),
    "WEBP, lossless": encoded(photo(mode="RGBA"), "WEBP", lossless=True),
    "GIF": encoded(photo(), "GIF"),
    "AVIF": encoded(photo(), "AVIF"),
    "BMP": encoded(photo(), "BMP"),
    "TIFF": encoded(photo(), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "resizing",
    [
        SERVING,
        replace(SERVING, resize="squash", framing="whole", interpolation="bilinear"),
        replace(SERVING, image_size=(24, 16)),
    ],
)
def test_a_workers_pixels_are_those_of_this_process(workers: Watched, name: str, resizing: PreprocessConfig) -> None:
    """What is served, what is labelled, and what a certificate was measured on."""
    decoded = decode_image(FILES[name], resizing.image_size)
    here = ImageTransform(resizing).show(decoded.image)
    there = workers.decode(FILES[name], CATALOGUE, resizing)
    assert there.image.pixels.dtype == np.uint8
    assert (there.image.pixels == here.pixels).all()
    assert (there.image.box, there.image.size, there.warnings) == (here.box, here.size, decoded.warnings)
    assert (there.warnings == (ListingWarning.PROFILE_UNREADABLE,)) == (name == "PNG, broken profile")


def test_large_images_are_what_they_are_said_to_be(workers: Watched) -> None:
    with pytest.raises(TooLargeForNowError) as caught:
        workers.attempt(FILES["PNG, large"], LIMITS, SERVING)
    assert caught.value.nbytes > 4 * LARGE.width * LARGE.height
    workers.attempt(FILES["PNG, large"], LIMITS, SERVING, memory=caught.value.nbytes)
    assert not workers.kills


@pytest.mark.parametrize(
    ("data", "limits", "error"),
    [
        (b"", LIMITS, UndecodableError),
        (b"%PDF-1.4", LIMITS, ImageFormatError),
        (FILES["TIFF"], LIMITS, ImageFormatError),
        (PLAIN[:200], LIMITS, UndecodableError),
        (b"%PDF-1.4", CATALOGUE, UndecodableError),
        (PLAIN, Limits(max_pixels=7199), ImageSizeError),
    ],
)
def test_what_cannot_be_used_says_why_and_costs_no_worker(
    workers: Watched, data: bytes, limits: Limits, error: type[Exception]
) -> None:
    with pytest.raises(error):
        workers.decode(data, limits, SERVING)
    assert not workers.kills
    workers.decode(PLAIN, Limits(max_pixels=7200), SERVING)


# ── what an image does ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_avif_whose_stream_is_larger_than_it_says_takes_no_more_memory_than_it_said(workers: Watched) -> None:
    data = avif_that_lies(5000, 5000)
    assert len(data) < 20_000
    with pytest.raises(UndecodableError):
        workers.decode(data, LIMITS, SERVING)
    workers.decode(PLAIN, LIMITS, SERVING)
    peaks = [peak_bytes(pid) for pid in workers.processes]
    assert max(peaks) < SMALL_BYTES + 100 * 2**20


def peak_bytes(pid: int) -> int:
    (line,) = (each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_scans_that_no_header_check_sees_end_with_the_time_that_an_image_of_this_size_may_take(
    workers: Watched,
) -> None:
    data = jpeg_of_hidden_scans(1500)
    began = time.process_time()
    with pytest.raises(UndecodableError, match="longer"):
        workers.decode(data, LIMITS, SERVING)
    assert time.process_time() - began < 1  # the time was another process's
    assert workers.kills == [Kill.CPU_TIME]
    assert workers.restarts == 1
    workers.decode(PLAIN, LIMITS, SERVING)


def test_a_crashing_decoder_fails_its_image_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files of the size of this one kill whoever decodes them."""
    fatal = encoded(photo(33, 44))
    folder = tmp_path / "sitecustomize.py"
    folder.write_text(
        "import os, signal\nread = os.pread\n"
        f"def pread(file, count, at):\n    count == {len(fatal)} and os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return read(file, count, at)\nos.pread = pread\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with Watched() as pool:
        with pytest.raises(UndecodableError, match="crash"):
            pool.decode(fatal, LIMITS, SERVING)
        pool.decode(PLAIN, LIMITS, SERVING)
        assert pool.kills == [Kill.CRASH] * 2


# ── what happens to a worker ─────────────────────────────────────────────────────────────────────────────────────


def test_images_whose_workers_are_killed_from_outside_are_decoded_all_the_same(workers: Watched) -> None:
    workers.start()
    expected = workers.decode(PLAIN, LIMITS, SERVING).image.pixels
    over, done = threading.Event(), list[int]()

    def kill_now_and_then() -> None:
        try:
            for _ in range(4):
                before = workers.restarts
                until(lambda: all(slot._worker and slot._worker.ready for slot in workers._slots))
                enough = len(done) + 6  # nobody is unlucky twice
                until(lambda enough=enough: len(done) >= enough)  # type: ignore[misc]
                with contextlib.suppress(IndexError, ProcessLookupError):
                    os.kill(workers.processes[0], signal.SIGKILL)
                until(lambda before=before: workers.restarts > before)  # type: ignore[misc]
        finally:
            over.set()

    def decode_until_then(thread: int) -> None:
        while not over.is_set():
            assert (workers.decode(PLAIN, LIMITS, SERVING).image.pixels == expected).all()
            done.append(thread)

    with ThreadPoolExecutor(3) as threads:
        killing = threads.submit(kill_now_and_then)
        list(threads.map(decode_until_then, range(2)))
        killing.result()
    assert workers.kills == [Kill.CRASH] * workers.restarts


def test_a_worker_that_dies_while_idle_is_replaced_without_being_asked_for(workers: Watched) -> None:
    workers.start()
    before = workers.processes
    os.kill(before[0], signal.SIGKILL)

    def replaced() -> bool:
        workers.tend()
        return workers.restarts == 1

    until(replaced)
    assert len(set(workers.processes) - set(before)) == 1
    assert workers.trouble is None


def test_stopped_workers_are_trouble_and_are_killed_in_the_end(
    workers: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start()
    monkeypatch.setattr(pool_module, "STUCK_SECONDS", 0.05)
    monkeypatch.setattr(pool_module, "WALL_SECONDS", 2)
    for pid in workers.processes:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(workers.decode, PLAIN, LIMITS, SERVING) for _ in range(2)]
        until(lambda: workers.trouble == "all decode workers hang")
        for each in waiting:
            with pytest.raises(UndecodableError, match="longer"):
                each.result()
    assert workers.kills == [Kill.WALL_TIME] * 2
    assert workers.trouble is None
    monkeypatch.undo()
    workers.decode(PLAIN, LIMITS, SERVING)


def test_where_no_worker_can_be_started_it_says_so_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    with Watched() as pool:
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            for _ in range(2):
                with pytest.raises(DecodingStoppedError, match="before it is ready"):
                    pool.decode(PLAIN, LIMITS, SERVING)
            with pytest.raises(DecodingStoppedError):
                pool.start()
            with ThreadPoolExecutor(2) as threads:
                for each in [threads.submit(pool.decode, PLAIN, LIMITS, SERVING) for _ in range(4)]:
                    assert isinstance(each.exception(), DecodingStoppedError)
            broken.setattr(sys, "executable", "/nowhere")
            with pytest.raises(DecodingStoppedError, match="No such file"):
                pool.start()

        def recovered() -> bool:
            pool.tend()
            return pool.trouble is None

        until(recovered)
        pool.decode(PLAIN, LIMITS, SERVING)


def test_workers_start_where_the_interpreters_folder_cannot_be_entered_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under a user without rights that the process was started with: the kernel still knows the program."""
    stat = os.stat

    def forbidden(path: str, **options: Any) -> os.stat_result:
        if path == sys.executable:
            raise PermissionError(path)
        return stat(path, **options)

    with monkeypatch.context() as context:
        context.setattr(os, "stat", forbidden)
        program = pool_module.interpreter()
    assert program == "/proc/self/exe"
    monkeypatch.setattr(pool_module, "interpreter", lambda: program)
    with contextlib.closing(DecodePool(2, memory=1)) as pool:
        pool.start()
        assert pool.trouble is None


def test_a_closed_pool_ends_its_workers_and_starts_no_others() -> None:
    pool = Watched()
    pool.start()
    processes = pool.processes
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    with pytest.raises(DecodingStoppedError):
        pool.decode(PLAIN, LIMITS, SERVING)
    pool.tend()
    assert pool.processes == []
    assert pool.kills == []


PARENT = """
import os, signal, sys
from model.inputs.pool import DecodePool
pool = DecodePool(2, memory=1)
pool.start()
print(*pool.processes, flush=True)
signal.pause()
"""


def test_workers_end_when_their_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:  # noqa: S603
        assert parent.stdout is not None
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2
        parent.kill()
    until(lambda: not any(is_alive(pid) for pid in processes))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_worker_loads_neither_torch_nor_pydantic_and_knows_no_secret(
    workers: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMA_CLIP_API_KEYS", "shop:secret")
    code = (
        "import json, os, sys; import model.inputs.worker as worker; sys.argv[1:]; "
        "print(json.dumps([sorted({name.partition('.')[0] for name in sys.modules}), dict(os.environ)]))"
    )
    environment = pool_module._environment()
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)  # noqa: S603
    loaded, seen = json.loads(answer.stdout)
    assert {"PIL", "numpy"} <= set(loaded)
    assert {"torch", "pydantic", "scipy", "fastapi", "service"}.isdisjoint(loaded)
    assert "secret" not in str(seen)
    workers.start()
    for pid in workers.processes:
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()


# ── memory that large images share ───────────────────────────────────────────────────────────────────────────────


def test_large_images_wait_in_turn_and_leave_a_worker_to_small_ones() -> None:
    budget = MemoryBudget(100, places=2)
    first, second, third = (budget.take(nbytes) for nbytes in (60, 60, 10))
    assert [each.done() for each in (first, second, third)] == [True, False, False]  # nobody overtakes
    first.result().release()
    first.result().release()  # counts once
    assert [each.done() for each in (second, third)] == [True, True]
    fourth = budget.take(5)
    assert not fourth.done()  # no place, though there are bytes
    with third.result():
        pass
    assert fourth.done()


def test_more_than_there_is_gets_all_of_it() -> None:
    budget = MemoryBudget(100, places=1)
    assert budget.take(1000).result().nbytes == 100


def test_who_gives_up_waiting_holds_nothing() -> None:
    budget = MemoryBudget(100, places=3)
    held = budget.take(100).result()
    given_up, last = budget.take(50), budget.take(100)
    assert given_up.cancel()
    held.release()
    assert isinstance(last.result(), Reservation)


def test_small_images_go_ahead_while_large_ones_wait(workers: Watched) -> None:
    with ThreadPoolExecutor(3) as threads:
        with workers.memory.take(10**12).result():
            waiting = [threads.submit(workers.decode, LARGE_WEBP, LIMITS, SERVING) for _ in range(2)]
            until(lambda: len(workers.memory._waiting) == 2)
            assert threads.submit(workers.decode, PLAIN, LIMITS, SERVING).result(30).image.size == (80, 90)
            assert not any(each.done() for each in waiting)
        for each in waiting:
            assert each.exception() is None or isinstance(each.exception(), UndecodableError)


LARGE_WEBP = webp_of_38_bytes(7000)


def test_a_webp_of_38_bytes_is_counted_before_its_decoder_allocates_the_canvas(workers: Watched) -> None:
    assert len(LARGE_WEBP) < 60
    with pytest.raises(TooLargeForNowError) as caught:
        workers.attempt(LARGE_WEBP, LIMITS, SERVING)
    assert caught.value.nbytes > 8 * 7000 * 7000
    with pytest.raises(ImageSizeError):
        workers.attempt(webp_of_38_bytes(16_000), LIMITS, SERVING)


def test_there_are_at_least_two_workers() -> None:
    assert [worker_count(threads) for threads in (1, 2, 5, 64)] == [2, 2, 5, 8]
    with pytest.raises(ValueError, match="two"):
        DecodePool(1, memory=1)
