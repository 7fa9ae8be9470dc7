"""Returns freed memory to the operating system, and keeps the garbage collector from what stays.

glibc keeps freed memory for later use, in an arena per thread: under a mixed load of images and bodies some 100 MiB
within minutes, which looks like a leak and counts against a container's limit. Returning it every few seconds takes
milliseconds, and keeps the resident set close to what is in use.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

EVERY_SECONDS = 10.0


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
