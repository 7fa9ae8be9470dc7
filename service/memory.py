"""Gives freed memory back to the system.

glibc keeps what large images and bodies leave behind for later use, in an arena per thread: under a mixed load some
100 MiB of nothing within minutes, which looks like a leak and counts against a container's limit. Asking for it every
few seconds costs milliseconds, and makes the resident set say what is in use.
"""

from __future__ import annotations

import asyncio
import ctypes

EVERY_SECONDS = 10.0


async def trim_now_and_then() -> None:
    """Trim for as long as the task lives; where the C library has no such call, return at once."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        await asyncio.to_thread(trim, 0)  # ctypes releases the interpreter's lock
