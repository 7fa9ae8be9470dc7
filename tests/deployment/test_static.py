"""The files of the deployment, read by the tools that would reject them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHIPPED_SETTINGS = {"CMA_CLIP_HOST", "CMA_CLIP_PORT", "CMA_CLIP_CHECKPOINT"}


def run(*command: str | Path) -> str:
    """Run `command` in the repository's root and return its output; fail with what it printed otherwise."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def compose(*overrides: str) -> dict[str, Any]:
    """Return the services that docker-compose reads from its file and `overrides`."""
    files = [argument for name in ("docker-compose.yml", *overrides) for argument in ("-f", name)]
    services: dict[str, Any] = yaml.safe_load(run("docker-compose", *files, "config"))["services"]
    return services


def test_hadolint_accepts_the_dockerfile() -> None:
    run(Path(sys.executable).with_name("hadolint"), "Dockerfile")


def test_compose_starts_two_replicas_behind_a_balancer_that_waits_for_them() -> None:
    services = compose()
    assert set(services) == {"replica-a", "replica-b", "balancer", "prometheus", "grafana"}
    assert services["balancer"]["depends_on"] == {
        "replica-a": {"condition": "service_healthy"},
        "replica-b": {"condition": "service_healthy"},
    }


@pytest.mark.parametrize("name", ["replica-a", "replica-b", "balancer", "prometheus", "grafana"])
def test_compose_limits_and_hardens_every_service(name: str) -> None:
    service = compose()[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == "unless-stopped"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


def test_compose_lets_a_drain_end_before_it_kills() -> None:
    replica = compose()["replica-a"]
    assert (
        int(replica["stop_grace_period"].rstrip("s"))
        >= int(replica["environment"]["CMA_CLIP_DRAIN_SECONDS"]) + 5
    )


def test_compose_gives_each_replica_its_own_gpu() -> None:
    services = compose("docker-compose.gpu.yml")
    devices = [
        services[name]["deploy"]["resources"]["reservations"]["devices"]
        for name in ("replica-a", "replica-b")
    ]
    assert [device["device_ids"] for (device,) in devices] == [["0"], ["1"]]
