"""Real Prometheus scrapes a real replica; every query of the dashboard is put to it and must return data."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from tests.deployment.load import LISTING
from tests.deployment.processes import Process, Replica, free_port, running
from tests.deployment.tools import ROOT

DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/cma-clip.json").read_text())
VARIABLES = {"$__rate_interval": "30s", "$attribute": ".*", "$instance": ".*"}
"""What Grafana would fill in; ".*" is the dashboard's own value of "All"."""
ANSWERS = 1088
"""Over the thousand below which nothing is said of drift."""


class Prometheus(Process):
    """Prometheus with the shipped configuration and rules, looking every second, at one replica."""

    def __init__(self, folder: Path, replica: Replica) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = (job for job in configuration["scrape_configs"] if job["job_name"] == "cma-clip")
        del job["dns_sd_configs"]
        # As the Prometheus operator labels what it finds through the ServiceMonitor.
        labels = {"namespace": "cma-clip", "pod": "cma-clip-1"}
        job["static_configs"] = [{"targets": [replica.address], "labels": labels}]
        configuration["scrape_configs"] = [job]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        (folder / "rules").mkdir()
        for path in (ROOT / "deploy/prometheus/rules").glob("*.yml"):
            rules = yaml.safe_load(path.read_text())
            for group in rules["groups"]:
                group["interval"] = "1s"
            (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
        super().__init__(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            up=f"{self.url}/-/ready",
            log=folder / "prometheus.log",
        )

    def ask(self, path: str, **parameters: str) -> Any:
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        assert reply["status"] == "success", reply
        return reply["data"]

    def values(self, expression: str) -> list[float]:
        """Return the numbers of an instant query that are numbers."""
        found = [float(sample["value"][1]) for sample in self.ask("query", query=expression)["result"]]
        return [value for value in found if not math.isnan(value)]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus that has seen traffic of every kind, and has put it through every rule."""
    folder = tmp_path_factory.mktemp("monitoring")
    store = f"sqlite:///{folder / 'store.db'}"
    replica = Replica(folder, request_timeout_ms=60_000, store=store, review_share=1.0)
    with running(replica):
        prometheus = Prometheus(folder, replica)
        with running(prometheus):
            # The first look must come before the first answer: what is there then is no increase.
            wait_for(prometheus, "cma_clip_predictions_total")
            judge(f"http://{replica.address}")
            send_traffic(f"http://{replica.address}")
            wait_for(prometheus, "cma_clip_reviewed_precision >= 0")
            wait_for(prometheus, "cma_clip:label_mix_distance:1h")  # the last rule of the longest chain
            yield prometheus


def send_traffic(url: str) -> None:
    """Classify listings with image and title in batches, and send a bad one."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for number in range(ANSWERS // 64):
            batch = {"listings": [listing(64 * number + offset) for offset in range(64)]}
            client.post("/v1/classify/batch", json=batch).raise_for_status()
        assert client.post("/v1/classify", json={"id": "neither"}).status_code == 422
        for _ in range(3):
            client.get("/readyz").raise_for_status()
            time.sleep(1)


def judge(url: str) -> None:
    """Classify a listing by itself, and judge what is asked about it, as a reviewer for whom no label ever fits."""
    with httpx.Client(base_url=url, timeout=60) as client:
        attributes = client.post("/v1/classify", json=LISTING).raise_for_status().json()["attributes"]
        judged, deadline = 0, time.monotonic() + 60
        while judged < len(attributes):
            assert time.monotonic() < deadline, "what was answered is not there to be judged"
            waiting = client.get("/v1/reviews/next", params={"reviewer": "Ada", "kind": "random", "count": 10}).json()
            for item in waiting["items"]:
                decision = {"item": item["item"], "reviewer": "Ada", "decision": "none"}
                client.post("/v1/reviews", json=decision).raise_for_status()
            judged += len(waiting["items"])


def listing(number: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 80), (number % 256, 80, 160)).save(buffer, "JPEG")
    return {**LISTING, "id": str(number), "image": {"base64": base64.b64encode(buffer.getvalue()).decode()}}


def wait_for(prometheus: Prometheus, expression: str) -> None:
    deadline = time.monotonic() + 60
    while not prometheus.values(expression):
        assert time.monotonic() < deadline, f"there is still no {expression}"
        time.sleep(0.5)


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").split(", ")
            yield f"variable {variable['name']}", f"count by ({label}) ({metric})"
    for annotation in DASHBOARD["annotations"]["list"]:
        # A restart is no sight of every day: that the query has a metric to look at is enough.
        yield annotation["name"], annotation["expr"].removesuffix(" > 0")


@pytest.mark.parametrize(("title", "expression"), list(queries()))
def test_every_query_of_the_dashboard_returns_data(prometheus: Prometheus, title: str, expression: str) -> None:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, "a variable that this test does not know"
    assert prometheus.values(expression), title


def recorded() -> Iterator[str]:
    for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml")):
        groups = yaml.safe_load(path.read_text())["groups"]
        yield from dict.fromkeys(rule["record"] for group in groups for rule in group["rules"] if "record" in rule)


@pytest.mark.parametrize("name", list(recorded()))
def test_every_recording_rule_records_something(prometheus: Prometheus, name: str) -> None:
    assert prometheus.values(name)


def test_the_adapter_finds_the_metric_and_its_query_returns_data(prometheus: Prometheus) -> None:
    (rule,) = yaml.safe_load((ROOT / "deploy/kubernetes/adapter.yaml").read_text())["rules"]["custom"]
    (series,) = prometheus.ask("series", **{"match[]": rule["seriesQuery"]})
    assert {series[label] for label in rule["resources"]["overrides"]} == {"cma-clip", "cma-clip-1"}
    query = rule["metricsQuery"]
    for template, value in {
        "<<.Series>>": series["__name__"],
        "<<.LabelMatchers>>": 'namespace="cma-clip",pod=~"cma-clip-1"',
        "<<.GroupBy>>": "pod",
    }.items():
        assert template in query
        query = query.replace(template, value)
    assert len(prometheus.values(query)) == 1


def test_the_dashboard_looks_at_the_source_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    (variable,) = (entry for entry in DASHBOARD["templating"]["list"] if entry["type"] == "datasource")
    assert variable["query"] == source["type"]
    assert variable["current"] == {"text": source["name"], "value": source["uid"]}
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


def test_the_replica_is_scraped_as_the_job_that_the_rules_name(prometheus: Prometheus) -> None:
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["labels"]["job"], target["health"]) == ("cma-clip", "up"), target["lastError"]


def test_every_rule_is_evaluated_without_a_complaint(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}


def test_a_replica_at_work_raises_no_alert(prometheus: Prometheus) -> None:
    alerts = prometheus.ask("alerts")["alerts"]
    assert not [alert for alert in alerts if alert["state"] == "firing"]


def test_what_is_recorded_is_what_was_sent(prometheus: Prometheus) -> None:
    assert prometheus.values("cma_clip:ready_replicas") == [1]
    assert prometheus.values("sum(cma_clip_batch_size_sum)") == [ANSWERS + 1]
    assert prometheus.values('cma_clip_rejected_total{reason="invalid_request"}') == [1]
