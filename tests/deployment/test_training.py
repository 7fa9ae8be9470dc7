"""The manifest for training on several machines: its schema, and that its parts agree with each other."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from torch.distributed.run import get_args_parser

from tests.deployment.tools import run
from tests.docs.test_docs import check_command_line

FOLDER = "deploy/kubernetes/training"
NEWEST = kubernetes_validate.latest_version()

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl brings kustomize along")


@cache
def rendered() -> dict[str, dict[str, Any]]:
    """Return the objects by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(run("kubectl", "kustomize", FOLDER))}


def job() -> dict[str, Any]:
    (only,) = rendered()["JobSet"]["spec"]["replicatedJobs"]
    return dict(only["template"]["spec"])


def pod() -> dict[str, Any]:
    return dict(job()["template"]["spec"])


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    return dict(only)


def options() -> Namespace:
    """Return what `torchrun` is told, by the first machine."""
    arguments = [argument.replace("$(NODE_RANK)", "0") for argument in container()["args"]]
    return get_args_parser().parse_args(arguments)


@needs_kubectl
def test_the_jobset_fits_its_schema() -> None:
    jobset = rendered()["JobSet"]
    read = JobsetV1alpha2JobSet.from_dict(jobset)
    assert read is not None
    assert read.to_dict() == jobset, "what the schema does not know is lost"
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"


@needs_kubectl
def test_what_kubernetes_itself_defines_fits_its_schemas() -> None:
    of_a_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "machine"}, "spec": job()}
    for document in (of_a_job, rendered()["PersistentVolumeClaim"]):
        kubernetes_validate.validate(document, NEWEST, strict=True)


@needs_kubectl
def test_the_machines_find_each_other() -> None:
    jobset, told = rendered()["JobSet"], options()
    assert container()["command"] == ["torchrun"]
    assert told.nnodes == str(job()["parallelism"]) == str(job()["completions"])
    name, (machines,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    assert told.master_addr == f"{name}-{machines['name']}-0-0.{name}"
    (port,) = container()["ports"]
    assert port["containerPort"] == told.master_port
    assert "--node-rank=$(NODE_RANK)" in container()["args"]
    (rank,) = container()["env"]
    assert rank["name"] == "NODE_RANK"
    assert (
        rank["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    assert job()["completionMode"] == "Indexed"


@needs_kubectl
def test_the_command_exists_and_writes_where_all_machines_do() -> None:
    told = options()
    assert told.training_script == "/opt/venv/bin/cma-clip"
    check_command_line([each.partition("=")[0] for each in told.training_script_args])
    out = next(each for each in told.training_script_args if each.startswith("--out="))
    (claim,) = [each for each in pod()["volumes"] if "persistentVolumeClaim" in each]
    assert claim["persistentVolumeClaim"]["claimName"] == rendered()["PersistentVolumeClaim"]["metadata"]["name"]
    (mounted,) = [each["mountPath"] for each in container()["volumeMounts"] if each["name"] == claim["name"]]
    assert out.removeprefix("--out=").startswith(f"{mounted}/")
    assert rendered()["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


@needs_kubectl
def test_pods_are_not_trusted_and_start_again_together() -> None:
    assert pod()["securityContext"]["runAsNonRoot"]
    assert not pod()["automountServiceAccountToken"]
    assert container()["securityContext"]["readOnlyRootFilesystem"]
    assert container()["image"] == "cma-clip:train"
    assert (job()["backoffLimit"], pod()["restartPolicy"]) == (0, "Never")
    assert rendered()["JobSet"]["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_hadolint_accepts_the_dockerfile() -> None:
    run(Path(sys.executable).with_name("hadolint"), f"{FOLDER}/Dockerfile")
