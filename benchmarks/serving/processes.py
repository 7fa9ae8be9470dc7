"""Processes as the kernel counts them: a server, its descendants, and the processor time that they took (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PARENT, USER, SYSTEM, USER_OF_ENDED, SYSTEM_OF_ENDED = 1, 11, 12, 13, 14
"""Places in /proc/PID/stat, counted from the state: see proc(5)."""


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name before may hold anything


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants that are alive, the oldest generation first."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children[int(fields[PARENT])].append(int(entry.name))
    found = [pid]
    for each in found:
        found += children[each]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its descendants have taken, ended ones included."""
    stats = (fields for each in tree(pid) if (fields := _stat(each)))
    ticks = sum(int(fields[place]) for fields in stats for place in (USER, SYSTEM, USER_OF_ENDED, SYSTEM_OF_ENDED))
    return ticks / TICKS


def resident_mib(pid: int) -> float:
    """Return the memory of a process and its descendants: what several share counts for each its part (PSS)."""
    kib = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def stop(process: subprocess.Popen[bytes], *, seconds: float = 20.0) -> None:
    """Ask a process to end, and kill those of its descendants that are left after a while."""
    family = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    _wait_for_end(family, seconds / 4)
    for pid in filter(_alive, family):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    _wait_for_end(family, seconds)


def _wait_for_end(pids: Sequence[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z"
