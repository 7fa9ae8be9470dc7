"""The Dockerfile and the compose files, read by the tools that would reject them."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy import make_url

from service.settings import Settings
from tests.deployment.tools import run

SET_BY_THE_IMAGE = {"CMA_CLIP_HOST", "CMA_CLIP_PORT", "CMA_CLIP_CHECKPOINT"}


@cache
def compose(*overrides: str) -> dict[str, Any]:
    """Return the services that docker-compose reads from its file and `overrides`."""
    files = [argument for name in ("docker-compose.yml", *overrides) for argument in ("-f", name)]
    services: dict[str, Any] = yaml.safe_load(run("docker-compose", *files, "config"))["services"]
    return services


def test_hadolint_accepts_the_dockerfile() -> None:
    run(Path(sys.executable).with_name("hadolint"), "Dockerfile")


def test_compose_starts_two_replicas_behind_a_balancer_that_waits_for_them() -> None:
    services = compose()
    assert set(services) == {"replica-a", "replica-b", "balancer", "prometheus", "grafana", "database", "store-setup"}
    assert services["balancer"]["depends_on"] == {
        "replica-a": {"condition": "service_healthy"},
        "replica-b": {"condition": "service_healthy"},
    }


@pytest.mark.parametrize(
    "name", ["replica-a", "replica-b", "balancer", "prometheus", "grafana", "database", "store-setup"]
)
def test_compose_limits_and_hardens_every_service(name: str) -> None:
    service = compose()[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == ("on-failure" if name == "store-setup" else "unless-stopped")
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


@pytest.mark.parametrize("name", ["balancer", "prometheus", "grafana", "database", "store-setup"])
def test_compose_pins_every_image_by_version_and_digest(name: str) -> None:
    assert re.fullmatch(r"[\w/]+:[\w.-]+@sha256:[0-9a-f]{64}", compose()[name]["image"])


def test_compose_lets_a_drain_end_before_it_kills() -> None:
    replica = compose()["replica-a"]
    assert int(replica["stop_grace_period"].rstrip("s")) >= int(replica["environment"]["CMA_CLIP_DRAIN_SECONDS"]) + 5


def test_compose_gives_each_replica_its_own_gpu() -> None:
    services = compose("docker-compose.gpu.yml")
    devices = [services[name]["deploy"]["resources"]["reservations"]["devices"] for name in ("replica-a", "replica-b")]
    assert [device["device_ids"] for (device,) in devices] == [["0"], ["1"]]


@pytest.mark.parametrize("name", ["replica-a", "replica-b"])
def test_compose_takes_the_image_for_gpus_where_there_are_some(name: str) -> None:
    on_cpus, on_gpus = compose()[name], compose("docker-compose.gpu.yml")[name]
    assert (on_cpus["image"], on_gpus["image"]) == ("cma-clip:cpu", "cma-clip:gpu")
    assert "args" not in on_cpus["build"]
    assert on_gpus["build"]["args"] == {"VARIANT": "gpu"}
    cpus, gpus = (each["deploy"]["resources"]["limits"] for each in (on_cpus, on_gpus))
    assert gpus["cpus"] == cpus["cpus"]
    assert gpus["memory"] > cpus["memory"]  # of as many digits


def test_compose_passes_on_every_setting() -> None:
    known = {f"CMA_CLIP_{name.upper()}" for name in Settings.model_fields}
    assert set(compose()["replica-a"]["environment"]) == (known - SET_BY_THE_IMAGE) | {"CMA_CLIP_STORE_FILE"}


def test_compose_has_a_store_whose_password_is_made_once_and_stands_nowhere_else(tmp_path: Path) -> None:
    services = compose()
    (script,) = services["store-setup"]["command"]
    for name in ("store", "secrets"):
        (tmp_path / name).mkdir()
    script = re.sub(r" (>?)/(?=store$|secrets/)", rf" \1{tmp_path}/", script.replace("$$", "$"), flags=re.MULTILINE)
    said = []
    for _ in range(2):
        subprocess.run(["/bin/sh", "-euc", script], check=True)  # noqa: S603 - our own
        said.append([(tmp_path / "secrets" / name).read_text() for name in ("password", "store")])
    assert said[0] == said[1]
    password, url = said[0]
    assert len(password) == 32
    assert make_url(url).password == password
    settings = Settings(store=SecretStr(url), store_files=services["replica-a"]["environment"]["CMA_CLIP_STORE_FILES"])
    assert settings.files_of_store == "/store"
    assert (tmp_path / "store").stat().st_mode & 0o7777 == 0o1777
    assert services["database"]["environment"] == {
        "POSTGRES_USER": make_url(url).username,
        "POSTGRES_DB": make_url(url).database,
        "POSTGRES_PASSWORD_FILE": "/secrets/password",
    }
    assert make_url(url).host == "database"


def test_compose_starts_replicas_once_there_is_a_database_and_shows_it_to_them_alone() -> None:
    services = compose()
    assert services["database"]["depends_on"] == {"store-setup": {"condition": "service_completed_successfully"}}
    for name in ("replica-a", "replica-b"):
        assert services[name]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "ports" not in services["database"]
    sees = {name for name, each in services.items() if "storage" in (each.get("networks") or ())}
    assert sees == {"database", "replica-a", "replica-b"}


@pytest.mark.parametrize(("name", "port"), [("balancer", 8080), ("prometheus", 9090), ("grafana", 3000)])
def test_compose_is_reached_from_this_machine_alone(name: str, port: int) -> None:
    assert compose()[name]["ports"] == [f"127.0.0.1:{port}:{port}/tcp"]


def test_compose_is_reached_from_elsewhere_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIND", "0.0.0.0")  # noqa: S104 - what is tested
    monkeypatch.setenv("NGINX_IMAGE", "nginx:1.28.0-bookworm@sha256:" + "0" * 64)
    services = yaml.safe_load(run("docker-compose", "config"))["services"]
    assert services["balancer"]["ports"] == ["0.0.0.0:8080:8080/tcp"]
    assert services["balancer"]["image"].endswith("0" * 64)
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090/tcp"]
