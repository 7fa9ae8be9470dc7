"""The manifests as kustomize renders them, against the schemas of Kubernetes and against each other."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.prometheus.kubernetes import manifest
from service.settings import Settings
from tests.deployment.tools import ROOT, run

OVERLAYS = ("cpu", "gpu", "shop")
OF_COMPONENTS = {"shop": {"Ingress", "PersistentVolumeClaim"}}
NEWEST = kubernetes_validate.latest_version()
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}
"""Defined by the Prometheus operator, not by Kubernetes: their schemas are not in the package."""

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl brings kustomize along")


@cache
def rendered(overlay: str) -> dict[str, dict[str, Any]]:
    """Return the objects of an overlay by kind."""
    documents = yaml.safe_load_all(run("kubectl", "kustomize", f"deploy/kubernetes/overlays/{overlay}"))
    return {document["kind"]: document for document in documents}


def pod(overlay: str) -> dict[str, Any]:
    spec: dict[str, Any] = rendered(overlay)["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(overlay: str) -> dict[str, Any]:
    (only,) = pod(overlay)["containers"]
    return dict(only)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_its_schema(overlay: str) -> None:
    kinds = rendered(overlay)
    assert set(kinds) == OPERATOR_KINDS | OF_COMPONENTS.get(overlay, set()) | {
        "ConfigMap",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
    }
    for kind, document in kinds.items():
        if kind not in OPERATOR_KINDS:
            kubernetes_validate.validate(document, NEWEST, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_selects_the_pods_and_nothing_else(overlay: str) -> None:
    kinds = rendered(overlay)
    labels = {"app.kubernetes.io/name": "cma-clip"}
    assert kinds["Deployment"]["spec"]["template"]["metadata"]["labels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    for kind, field in (
        ("Deployment", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("ServiceMonitor", "selector"),
    ):
        assert kinds[kind]["spec"][field] == {"matchLabels": labels}, kind
    assert kinds["Service"]["metadata"]["labels"] == labels, "what the ServiceMonitor selects"
    (endpoint,) = kinds["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == kinds["Service"]["spec"]["ports"][0]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_period_holds_the_whole_drain(overlay: str) -> None:
    waiting = int(container(overlay)["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = int(rendered(overlay)["ConfigMap"]["data"]["CMA_CLIP_DRAIN_SECONDS"])
    assert pod(overlay)["terminationGracePeriodSeconds"] >= waiting + drain + 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_named_in_manifests_exist(overlay: str) -> None:
    known = {f"CMA_CLIP_{name.upper()}" for name in Settings.model_fields}
    assert set(rendered(overlay)["ConfigMap"]["data"]) <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_shops_own_settings_override_the_defaults(overlay: str) -> None:
    """Of several sources the last counts; what stands in `env` itself would count before them all."""
    defaults = rendered(overlay)["ConfigMap"]["metadata"]["name"]
    assert "env" not in container(overlay)
    assert container(overlay)["envFrom"] == [
        {"configMapRef": {"name": defaults}},
        {"configMapRef": {"name": "cma-clip", "optional": True}},
        {"secretRef": {"name": "cma-clip", "optional": True}},
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_not_trusted(overlay: str) -> None:
    assert pod(overlay)["securityContext"]["runAsNonRoot"]
    assert not pod(overlay)["automountServiceAccountToken"]
    assert container(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_overlays_ask_for_their_device() -> None:
    assert container("gpu")["image"] == "cma-clip:gpu"
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container("cpu")["image"] == "cma-clip:cpu"
    assert "nvidia.com/gpu" not in container("cpu")["resources"]["limits"]


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    adapter = yaml.safe_load((ROOT / "deploy/kubernetes/adapter.yaml").read_text())
    given = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    (metric,) = rendered("cpu")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in given


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.255.255",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "fc00::1",
        "fe80::1",
        "ff02::1",
    ],
)
def test_images_are_not_fetched_from_private_addresses(address: str) -> None:
    assert not _lets_out(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "172.32.0.1", "223.255.255.255", "2606:4700:4700::1111"])
def test_images_are_fetched_from_public_addresses(address: str) -> None:
    assert _lets_out(address)


def _lets_out(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    rules = rendered("cpu")["NetworkPolicy"]["spec"]["egress"]
    blocks = [peer["ipBlock"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]
    return any(
        ip in ipaddress.ip_network(block["cidr"])
        and not any(ip in ipaddress.ip_network(excepted) for excepted in block["except"])
        for block in blocks
    )


def test_the_rules_are_those_of_prometheus() -> None:
    written = (ROOT / "deploy/kubernetes/base/rules.yaml").read_text()
    assert written == manifest(), "`make rules` writes it anew"
    groups = [group["name"] for group in yaml.safe_load(written)["spec"]["groups"]]
    assert len(groups) == len(set(groups))


def test_the_ingress_leads_to_the_service_over_tls_and_not_to_metrics() -> None:
    kinds = rendered("shop")
    spec = kinds["Ingress"]["spec"]
    (rule,) = spec["rules"]
    assert [tls["hosts"] for tls in spec["tls"]] == [[rule["host"]]]
    paths = rule["http"]["paths"]
    ports = {port["name"] for port in kinds["Service"]["spec"]["ports"]}
    for path in paths:
        target = path["backend"]["service"]
        assert target["name"] == kinds["Service"]["metadata"]["name"]
        assert target["port"]["name"] in ports
    assert not [path for path in paths if path["pathType"] == "Prefix" and path["path"] in {"/", "/metrics"}]
    body = kinds["Ingress"]["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert int(body.removesuffix("m")) * 2**20 == Settings.model_fields["max_body_bytes"].default


def test_the_mounted_checkpoint_is_the_one_that_is_served_and_cannot_be_written() -> None:
    (served,) = re.findall(r"CMA_CLIP_CHECKPOINT=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    (mount,) = [each for each in container("shop")["volumeMounts"] if each["mountPath"] == served]
    (volume,) = [each for each in pod("shop")["volumes"] if each["name"] == mount["name"]]
    assert mount["readOnly"]
    claim = rendered("shop")["PersistentVolumeClaim"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "/tmp" in [each["mountPath"] for each in container("shop")["volumeMounts"]]  # noqa: S108 - is still there


def test_the_store_can_be_added_to_any_overlay(tmp_path: Path) -> None:
    kinds: dict[str, list[dict[str, Any]]] = {}
    folder = ROOT / "deploy" / "kubernetes"
    resources, component = (os.path.relpath(folder / name, tmp_path) for name in ("overlays/cpu", "components/store"))
    kustomization = {"kind": "Kustomization", "resources": [resources], "components": [component]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    for document in yaml.safe_load_all(run("kubectl", "kustomize", tmp_path)):
        kinds.setdefault(document["kind"], []).append(document)
        if document["kind"] not in OPERATOR_KINDS:
            kubernetes_validate.validate(document, NEWEST, strict=True)
    (deployment,), (claim,), policies = (
        kinds[kind] for kind in ("Deployment", "PersistentVolumeClaim", "NetworkPolicy")
    )
    spec = deployment["spec"]["template"]["spec"]
    assert {"name": "store", "mountPath": "/store"} in spec["containers"][0]["volumeMounts"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in spec["volumes"]
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"]
    ports = [[port["port"] for port in rule["ports"]] for each in policies for rule in each["spec"]["egress"]]
    assert [5432] in ports
