"""The manifests of a bulk run on KubeRay, against the schemas of Kubernetes, and against the command that they run."""

from __future__ import annotations

import shlex
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from service import cli
from tests.deployment.tools import run

NEWEST = kubernetes_validate.latest_version()

JOB_FIELDS = {
    "backoffLimit",
    "entrypoint",
    "rayClusterSpec",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "ttlSecondsAfterFinished",
}
"""Of a RayJob, `ray.io/v1`: those that are used. Its schema is the operator's, and in no package."""

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl brings kustomize along")


@cache
def rendered() -> dict[str, dict[str, Any]]:
    """Return the objects by kind."""
    documents = yaml.safe_load_all(run("kubectl", "kustomize", "deploy/kubernetes/bulk"))
    return {document["kind"]: document for document in documents}


def cluster() -> dict[str, Any]:
    spec: dict[str, Any] = rendered()["RayJob"]["spec"]["rayClusterSpec"]
    return spec


def templates() -> list[dict[str, Any]]:
    """The pods of the head and of the workers."""
    return [cluster()["headGroupSpec"]["template"], *(each["template"] for each in cluster()["workerGroupSpecs"])]


@needs_kubectl
def test_every_object_fits_its_schema() -> None:
    assert set(rendered()) == {"NetworkPolicy", "RayJob"}
    kubernetes_validate.validate(rendered()["NetworkPolicy"], NEWEST, strict=True)
    for template in templates():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "ray"}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, NEWEST, strict=True)


@needs_kubectl
def test_the_job_has_fields_that_the_operator_knows() -> None:
    job = rendered()["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert set(job["spec"]) == JOB_FIELDS
    assert set(cluster()) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert set(cluster()["headGroupSpec"]) == {"rayStartParams", "template"}
    (workers,) = cluster()["workerGroupSpecs"]
    assert set(workers) == {"groupName", "maxReplicas", "minReplicas", "rayStartParams", "replicas", "template"}
    assert all(isinstance(value, str) for value in cluster()["headGroupSpec"]["rayStartParams"].values())


@needs_kubectl
def test_the_command_exists_with_its_flags() -> None:
    program, name, *arguments = shlex.split(rendered()["RayJob"]["spec"]["entrypoint"])
    assert program == "cma-clip"
    known: dict[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
    flags = {flag for parameter in known[name].params for flag in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= flags


@needs_kubectl
def test_all_machines_see_the_same_catalogue_and_are_not_trusted() -> None:
    for template in templates():
        (container,) = template["spec"]["containers"]
        assert container["image"] == "cma-clip-bulk:cpu"
        assert {"name": "catalogue", "mountPath": "/catalogue", "readOnly": True} in container["volumeMounts"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert not template["spec"]["automountServiceAccountToken"]


@needs_kubectl
def test_nobody_else_reaches_the_cluster() -> None:
    policy = rendered()["NetworkPolicy"]["spec"]
    labels = {"app.kubernetes.io/name": "cma-clip-bulk"}
    assert policy["podSelector"] == {"matchLabels": labels}
    assert all(template["metadata"]["labels"].items() >= labels.items() for template in templates())
    (rule,) = policy["ingress"]
    assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])


def test_hadolint_accepts_the_dockerfile() -> None:
    run(Path(sys.executable).with_name("hadolint"), "deploy/kubernetes/bulk/Dockerfile")
