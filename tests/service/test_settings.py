"""Settings: flags before environment before defaults, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from model.errors import ConfigError
from service.settings import Proxy, Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CMA_CLIP_{name.upper()}", raising=False)


def test_the_defaults_are_as_agreed() -> None:
    settings = load_settings()
    assert settings.model_dump() == {
        "checkpoint": Path("weights/fashion"), "device": "auto", "dtype": "auto", "engine": "auto", "threads": 0,
        "host": "127.0.0.1", "port": 8000,
        "max_batch_size": 32, "max_queue": 512, "max_wait_ms": 0, "request_timeout_ms": 10_000,
        "max_body_bytes": 32 * 2**20, "max_image_bytes": 10 * 2**20, "max_image_pixels": 50_000_000,
        "max_listings": 64, "target_precision": 0.95, "api_keys": (), "key_rate": 0, "key_queue_share": 1,
        "image_hosts": (), "allow_private_image_hosts": False, "image_networks": (), "image_ports": (80, 443),
        "image_proxy": None, "store": None, "store_files": None, "keep_days": 30, "callback_secret": None,
            "max_job_bytes": 2 * 2**30,
        "drain_seconds": 20, "keep_alive_seconds": 75, "max_connections": 1000,
        "review_share": 0.01, "review_days": 365, "review_keys": (), "auto_abstain": False, "log_format": "json",
    }  # fmt: skip


def test_reviewers_are_named_by_the_names_of_keys() -> None:
    assert load_settings(api_keys="shop:a,anna:b", review_keys="anna").review_keys == ("anna",)
    with pytest.raises(ConfigError, match=r"CMA_CLIP_REVIEW_KEYS.*no key that is called 'ben'; it has shop, anna"):
        load_settings(api_keys="shop:a,anna:b", review_keys="anna,ben")
    with pytest.raises(ConfigError, match="it has none"):
        load_settings(review_keys="anna")


def test_flags_go_before_the_environment_and_that_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMA_CLIP_PORT", "9000")
    monkeypatch.setenv("CMA_CLIP_HOST", "::1")
    settings = load_settings(port="9001", host=None)
    assert (settings.port, settings.host, settings.max_queue) == (9001, "::1", 512)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker-compose passes on what its own environment lacks."""
    for name in Settings.model_fields:
        monkeypatch.setenv(f"CMA_CLIP_{name.upper()}", "")
    assert load_settings().model_dump()["port"] == 8000


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMA_CLIP_API_KEYS", "one, zwei ,,three")
    monkeypatch.setenv("CMA_CLIP_IMAGE_HOSTS", "Images.Example.com, *.cdn.example.com, .other.test.")
    settings = load_settings()
    assert [key.secret.get_secret_value() for key in settings.api_keys] == ["one", "zwei", "three"]
    assert settings.image_hosts == ("images.example.com", ".cdn.example.com", ".other.test")
    assert "zwei" not in repr(settings)


def test_keys_have_names_and_one_name_may_have_two_keys_while_it_changes() -> None:
    settings = load_settings(api_keys="plain, shop:old ,shop:new,feed.eu-1: a:b")
    found = [(key.name, key.secret.get_secret_value()) for key in settings.api_keys]
    assert found == [("key-1", "plain"), ("shop", "old"), ("shop", "new"), ("feed.eu-1", "a:b")]


def test_keys_may_be_given_as_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("shop:one\nfeed:two, three\n\n")
    monkeypatch.setenv("CMA_CLIP_API_KEYS_FILE", str(file))
    assert [key.name for key in load_settings().api_keys] == ["shop", "feed", "key-3"]
    assert [key.name for key in load_settings(api_keys="flag:x").api_keys] == ["flag"]
    monkeypatch.setenv("CMA_CLIP_API_KEYS", "other:four")
    with pytest.raises(ConfigError, match="both set"):
        load_settings()


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_of_keys_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("CMA_CLIP_API_KEYS_FILE", str(file))
    with pytest.raises(ConfigError, match="CMA_CLIP_API_KEYS_FILE: cannot read"):
        load_settings()


@pytest.mark.parametrize("keys", ["sh op:SECRET", "shop:", ":SECRET", "a" * 65 + ":SECRET"])
def test_a_mistake_in_the_keys_shows_none_of_them(keys: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(api_keys=keys)
    assert str(caught.value).startswith("CMA_CLIP_API_KEYS: ")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "http"), ("port", "70000"), ("max_batch_size", "0"), ("max_queue", "-1"), ("max_wait_ms", "-1"),
        ("request_timeout_ms", "0"), ("target_precision", "95"), ("log_format", "xml"), ("drain_seconds", "soon"),
        ("drain_seconds", "inf"), ("allow_private_image_hosts", "maybe"), ("image_hosts", "http://example.com/"),
        ("image_networks", "10.0.0.1/8"), ("image_networks", "ten"), ("image_ports", "0"), ("image_ports", "http"),
        ("keep_alive_seconds", "0"), ("max_connections", "0"), ("key_rate", "-1"), ("key_queue_share", "0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CMA_CLIP_{name.upper()}", value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    line = str(caught.value)
    assert line.startswith(f"CMA_CLIP_{name.upper()}: ")
    assert value in line
    assert "\n" not in line


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1


def test_a_request_may_hold_no_more_listings_than_the_queue() -> None:
    assert load_settings(max_queue="8").listings_limit == 8
    assert load_settings().listings_limit == 64


def test_networks_and_ports_are_lists_too() -> None:
    settings = load_settings(image_networks="10.1.0.0/16, fd00:1::/64,192.0.2.7", image_ports="443,8443")
    assert [str(network) for network in settings.image_networks] == ["10.1.0.0/16", "fd00:1::/64", "192.0.2.7/32"]
    assert settings.image_ports == (443, 8443)


def test_the_proxys_credentials_are_a_secret() -> None:
    settings = load_settings(image_proxy="http://me:p%40ss@proxy.test:3128/")
    assert settings.proxy == Proxy(url="http://proxy.test:3128", credentials=("me", "p@ss"))
    assert "p%40ss" not in repr(settings)
    assert load_settings(image_proxy="https://[::1]:3128").proxy == Proxy(url="https://[::1]:3128")
    assert load_settings().proxy is None


@pytest.mark.parametrize(
    "url", ["proxy:3128", "socks5://proxy:3128", "http://proxy", "http://a@proxy:1", "http://x y:1"]
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError, match=r"CMA_CLIP_IMAGE_PROXY: .*http://host:port") as caught:
        load_settings(image_proxy=url)
    assert url not in str(caught.value)
