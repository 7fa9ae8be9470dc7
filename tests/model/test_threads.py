"""The one rule for threads: affinity, control groups of both versions, the setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.device import use_threads
from model.threads import available_cores, thread_count

V2 = "0::{group}\n"
V1 = "7:cpuset:/other\n4:cpu,cpuacct:{group}\n1:name=systemd:/x\n"


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)


class Machine:
    """Files as Linux shows them in /proc/self and /sys/fs/cgroup."""

    def __init__(self, folder: Path, *, version: int, group: str, root: str = "/") -> None:
        self.proc, self.mount = folder / "proc", folder / "cgroup"
        self.proc.mkdir()
        kind = "cgroup2 cgroup rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
        (self.proc / "cgroup").write_text((V2 if version == 2 else V1).format(group=group))
        (self.proc / "mountinfo").write_text(
            f"22 1 0:5 / /proc rw - proc proc rw\n30 1 0:26 {root} {self.mount} ro,nosuid shared:9 - {kind}\n"
        )

    def write(self, name: str, content: str) -> None:
        file = self.mount / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("max 100000", 64),
        ("9900000 100000", 64),
        ("", 64),
    ],
)
def test_a_quota_of_version_2_counts(tmp_path: Path, content: str, cores: int) -> None:
    machine = Machine(tmp_path, version=2, group="/")
    machine.write("cpu.max", content)
    assert available_cores(machine.proc) == cores


@pytest.mark.usefixtures("many_cores")
def test_the_tightest_quota_of_the_groups_around_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, version=2, group="/pods/pod-1/service")
    machine.write("pods/cpu.max", "800000 100000\n")
    machine.write("pods/pod-1/cpu.max", "300000 100000\n")
    machine.write("pods/pod-1/service/cpu.max", "max 100000\n")
    assert available_cores(machine.proc) == 3


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("-1", 64)])
def test_a_quota_of_version_1_counts(tmp_path: Path, quota: str, cores: int) -> None:
    """As in a container of Docker's: the mount shows the container's own group, the path is the host's."""
    machine = Machine(tmp_path, version=1, group="/docker/abc", root="/docker/abc")
    machine.write("cpu.cfs_quota_us", f"{quota}\n")
    machine.write("cpu.cfs_period_us", "100000\n")
    assert available_cores(machine.proc) == cores


@pytest.mark.usefixtures("many_cores")
def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 64


def test_of_this_machine_no_more_than_its_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("wanted", "variable", "threads"), [(3, "5", 3), (0, "5", 5), (0, "4,2", 4), (0, "", 7), (0, "0", 7), (0, "x", 7)]
)
def test_the_setting_then_openmps_variable_then_the_cores(
    monkeypatch: pytest.MonkeyPatch, wanted: int, variable: str, threads: int
) -> None:
    monkeypatch.setattr("model.threads.available_cores", lambda: 7)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert thread_count(wanted) == threads


def test_torch_and_everything_else_compute_with_that_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = torch.get_num_threads()
    try:
        for wanted in (2, 3):
            assert use_threads(wanted) == wanted == torch.get_num_threads() == thread_count()
    finally:
        torch.set_num_threads(before)


ASK = """
import os, sys
from model.threads import settle_threads
settle_threads()
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""

COUNT = """
import os
from model.threads import settle_threads
settle_threads(4)
import numpy
square = numpy.ones((600, 600), numpy.float32)
square @ square
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "PASSIVE False"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE False")]
)
def test_threads_are_told_to_wait_passively_before_torch_is_there_unless_something_was_said(
    given: dict[str, str], expected: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **given}
    answer = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    assert answer.stdout.strip() == expected


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux shows them")
def test_numpys_matrix_products_leave_no_thread_that_spins() -> None:
    spinning = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in spinning}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    assert answer.stdout.strip() == "1"
