"""What docs/operations.md says of settings, limits and measured figures is what is so."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from docs import capacity
from model.inputs.limits import BYTES_PER_PIXEL
from model.inputs.pool import SMALL_BYTES, memory_for
from service.settings import PREFIX, Settings

TEXT = capacity.PAGE.read_text(encoding="utf-8")
DOCKERFILE = (capacity.ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (capacity.ROOT / "docker-compose.yml").read_text(encoding="utf-8")
NGINX = "".join(
    (capacity.ROOT / "deploy/nginx" / name).read_text()
    for name in ("nginx.conf", "relay.conf", "replica.conf", "balance.sh")
)

# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────


def table_of_settings() -> dict[str, str]:
    """Return the cell of the default by variable, in the page's order."""
    _, _, section = TEXT.partition("\n## Settings\n")
    section, _, _ = section.partition("\n## ")
    return dict(re.findall(rf"^\| `{PREFIX}([A-Z_]+)` \| (.+?) \| .+ \|$", section, flags=re.MULTILINE))


def as_written(default: Any) -> str:
    """Return a default as the page and a shell write it."""
    match default:
        case () | None:
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case tuple():
            return f"`{', '.join(map(str, default))}`"
        case float():
            return f"`{default:g}`"
    return f"`{default}`"


def test_every_setting_is_explained_with_its_default() -> None:
    assert PydanticUndefined not in [field.default for field in Settings.model_fields.values()]
    shown = {name: re.sub(r" \(image: .*\)$", "", cell) for name, cell in table_of_settings().items()}
    assert shown == {name.upper(): as_written(field.default) for name, field in Settings.model_fields.items()}
    assert list(shown) == [name.upper() for name in Settings.model_fields], "in the order of the settings"


def test_what_the_image_sets_is_marked() -> None:
    marks = {name: re.search(r"image: `(.+)`", cell) for name, cell in table_of_settings().items()}
    marked = {name: mark[1] for name, mark in marks.items() if mark}
    assert marked
    in_the_image = dict(re.findall(rf"{PREFIX}([A-Z_]+)=(\S+)", DOCKERFILE))
    defaults = {name.upper(): as_written(field.default).strip("`") for name, field in Settings.model_fields.items()}
    assert marked == {name: value for name, value in in_the_image.items() if value != defaults[name]}


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────


def nginx(directive: str) -> int:
    """Return the number of a directive, in seconds or MiB: the least where it stands in several of nginx's files."""
    return min(map(int, re.findall(rf"^[ \w\"]*\b{directive} (\d+)[sm];", NGINX, flags=re.MULTILINE)))


def test_the_balancer_agrees_with_the_service() -> None:
    settings = Settings.model_construct()  # the defaults, whatever is set here
    # Bodies: the service's own refusal says more, so the balancer's limit is the same, not a smaller one.
    assert nginx("client_max_body_size") * 2**20 == settings.max_body_bytes
    # An answer: the service gives up first. A retry: never after a replica may have computed in vain.
    assert settings.request_timeout_ms / 1000 < nginx("proxy_read_timeout")
    assert nginx("proxy_next_upstream_timeout") <= settings.request_timeout_ms / 1000 < nginx("proxy_read_timeout")
    assert settings.drain_seconds < nginx("worker_shutdown_timeout")
    assert nginx('echo "    keepalive_timeout') < settings.keep_alive_seconds


@pytest.mark.parametrize(
    "said",
    ["client_max_body_size 32m", "proxy_read_timeout 15s", "keepalive_timeout 60s", "worker_shutdown_timeout 30s"],
)
def test_the_table_of_limits_says_what_is_configured(said: str) -> None:
    assert f"`{said}`" in TEXT
    assert f"{said};" in NGINX


def test_what_decoding_may_take_is_as_the_pool_has_it() -> None:
    settings = Settings.model_construct()
    large = memory_for(settings.max_image_pixels, settings.max_image_bytes)
    assert f"({large / 2**30:.1f} GiB by default, for {max(BYTES_PER_PIXEL, key=BYTES_PER_PIXEL.__getitem__)})" in TEXT
    assert f"{SMALL_BYTES / 2**20:.0f} MiB in each worker" in TEXT
    assert f"({settings.max_inflight_bytes / 2**20:.0f} MiB) of bodies" in TEXT


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────


def row(*, cores: int, image: str, rate: float, peak: float) -> dict[str, Any]:
    load = {"listings_per_second": rate, "latency_ms": {"p50": 20.4, "p99": 44.6}}
    return {
        "device": "cpu",
        "cores": cores,
        "engine": "openvino-f32",
        "dtype": "auto",
        "batch": 32,
        "image": image,
        "image_bytes": 1500,
        "client_has_a_core": cores == 1,
        "single": load,
        "batches": {"listings_per_second": 2 * rate},
        "half_load": load,
        "memory_mib": {"warm": 500.0, "loaded": 600.0, "peak": peak},
    }


