"""The Dockerfile really built, by buildah, and the service in it really started, as its own user.

buildah needs no engine. The base image cannot be had everywhere, so a Debian of the same release with the same
Python, made by debootstrap, stands in for it. Packages come from a folder of wheels that pip fills first,
so that the build itself needs no network. All of it (27 GB at most) is removed again at the end; where there is not
that much room, the tests are skipped and say so.

The image that is run is the one for GPUs: the CPU build of PyTorch lies on an index that cannot be had everywhere
either. An index with empty packages under its names shows that the Dockerfile chooses what it should.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.deployment.load import LISTING
from tests.deployment.processes import Process, free_port, running
from tests.deployment.tools import ROOT, run

IMAGE, CPU_IMAGE = "localhost/cma-clip:test", "localhost/cma-clip:cpu"
CHROOT = ("--isolation", "chroot")
MINUTES = 60.0
GIGABYTES = 30
TRIES = 3
BUSY = "sealing memfd copy: Device or resource busy"
"""What buildah says where it could not seal the copy of itself that it starts: under load the kernel may still hold one
of the copy's pages, for a moment. Nothing is wrong with the build, and buildah does not try again by itself."""
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PINS = dict(re.findall(r'"(torch\w*)==([^"]+)"', (ROOT / "pyproject.toml").read_text()))
(RELEASE,) = re.findall(r"^ARG BASE_IMAGE=python:\S+-slim-(\w+)@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
BASE = f"localhost/python:slim-{RELEASE}"

READ_ONLY = """
set -e
root=$1
shift
mount --bind "$root" "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot --userspec=10001:10001 "$root" "$@"
"""
"""Runs a command in the folder `$1` as `docker run --read-only --tmpfs /tmp` would, in mounts of its own."""


class Buildah:
    """buildah with storage, caches and temporary files of its own: it neither finds nor leaves anything elsewhere."""

    def __init__(self, folder: Path) -> None:
        temporary = folder / "tmp"
        temporary.mkdir()
        own = ("--root", folder / "storage", "--runroot", folder / "run")
        self.command = ("env", f"TMPDIR={temporary}", "buildah", *own)

    def __call__(self, *arguments: str | Path, seconds: float = 5 * MINUTES) -> str:
        for _ in range(TRIES - 1):
            try:
                return run(*self.command, *arguments, seconds=seconds).strip()
            except AssertionError as error:
                if BUSY not in str(error):
                    raise
        return run(*self.command, *arguments, seconds=seconds).strip()


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """For what is large: pytest keeps its own folders of the last three runs."""
    with tempfile.TemporaryDirectory() as name:
        free = shutil.disk_usage(name).free / 1e9
        if free < GIGABYTES:
            pytest.skip(f"building the image takes {GIGABYTES} GB of disk, {free:.0f} GB are free")
        yield Path(name)
        unmount(Path(name))


def unmount(folder: Path) -> None:
    """Unmount what is left mounted beneath `folder`: buildah leaves a container mounted whose build has failed."""
    mounted = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((each for each in mounted if each.is_relative_to(folder)), reverse=True):
        run("umount", "--lazy", path)


@pytest.fixture(scope="session")
def buildah(folder: Path) -> Buildah:
    return Buildah(folder)


@pytest.fixture(scope="session")
def wheels(folder: Path) -> Path:
    """Everything that the image installs, and what building our own wheel needs, as pip finds it here."""
    wheels = folder / "wheels"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"], "wheel"]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--constraint", "deploy/constraints.txt"]
    run(*download, "--dest", wheels, *needed, seconds=30 * MINUTES)
    return wheels


@pytest.fixture(scope="session")
def base(buildah: Buildah, folder: Path) -> str:
    """A stand-in for the base image."""
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    packages = "ca-certificates,python3,python3-pip,python3-venv"
    run("debootstrap", "--variant=minbase", f"--include={packages}", RELEASE, root, seconds=30 * MINUTES)
    shutil.rmtree(root / "var/cache/apt")
    # The official image has its Python in /usr/local/bin, and lets pip install beside it.
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    buildah("umount", container)
    buildah("commit", "--quiet", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="session")
def build(base: str, wheels: Path, folder: Path) -> list[str | Path]:
    """How to build the image without a network; arguments and the context are to follow."""
    configuration = folder / "pip.conf"
    # An index that is empty instead of none: with none, pip would not look at further ones either.
    configuration.write_text("[global]\nindex-url = file:///no-index\nfind-links = /wheels\n")
    return [
        *("build", "--quiet", "--layers=false", "--pull-never", "--format=docker", *CHROOT),
        *("--build-arg", f"BASE_IMAGE={base}"),
        *("--volume", f"{wheels}:/wheels:ro", "--volume", f"{configuration}:/etc/pip.conf:ro"),
    ]


@pytest.fixture(scope="session")
def cpu_index(folder: Path) -> list[str]:
    """An index like PyTorch's of CPU wheels, with empty packages, and how the Dockerfile is told of it."""
    index = folder / "cpu-index"
    for name in ("torch", "torchvision"):
        (index / name).mkdir(parents=True)
        wheel = write_wheel(index / name, name, f"{PINS[name]}+cpu")
        (index / name / "index.html").write_text(f'<a href="{quote(wheel.name)}">{wheel.name}</a>')
    return ["--volume", f"{index}:/cpu-index:ro", "--build-arg", "TORCH_INDEX_URL=file:///cpu-index"]


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """Write a package that says of itself what PyTorch's CPU build says, and does nothing."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "from . import version",
        f"{name}/version.py": "cuda = None",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


@pytest.fixture(scope="session")
def image(buildah: Buildah, build: list[str | Path]) -> dict[str, Any]:
    """The built image's configuration."""
    buildah(*build, "--build-arg", "REVISION=0123abc", "--tag", IMAGE, ".", seconds=60 * MINUTES)
    inspected: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", IMAGE))
    return inspected["Docker"]["config"]  # type: ignore[no-any-return]


