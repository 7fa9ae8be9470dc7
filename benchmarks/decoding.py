"""What decoding in worker processes costs, beside decoding in threads of the serving process.

    python -m benchmarks.decoding [--listings 2000] [--rounds 3]

Both ways take the same files to the model's pixels, in turns, round by round, so that whatever else the machine does
meets both. CPU time is that of this process and of its workers. The wall time is for several callers at a time, as many
as there are workers.
"""

from __future__ import annotations

import io
import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from model.config import PreprocessConfig
from model.inputs.decode import decode_image
from model.inputs.limits import Limits
from model.inputs.pool import DecodePool, memory_for, worker_count
from model.inputs.preprocess import ImageTransform
from model.threads import thread_count

LIMITS = Limits(max_pixels=50_000_000)
RESIZING = PreprocessConfig(image_size=(128, 96), context_length=8, framing="product")  # as the shipped checkpoint's
TICKS = os.sysconf("SC_CLK_TCK")


def photo(size: tuple[int, int]) -> bytes:
    """Return a JPEG of soft shapes, about as compressible as a photo."""
    chance = random.Random(0)  # noqa: S311 - reproducible, not secret
    small = Image.new("RGB", (max(2, size[0] // 12), max(2, size[1] // 12)))
    small.putdata([tuple(chance.randrange(256) for _ in range(3)) for _ in range(small.width * small.height)])
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def cpu_seconds(pool: DecodePool) -> float:
    """Return the CPU time of this process and of the workers."""
    spent = time.process_time()
    for pid in pool.processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / TICKS
    return spent


def measure(
    decode: Callable[[bytes], object], data: bytes, count: int, threads: ThreadPoolExecutor, pool: DecodePool
) -> tuple[float, float]:
    """Return the milliseconds of CPU time and of wall time that each of `count` images takes."""
    began, spent = time.perf_counter(), cpu_seconds(pool)
    for _ in threads.map(decode, [data] * count):
        pass
    return 1000 * (cpu_seconds(pool) - spent) / count, 1000 * (time.perf_counter() - began) / count


def main(
    listings: Annotated[int, typer.Option(min=1, help="small images per round; of large ones a twentieth")] = 2000,
    rounds: Annotated[int, typer.Option(min=1, help="of which the median is shown")] = 3,
) -> None:
    """Decode small and large photos in threads and in worker processes."""
    transform = ImageTransform(RESIZING)
    table = Table("image", "CPU ms: threads", "workers", "more", "wall ms: threads", "workers")
    workers = worker_count(thread_count())
    with DecodePool(workers, memory=memory_for(LIMITS.max_pixels)) as pool, ThreadPoolExecutor(workers) as threads:
        began = time.perf_counter()
        pool.start()
        started = time.perf_counter() - began

        def in_thread(data: bytes) -> object:
            return transform.show(decode_image(data, RESIZING.image_size, LIMITS).image)

        def in_worker(data: bytes) -> object:
            return pool.decode(data, LIMITS, RESIZING)

        for size, count in (((60, 80), listings), ((1200, 1600), max(1, listings // 20))):
            data, found = photo(size), []
            for _ in range(rounds):
                found.append([measure(way, data, count, threads, pool) for way in (in_thread, in_worker)])
            cpu = [statistics.median(one[way][0] for one in found) for way in (0, 1)]
            wall = [statistics.median(one[way][1] for one in found) for way in (0, 1)]
            more = f"{cpu[1] - cpu[0]:+.2f} ({cpu[1] / cpu[0] - 1:+.0%})"
            image = f"{size[0]} × {size[1]} ({len(data) / 1000:.0f} kB)"
            table.add_row(image, f"{cpu[0]:.2f}", f"{cpu[1]:.2f}", more, f"{wall[0]:.2f}", f"{wall[1]:.2f}")
    Console().print(table)
    print(f"{workers} workers were ready after {started:.2f} s")


if __name__ == "__main__":
    typer.run(main)
