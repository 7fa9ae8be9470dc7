"""The Dockerfile really built, by buildah, and the service in it really started, as its own user.

buildah needs no engine. The base image cannot be had everywhere, so a Debian of the same release with the same
Python, made by debootstrap, stands in under its name. Packages come from a folder of wheels that pip fills first,
so that the build itself needs no network.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployment.load import LISTING
from tests.deployment.processes import Process, free_port, running
from tests.deployment.tools import ROOT, run

IMAGE = "localhost/cma-clip:test"
CHROOT = ("--isolation", "chroot")
MINUTES = 60.0
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
BASE = f"localhost/python:{ARGUMENTS['PYTHON_VERSION']}-slim-{ARGUMENTS['DEBIAN_RELEASE']}"


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the image installs, and what building our own wheel needs, as pip finds it here."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder]
    run(*pip, "--constraint", "deploy/constraints.txt", ".", seconds=20 * MINUTES)
    run(*pip, "setuptools>=77", "wheel", seconds=5 * MINUTES)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stand-in for the base image, under its name."""
    root = tmp_path_factory.mktemp("base") / "root"
    packages = "ca-certificates,python3,python3-pip,python3-venv"
    release = ARGUMENTS["DEBIAN_RELEASE"]
    run("debootstrap", "--variant=minbase", f"--include={packages}", release, root, seconds=15 * MINUTES)
    # The official image has its Python in /usr/local/bin, and lets pip install beside it.
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", "--quiet", container, root, "/", seconds=5 * MINUTES)
    run("buildah", "commit", "--quiet", "--rm", container, BASE, seconds=5 * MINUTES)
    return BASE


@pytest.fixture(scope="session")
def image(base: str, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The built image's configuration."""
    configuration = tmp_path_factory.mktemp("pip") / "pip.conf"
    configuration.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    run(
        *("buildah", "build", "--quiet", "--layers=false", "--pull-never", "--format=docker", *CHROOT),
        *("--volume", f"{wheels}:/wheels:ro", "--volume", f"{configuration}:/etc/pip.conf:ro"),
        *("--build-arg", "REVISION=0123abc", "--tag", IMAGE, "."),
        seconds=30 * MINUTES,
    )
    inspected: dict[str, Any] = json.loads(run("buildah", "inspect", "--type", "image", IMAGE))
    return inspected["Docker"]["config"]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def container(image: dict[str, Any]) -> Iterator[str]:
    name = run("buildah", "from", "--pull-never", IMAGE).strip()
    yield name
    run("buildah", "rm", name)


def inside(container: str, *command: str) -> str:
    """Run `command` in the container as the image's own user."""
    return run("buildah", "run", *CHROOT, container, "--", *command).strip()


def test_the_image_says_how_to_run_it(image: dict[str, Any]) -> None:
    assert image["User"] == "10001:10001"
    assert image["Entrypoint"] == ["cma-clip"]
    assert image["Cmd"] == ["serve"]
    assert image["StopSignal"] == "SIGTERM"
    assert image["Healthcheck"]["Test"][0] == "CMD"
    assert image["Labels"]["org.opencontainers.image.revision"] == "0123abc"


def test_only_tmp_can_be_written(container: str) -> None:
    assert inside(container, "id", "-u") == "10001"
    writable = inside(container, "sh", "-c", "find / -xdev -writable ! -type l -not -path '/tmp*' -not -path '/dev/*'")
    assert set(writable.splitlines()) <= {"/run/lock", "/var/tmp"}  # noqa: S108


def test_the_container_classifies_a_listing_and_stops_when_told(container: str, image: dict[str, Any]) -> None:
    port = free_port()
    service = Process(
        [
            *("buildah", "run", *CHROOT, "--env", f"CMA_CLIP_PORT={port}", "--env", "CMA_CLIP_HOST=127.0.0.1"),
            *(container, "--", *image["Entrypoint"], *image["Cmd"]),
        ],
        up=f"http://127.0.0.1:{port}/readyz",
        log=Path("/dev/stderr"),
    )
    with running(service):
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json=LISTING, timeout=10)
        assert reply.status_code == 200, reply.text
        assert reply.json()["attributes"]
        inside(container, "env", f"CMA_CLIP_PORT={port}", *image["Healthcheck"]["Test"][1:])
    assert not service.answers()


def test_the_health_check_fails_where_nothing_answers(container: str, image: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="refused"):
        inside(container, "env", f"CMA_CLIP_PORT={free_port()}", *image["Healthcheck"]["Test"][1:])
