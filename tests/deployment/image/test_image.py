"""The Dockerfile really built, by buildah, and the service in it really started, as its own user.

buildah needs no engine. The base image cannot be had everywhere, so a Debian of the same release with the same
Python, made by debootstrap, stands in under its name. Packages come from a folder of wheels that pip fills first,
so that the build itself needs no network. All of it is removed again at the end; where there is not room enough on the
disk, for the image for GPUs 27 GB, the tests are skipped and say so.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployment.load import LISTING
from tests.deployment.processes import Process, free_port, running
from tests.deployment.tools import ROOT, run

CPU_IMAGE, GPU_IMAGE = "localhost/cma-clip:cpu", "localhost/cma-clip:gpu"
CHROOT = ("--isolation", "chroot")
MINUTES = 60.0
CPU_GIGABYTES, GPU_GIGABYTES = 6, 30
"""Disk that building each image takes."""
MOST_BYTES = 600e6
"""Size of the image for CPUs, uncompressed."""
TRIES = 3
BUSY = "sealing memfd copy: Device or resource busy"
"""What buildah says where it could not seal the copy of itself that it starts: under load the kernel may still hold one
of the copy's pages, for a moment. Nothing is wrong with the build, and buildah does not try again by itself."""
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
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
        need_disk(Path(name), CPU_GIGABYTES)
        yield Path(name)
        unmount(Path(name))


def need_disk(folder: Path, gigabytes: int) -> None:
    """Skip the test where less than that is free."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        pytest.skip(f"building the image takes {gigabytes} GB of disk, {free:.0f} GB are free")


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
    project = PROJECT["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["postgresql"]]
    download([*needed, *PROJECT["build-system"]["requires"], "wheel"], folder / "wheels")
    return folder / "wheels"


def download(needed: Sequence[str], wheels: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--constraint", "deploy/constraints.txt"]
    run(*pip, "--dest", wheels, *needed, seconds=30 * MINUTES)


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
def image(buildah: Buildah, build: list[str | Path]) -> dict[str, Any]:
    """The configuration of the image for CPUs, which is built where nothing else is asked for."""
    buildah(*build, "--build-arg", "REVISION=0123abc", "--tag", CPU_IMAGE, ".", seconds=60 * MINUTES)
    inspected: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", CPU_IMAGE))
    return inspected["Docker"]["config"]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def gpu_image(buildah: Buildah, build: list[str | Path], wheels: Path) -> str:
    """The name of the image for GPUs."""
    need_disk(wheels, GPU_GIGABYTES)
    download(PROJECT["project"]["optional-dependencies"]["gpu"], wheels)
    buildah(*build, "--build-arg", "VARIANT=gpu", "--tag", GPU_IMAGE, ".", seconds=60 * MINUTES)
    return GPU_IMAGE


class Container:
    """A container of an image; commands run in it as the image's own user."""

    def __init__(self, buildah: Buildah, image: str) -> None:
        self._buildah = buildah
        self.name = buildah("from", "--pull-never", image)
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
    container = Container(buildah, CPU_IMAGE)
    yield container
    container.remove()


def classify(port: int) -> str:
    """Assert that a listing is answered; return the name of the engine that did."""
    reply = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json=LISTING, timeout=30)
    assert reply.status_code == 200, reply.text
    assert reply.json()["attributes"]
    return str(reply.json()["model"]["engine"])


def packages(container: Container) -> set[str]:
    """Return the names of what is installed."""
    folders = container.run("sh", "-c", "ls -d /opt/venv/lib/python3*/site-packages/*.dist-info")
    return {Path(line).name.partition("-")[0].lower() for line in folders.splitlines()}


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


def test_it_has_what_a_store_needs(container: Container) -> None:
    said = container.run("cma-clip", "purge", "--store", "sqlite:////tmp/store.db")
    assert said.startswith("deleted: 0 jobs, ")
    with pytest.raises(AssertionError, match="CMA_CLIP_STORE: the store cannot be reached"):
        container.run("cma-clip", "purge", "--store", "postgresql://cma@127.0.0.1:1/cma", "--store-files", "/tmp/files")  # noqa: S108


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
    with pytest.raises(AssertionError, match="exited with status 1"):  # buildah may lose what it wrote before
        container.run(*healthy)
    start = [*image["Entrypoint"], *image["Cmd"]]
    service = Process(
        container.running(*start, CMA_CLIP_PORT=str(port), CMA_CLIP_HOST="127.0.0.1"),
        up=f"http://127.0.0.1:{port}/readyz",
        log=tmp_path / "service.log",
    )
    with running(service):
        assert classify(port).startswith("openvino")
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


def test_the_image_for_cpus_is_small_and_has_no_pytorch(container: Container, image: dict[str, Any]) -> None:
    installed = packages(container)
    assert {"openvino", "fastapi", "cma_clip", "psycopg", "psycopg_binary"} <= installed
    assert not {name for name in installed if name.startswith(("torch", "open_clip", "timm", "nvidia", "triton"))}
    size = sum(path.lstat().st_size for path in Path(container.root).rglob("*") if not path.is_dir())
    assert size <= MOST_BYTES


def test_modules_are_compiled_when_the_image_is_built(container: Container) -> None:
    """Where nothing can be written, each start would compile them again."""
    (site,) = Path(container.root).glob("opt/venv/lib/python3*/site-packages")
    for package in ("fastapi", "model", "openvino", "service"):
        sources = [path for path in (site / package).rglob("*.py") if path.stat().st_size]
        compiled = {path.name.partition(".")[0] for path in (site / package).rglob("*.pyc")}
        assert {path.stem for path in sources} <= compiled, package


def test_an_unknown_variant_is_refused(buildah: Buildah, build: list[str | Path]) -> None:
    with pytest.raises(AssertionError, match="VARIANT is cpu or gpu, not tpu"):
        buildah(*build, "--build-arg", "VARIANT=tpu", ".", seconds=10 * MINUTES)


def test_the_image_for_gpus_classifies_by_pytorch(buildah: Buildah, gpu_image: str, tmp_path: Path) -> None:
    container, port = Container(buildah, gpu_image), free_port()
    assert {"torch", "torchvision", "open_clip_torch", "timm", "openvino"} <= packages(container)
    settings = {"CMA_CLIP_PORT": str(port), "CMA_CLIP_HOST": "127.0.0.1", "CMA_CLIP_ENGINE": "torch"}
    service = Process(
        container.running("cma-clip", "serve", **settings),
        up=f"http://127.0.0.1:{port}/readyz",
        log=tmp_path / "service.log",
    )
    with running(service):
        assert classify(port) == "torch"
    container.remove()
