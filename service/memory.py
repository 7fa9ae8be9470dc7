"""Returns freed memory to the operating system, and keeps the garbage collector from what stays.

glibc keeps freed memory for later use, in an arena per thread: under a mixed load of images and bodies some 100 MiB
within minutes, which looks like a leak and counts against a container's limit. Returning it every few seconds takes
milliseconds, and keeps the resident set close to what is in use.

Large blocks are kept out of the arenas altogether. By default glibc puts there what is up to as large as the largest
block that was freed so far, 32 MiB at most. So bodies and decoded images come to lie between small blocks that stay,
and what is free between them is in pieces: measured by `benchmarks.soak` on two busy cores, 90 MiB after seven
minutes, and more each minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os

EVERY_SECONDS = 10.0

LARGE_BYTES = 2**20
"""A block from this size on has pages of its own, which are returned when it is freed."""

M_MMAP_THRESHOLD = -3  # <malloc.h>


def keep_large_blocks_apart() -> None:
    """Give each block of `LARGE_BYTES` or more pages of its own, from now on.

    Nothing is changed where the C library has no such call, or where the environment says how it is to allocate.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


async def trim_now_and_then() -> None:
    """Trim for as long as the task runs; return at once where the C library has no such call."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        await asyncio.to_thread(trim, 0)  # ctypes releases the interpreter's lock


def freeze() -> None:
    """Exempt what has been loaded from garbage collection.

    A full collection visits every object that is not exempt, and nobody is answered meanwhile.
    """
    gc.collect()
    gc.freeze()