class Container:
    """A container of the image; commands run in it as the image's own user."""

    def __init__(self, buildah: Buildah) -> None:
        self._buildah = buildah
        self.name = buildah("from", "--pull-never", IMAGE)
        self.root = buildah("mount", self.name)

    def run(self, *command: str) -> str:
        return self._buildah("run", *CHROOT, self.name, "--", *command)

    def running(self, *command: str, **environment: str) -> list[str | Path]:
        """Return the command that runs `command` in it, for the background."""
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        return [*self._buildah.command, "run", *CHROOT, *variables, self.name, "--", *command]

    def remove(self) -> None:
        self._buildah("umount", self.name)
        self._buildah("rm", self.name)


@pytest.fixture(scope="session")
def container(buildah: Buildah, image: dict[str, Any]) -> Iterator[Container]:
    container = Container(buildah)
    yield container
    container.remove()


def classify(port: int) -> None:
    """Assert that a listing is answered."""
    reply = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json=LISTING, timeout=30)
    assert reply.status_code == 200, reply.text
    assert reply.json()["attributes"]


def test_the_image_says_how_to_run_it(image: dict[str, Any]) -> None:
    assert image["User"] == "10001:10001"
    assert image["Entrypoint"] == ["cma-clip"]
    assert image["Cmd"] == ["serve"]
    assert image["StopSignal"] == "SIGTERM"
    assert image["Healthcheck"]["Test"][0] == "CMD"
    assert image["Labels"]["org.opencontainers.image.revision"] == "0123abc"


def test_only_tmp_can_be_written(container: Container) -> None:
    assert container.run("id", "-u") == "10001"
    find = "find / -xdev -writable ! -type l -not -path '/tmp*' -not -path '/dev/*' 2>/dev/null; true"
    writable = container.run("sh", "-c", find)
    assert set(writable.splitlines()) <= {"/run/lock", "/var/tmp"}  # noqa: S108


def test_nothing_of_the_build_is_left(container: Container) -> None:
    root = Path(container.root)
    assert not [path for name in ("wheels", "wheel", "root/.cache/pip") for path in (root / name).rglob("*")]
    configuration = root / "etc/pip.conf"
    assert not configuration.exists() or not configuration.read_text()  # what it was mounted on


def test_the_container_classifies_a_listing_and_says_that_it_is_healthy(
    container: Container, image: dict[str, Any], tmp_path: Path
) -> None:
    port = free_port()
    healthy = ["env", f"CMA_CLIP_PORT={port}", *image["Healthcheck"]["Test"][1:]]
    with pytest.raises(AssertionError, match="refused"):
        container.run(*healthy)
    start = [*image["Entrypoint"], *image["Cmd"]]
    service = Process(
        container.running(*start, CMA_CLIP_PORT=str(port), CMA_CLIP_HOST="127.0.0.1"),
        up=f"http://127.0.0.1:{port}/readyz",
        log=tmp_path / "service.log",
    )
    with running(service):
        classify(port)
        container.run(*healthy)


def test_it_runs_on_a_file_system_that_cannot_be_written_and_stops_when_told(
    container: Container, image: dict[str, Any], tmp_path: Path
) -> None:
    port = free_port()
    contained = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", container.root]
    with pytest.raises(AssertionError, match="Read-only file system"):
        run(*contained, "touch", "/var/tmp/x")  # noqa: S108
    settings = [*image["Env"], f"CMA_CLIP_PORT={port}", "CMA_CLIP_HOST=127.0.0.1"]
    service = Process(
        [*contained, "env", "--ignore-environment", *settings, *image["Entrypoint"], *image["Cmd"]],
        up=f"http://127.0.0.1:{port}/readyz",
        log=tmp_path / "service.log",
    )
    with running(service):
        classify(port)
        service.signal(getattr(signal, image["StopSignal"]))
        assert service.wait(60) == 0


def test_the_cpu_variant_is_refused_without_the_index_that_has_it(buildah: Buildah, build: list[str | Path]) -> None:
    with pytest.raises(AssertionError, match="VARIANT=cpu also needs TORCH_INDEX_URL"):
        buildah(*build, "--build-arg", "VARIANT=cpu", ".", seconds=10 * MINUTES)


def test_the_cpu_variant_takes_its_build_of_torch_from_its_index_and_no_cuda(
    buildah: Buildah, build: list[str | Path], cpu_index: list[str]
) -> None:
    buildah(*build, *cpu_index, "--build-arg", "VARIANT=cpu", "--tag", CPU_IMAGE, ".", seconds=30 * MINUTES)
    container = buildah("from", "--pull-never", CPU_IMAGE)
    packages = buildah("run", *CHROOT, container, "--", "sh", "-c", "ls -d /opt/venv/lib/python3*/site-packages/*")
    names = {Path(line).name for line in packages.splitlines()}
    buildah("rm", container)
    assert {f"{name}-{pin}+cpu.dist-info" for name, pin in PINS.items()} <= names
    assert {"open_clip", "fastapi", "service", "model"} <= names
    assert not {name for name in names if name.startswith(("nvidia", "triton", "cuda"))}


def test_a_cpu_build_is_no_gpu_image(buildah: Buildah, build: list[str | Path], cpu_index: list[str]) -> None:
    with pytest.raises(AssertionError, match="VARIANT=gpu, but the index gave the cpu build of torch"):
        buildah(*build, *cpu_index, ".", seconds=10 * MINUTES)
