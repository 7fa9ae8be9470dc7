"""How the service's process allocates."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

BLOCKS = """
import ctypes
from service.memory import keep_large_blocks_apart

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if {apart}:
    keep_large_blocks_apart()
bytes(20 * 2**20)  # freed at once: glibc's threshold rises to its size
before = libc.mallinfo2().hblks
kept = bytes(2 * 2**20)
print(libc.mallinfo2().hblks - before)
"""


def blocks_apart(*, apart: bool, **environment: str) -> int:
    """Return how many of one block of 2 MiB, allocated after a larger one was freed, have pages of their own."""
    command = [sys.executable, "-c", BLOCKS.format(apart=apart)]
    own = {
        name: value for name, value in os.environ.items() if name not in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    }
    return int(subprocess.run(command, env=own | environment, check=True, capture_output=True, text=True).stdout)  # noqa: S603


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_have_pages_of_their_own_unless_the_environment_decides() -> None:
    assert blocks_apart(apart=False) == 0
    assert blocks_apart(apart=True) == 1
    assert blocks_apart(apart=True, MALLOC_MMAP_THRESHOLD_=str(30 * 2**20)) == 0
