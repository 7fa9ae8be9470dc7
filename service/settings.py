"""The service's settings: flags, then environment variables (`CMA_CLIP_…`), then defaults; frozen once read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.errors import ConfigError

PREFIX = "CMA_CLIP_"

PROXY_URL = re.compile(
    r"(https?)://(?:([^:/?#@\s]+):([^:/?#@\s]*)@)?([a-z0-9._-]+|\[[0-9a-f:.]+\]):([0-9]{1,5})/?", re.I
)
"""Scheme, user and password, percent-encoded, host and port."""


def _split(value: Any) -> Any:
    """Split `a, b` into a list: in environment variables, lists are written like that."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _host_pattern(value: Any) -> Any:
    return value.strip().lower().removeprefix("*").rstrip(".") if isinstance(value, str) else value


def _network(value: Any) -> Any:
    return ip_network(value, strict=True) if isinstance(value, str) else value


def _proxy(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not PROXY_URL.fullmatch(value.get_secret_value()):
        raise ValueError("must be http://host:port or https://host:port, with user:password@ where the proxy asks")
    return value


CommaSeparated = NoDecode, BeforeValidator(_split)
HostPattern = Annotated[str, BeforeValidator(_host_pattern), Field(min_length=1, pattern=r"^[a-z0-9.:_-]+$")]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """An HTTP proxy: its URL without credentials, and those."""

    url: str
    credentials: tuple[str, str] | None = None


class Settings(BaseSettings):
    """The settings; each field `x` is the variable `CMA_CLIP_X`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    checkpoint: Path = Field(default=Path("weights/fashion"), description="folder of the checkpoint to serve")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …; auto takes the GPU where there is one")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16")
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    max_batch_size: int = Field(default=32, ge=1, le=1024, description="listings in one forward pass")
    max_queue: Count = Field(default=512, description="listings admitted and not yet answered")
    max_wait_ms: float = Field(
        default=0, ge=0, le=1000, description="how long an idle device waits for more; 0: not at all"
    )
    request_timeout_ms: int = Field(default=10_000, ge=1, description="a request's time; caps the caller's own")
    max_body_bytes: Count = Field(default=32 * 2**20, description="request body")
    max_image_bytes: Count = Field(default=10 * 2**20, description="one image, encoded")
    max_image_pixels: Count = Field(default=50_000_000, description="one image, decoded")
    max_listings: Count = Field(default=64, description="listings in one batch request")
    target_precision: float = Field(default=0.95, gt=0, lt=1, description="for requests that name none")
    api_keys: Annotated[tuple[SecretStr, ...], *CommaSeparated] = Field(
        default=(), description="comma-separated; each gives access; none: open to all"
    )
    image_hosts: Annotated[tuple[HostPattern, ...], *CommaSeparated] = Field(
        default=(), description="comma-separated hosts images may come from (.example.com: and below); none: all"
    )
    allow_private_image_hosts: bool = Field(
        default=False, description="let image URLs lead into private networks and to this machine"
    )
    image_networks: Annotated[tuple[Network, ...], *CommaSeparated] = Field(
        default=(), description="comma-separated private networks (10.1.0.0/16) that image URLs may lead into"
    )
    image_ports: Annotated[tuple[Port, ...], *CommaSeparated] = Field(
        default=(80, 443), description="comma-separated ports of image URLs"
    )
    image_proxy: Annotated[SecretStr | None, AfterValidator(_proxy)] = Field(
        default=None, description="HTTP proxy that images are fetched through: http://user:password@host:port"
    )
    drain_seconds: float = Field(default=20, ge=0, le=86_400, description="longest time from SIGTERM to the end")
    log_format: Literal["json", "text"] = Field(default="json", description="json or text")

    @property
    def max_inflight_bytes(self) -> int:
        """Bytes of bodies and fetched images in memory at once, over all requests: eight of the largest bodies."""
        return 8 * self.max_body_bytes

    @property
    def listings_limit(self) -> int:
        """Listings in one request: never more than the whole queue, since they are admitted together."""
        return min(self.max_listings, self.max_queue)

    @property
    def proxy(self) -> Proxy | None:
        """The proxy that images are fetched through."""
        found = PROXY_URL.fullmatch(self.image_proxy.get_secret_value()) if self.image_proxy else None
        if found is None:
            return None
        scheme, user, password, host, port = found.groups()
        credentials = None if user is None else (unquote(user), unquote(password))
        return Proxy(url=f"{scheme}://{host}:{port}", credentials=credentials)


def load_settings(**flags: Any) -> Settings:
    """Load the settings; a flag that is None was not given.

    Raises `ConfigError`, in one line, naming the variable and what is wrong with it.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    secret = ("api_keys", "image_proxy")
    return "; ".join(
        f"{PREFIX}{str(found['loc'][0]).upper()}: {found['msg']}"
        + ("" if found["loc"][0] in secret else f" (it is {found['input']!r})")
        for found in error.errors(include_url=False)
    )
