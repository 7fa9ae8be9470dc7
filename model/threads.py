"""How many threads compute: the one rule for PyTorch, other engines, decode workers and pools.

A container's limit is a quota of its control group, which neither `os.cpu_count` nor OpenMP know: they would start a
thread for each core of the host, and the kernel would stop them all for most of the time. Imports nothing of torch, so
that it can be asked, and the environment be set, before torch is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": "1"}
"""How GNU's and Intel's OpenMP are told to sleep where they wait for one another. OpenBLAS, which numpy brings, has no
such setting: its threads spin after each matrix product, and took half of a lone caller's processor time. Numpy's
products are small here, so one thread computes them."""


def thread_count(wanted: int = 0) -> int:
    """Return the number of threads that compute: `wanted`, else OMP_NUM_THREADS, else the cores that are available."""
    if wanted > 0:
        return wanted
    named = re.match(r"\s*0*([1-9][0-9]{0,3})\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    return int(named[1]) if named else available_cores()


def available_cores(proc: Path = PROC) -> int:
    """Return the number of cores that this process may use, at least 1.

    The least of its affinity and of the quotas of its control groups, version 1 or 2, rounded down: a thread more than
    the quota would let the kernel stop all of them. proc: what is read, `/proc/self`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(proc)])))


def settle_threads(wanted: int = 0) -> int:
    """Make `thread_count(wanted)` the number of threads of this process from now on, and return it.

    Before torch and numpy are imported, OpenMP and OpenBLAS are also told to let no thread spin where it waits, unless
    the environment says otherwise. By default they do. As soon as another process needs a core, the thread that spins
    takes the time of the one that it waits for, and two threads on two cores are slower than one.
    """
    threads = thread_count(wanted)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # what `thread_count` says everywhere else, in child processes too
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
    return threads


def _quotas(proc: Path) -> Iterator[float]:
    """Yield the quota, in cores, of each control group that this process is in and that has one."""
    for folder in _groups(proc):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue


def _groups(proc: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups that may have a quota, and of all groups around them."""
    try:
        memberships = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:  # not Linux
        return
    for mount in mounts:
        root, point, kind, options = mount[3], mount[4], mount[mount.index("-") + 1], mount[-1].split(",")
        for _, controllers, group in memberships:
            if (kind == "cgroup2" and not controllers) or (
                kind == "cgroup" and "cpu" in options and "cpu" in controllers.split(",")
            ):
                below = PurePosixPath(group)
                # In a container without a name space of its own, the path is the host's, and the mount shows a part.
                inside = below.relative_to(root) if below.is_relative_to(root) else PurePosixPath()
                folder = Path(point) / inside
                yield from (folder, *list(folder.parents)[: len(inside.parts)])