MEASURED: dict[str, Any] = {
    "machine": {"processor": "Abacus 3", "cores": 2, "torch": "2.0"},
    "model": "abc",
    "seconds": 15,
    "rows": [
        row(cores=1, image="small", rate=30, peak=700),
        row(cores=2, image="small", rate=50, peak=1024),
        row(cores=1, image="large", rate=10, peak=700),
        row(cores=2, image="large", rate=16, peak=1024),
    ],
}
SOAKED = {
    "answers": {"200": 900, "422": 100},
    "growth": {"mib_per_minute": 0.25, "low": -0.5, "high": 1.0},
    "warm_up_minutes": 2,
    "loaded_mib": [500.0, 900.0, 910.0, 905.0],
    "rested_mib": [500.0, 640.0, 650.0, 651.0],
}


def test_the_page_holds_what_was_measured() -> None:
    figures = map(capacity.read, (capacity.CAPACITY, capacity.SOAK, capacity.GPU_CAPACITY))
    found = capacity.with_figures(TEXT, *figures)
    assert found == TEXT, "run: python -m docs.capacity"


def test_without_figures_the_page_says_so_and_how_to_get_them() -> None:
    page = capacity.with_figures(TEXT, None, None, None)
    assert page.count("*Not measured yet.*") == len(capacity.BLOCKS)
    assert "python -m benchmarks.capacity --out" in page


def test_figures_take_the_place_of_those_before() -> None:
    page = capacity.with_figures(capacity.with_figures(TEXT, None, None, None), MEASURED, SOAKED, None)
    assert "Not measured" not in page
    assert page == capacity.with_figures(page, MEASURED, SOAKED, None)
    assert "| 1 core, openvino-f32 | small (2 kB) | 30.0 | 60.0 | 20 | 45 | 500 | 600 | 700 |" in page
    assert "2 cores of Abacus 3 with torch 2.0, checkpoint `abc`" in page
    assert "In a soak test of 2 minutes" in page
    assert "changed by +0.2 MiB a minute (95 % interval -0.5 to +1.0)" in page


def test_what_was_measured_on_a_gpu_stands_beside_it() -> None:
    assert "No GPU was available" in capacity.with_figures(TEXT, MEASURED, SOAKED, None)
    machine = {**MEASURED["machine"], "gpu": "Slide Rule 9"}
    rows = [{**each, "device": "cuda", "dtype": "float16", "batch": 128} for each in MEASURED["rows"]]
    page = capacity.with_figures(TEXT, MEASURED, SOAKED, {**MEASURED, "machine": machine, "rows": rows})
    assert "No GPU was available" not in page
    assert "| GPU, float16, batch 128 | small (2 kB) | 30.0 | 60.0 | 20 | 45 | 500 | 600 | 700 |" in page
    assert "Measured on Slide Rule 9 and 2 cores of Abacus 3" in page


def test_a_page_without_the_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the markers"):
        capacity.with_figures("# Running the service", MEASURED, SOAKED, None)


def test_the_plan_has_a_replica_to_replace_and_two_at_least() -> None:
    # 100 / (0.6 * 50) = 3.3: four, and one more.
    assert [capacity.replicas(peak, 50) for peak in (1, 30, 30.1, 100)] == [2, 2, 3, 5]


def test_the_plan_is_for_replicas_as_they_are_deployed() -> None:
    assert f"${{REPLICA_CPUS:-{capacity.CORES}}}" in COMPOSE
    slower = [{**each, "engine": "torch", "dtype": "float32"} for each in MEASURED["rows"]]
    plan = capacity.plan({**MEASURED, "rows": [*MEASURED["rows"], *slower]})
    assert "torch" not in plan
    assert "| small, *r* = 50.0: replicas of 2 cores, openvino-f32 | 2 | 5 | 335 |" in plan
    assert "| small, *r* = 50.0: cores | 4 | 10 | 670 |" in plan
    # 1 GiB seen, 0.25 GiB of bodies, 2 × 0.125 GiB for small images, 1.55 GiB for large ones: 3.05 GiB.
    assert "| small, *r* = 50.0: maximum memory, GiB | 6 | 15 | 1,022 |" in plan
    assert "| large, *r* = 16.0: replicas of 2 cores, openvino-f32 | 2 | 12 | 1,043 |" in plan
    assert "1 core" not in plan
