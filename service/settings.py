"""The service's settings: flags, then environment variables (`CMA_CLIP_…`), then defaults; frozen once read."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from model.errors import ConfigError

PREFIX = "CMA_CLIP_"

DAY = 86_400.0
"""In seconds."""

PROXY_URL = re.compile(
    r"(https?)://(?:([^:/?#@\s]+):([^:/?#@\s]*)@)?([a-z0-9._-]+|\[[0-9a-f:.]+\]):([0-9]{1,5})/?", re.I
)
"""Scheme, user and password, percent-encoded, host and port."""


PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
"""What other programs read; here not, since who sets them may not know that callers choose where images come from."""

SECRETS = ("api_keys", "callback_secret", "image_proxy", "store")
"""Settings that may be given as a file, whose path is in the variable `CMA_CLIP_…_FILE`, and are never shown."""


def _split(value: Any) -> Any:
    """Split `a, b` into a list: in environment variables, lists are written like that; in files, lines separate too."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.replace("\n", ",").split(",") if part.strip()]


def _name_keys(value: Any) -> Any:
    """Take `name:key` apart; a key without a name is called by its place in the list."""
    if not isinstance(value, list | tuple):
        return value
    return [_named(entry, place) if isinstance(entry, str) else entry for place, entry in enumerate(value, start=1)]


def _named(entry: str, place: int) -> dict[str, str]:
    name, colon, secret = entry.partition(":")
    return {"name": name.strip(), "secret": secret.strip()} if colon else {"name": f"key-{place}", "secret": entry}


def _host_pattern(value: Any) -> Any:
    return value.strip().lower().removeprefix("*").rstrip(".") if isinstance(value, str) else value


def _network(value: Any) -> Any:
    return ip_network(value, strict=True) if isinstance(value, str) else value


def _proxy(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not PROXY_URL.fullmatch(value.get_secret_value()):
        raise ValueError("must be http://host:port or https://host:port, with user:password@ where the proxy asks")
    return value


STORE_URL = re.compile(r"sqlite:///(?!:memory:).+|postgres(ql)?://.+", re.DOTALL)


def _store(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not STORE_URL.fullmatch(value.get_secret_value()):
        raise ValueError("must be sqlite:///FILE or postgresql://user:password@host/database")
    return value


def _names_of_keys(names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    known = [key.name for key in info.data.get("api_keys", ())]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{PREFIX}API_KEYS has no key that is called {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    return names


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


class ApiKey(BaseModel):
    """A key that gives access, and the name that stands for it in logs and metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    secret: SecretStr = Field(min_length=1)


class SecretFiles(PydanticBaseSettingsSource):
    """Reads a secret from the file that `CMA_CLIP_…_FILE` names, as container platforms hand secrets over."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the file's text, None if no file is named. Raises `ConfigError`."""
        variable = f"{PREFIX}{field_name.upper()}"
        path = os.environ.get(f"{variable}_FILE", "") if field_name in SECRETS else ""
        if not path:
            return None, field_name, False
        if os.environ.get(variable):
            raise ConfigError(f"{variable} and {variable}_FILE are both set")
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"{variable}_FILE: cannot read {path}: {reason}") from None

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """The settings; each field `x` is the variable `CMA_CLIP_X`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    checkpoint: Path = Field(default=Path("weights/fashion"), description="folder of the checkpoint to serve")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …; auto takes the GPU where there is one")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16")
    engine: Literal["auto", "torch", "openvino-f32", "openvino-bf16", "openvino-int8"] = Field(
        default="auto",
        description="what computes; auto: on a CPU the fastest that the checkpoint carries, on a GPU PyTorch",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="threads that compute; 0: as many as there are cores")
    host: str = Field(default="127.0.0.1", description="address to listen on; every interface: 0.0.0.0, with IPv6 ::")
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
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_name_keys), BeforeValidator(_split)] = Field(
        default=(), description="comma-separated, each `key` or `name:key`; each gives access; none: open to all"
    )
    key_rate: float = Field(
        default=0, ge=0, le=1e6, description="listings per second that each key may send, on average; 0: any number"
    )
    key_queue_share: float = Field(default=1, gt=0, le=1, description="share of the queue that one key may take")
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
        default=(80, 443), description="comma-separated ports of image URLs; where private hosts are allowed: all"
    )
    image_proxy: Annotated[SecretStr | None, AfterValidator(_proxy)] = Field(
        default=None, description="HTTP proxy that images are fetched through: http://user:password@host:port"
    )
    store: Annotated[SecretStr | None, AfterValidator(_store)] = Field(
        default=None, description="database of jobs and reviews: sqlite:///FILE or postgresql://…; none: both are off"
    )
    store_files: str | None = Field(
        default=None,
        min_length=1,
        description="folder, or URL such as s3://bucket/path, of the store's files; none: beside the SQLite file",
    )
    keep_days: float = Field(default=30, gt=0, le=36_500, description="how long the store keeps what has ended")
    callback_secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="signs what is sent to the callback URLs of jobs; none: they are refused",
    )
    max_job_bytes: Count = Field(default=2 * 2**30, description="table and images of one job, uploaded")
    drain_seconds: float = Field(default=20, ge=0, le=86_400, description="longest time from SIGTERM to the end")
    keep_alive_seconds: float = Field(
        default=75,
        ge=1,
        le=86_400,
        description="how long an idle connection is kept; longer than the balancer keeps it",
    )
    max_connections: Count = Field(default=1000, description="connections open at once")
    review_share: float = Field(
        default=0.01, ge=0, le=1, description="share of all answers, drawn at random, that people are asked to judge"
    )
    review_days: float = Field(
        default=365, gt=0, le=36_500, description="days after which reviews, with titles and images, are deleted"
    )
    review_keys: Annotated[tuple[str, ...], *CommaSeparated, AfterValidator(_names_of_keys)] = Field(
        default=(), description="comma-separated names of the API keys that may review; none: all"
    )
    auto_abstain: bool = Field(
        default=False,
        description="accept no more of an attribute whose promised precision reviewers found broken, until it is "
        "calibrated anew",
    )
    log_format: Literal["json", "text"] = Field(default="json", description="json or text")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls)

    @property
    def max_inflight_bytes(self) -> int:
        """Bytes of bodies and fetched images in memory at once, over all requests: eight of the largest bodies."""
        return 8 * self.max_body_bytes

    @property
    def files_of_store(self) -> str:
        """Where the store's files are. Raises `ConfigError` where that must be said."""
        url = self.store.get_secret_value() if self.store else ""
        if self.store_files is not None:
            return self.store_files
        if url.startswith("sqlite:///"):
            return url.removeprefix("sqlite:///").partition("?")[0] + ".files"
        raise ConfigError(f"{PREFIX}STORE_FILES: must name a folder, or a URL such as s3://…, that all replicas share")

    @property
    def listings_limit(self) -> int:
        """Listings in one request: never more than the whole queue, since they are admitted together."""
        return min(self.max_listings, self.max_queue)

    @property
    def open_image_ports(self) -> Collection[int]:
        """Ports of image URLs: in one's own network hosts listen on any, unless they are named."""
        anywhere = self.allow_private_image_hosts and "image_ports" not in self.model_fields_set
        return range(1, 65536) if anywhere else self.image_ports

    @property
    def unused_proxy(self) -> str | None:
        """A variable that names a proxy for other programs, where none is configured for images."""
        variables = (name for each in PROXY_VARIABLES for name in (each, each.lower()))
        return None if self.image_proxy else next((name for name in variables if os.environ.get(name)), None)

    @property
    def proxy(self) -> Proxy | None:
        """The proxy that images are fetched through."""
        found = PROXY_URL.fullmatch(self.image_proxy.get_secret_value()) if self.image_proxy else None
        if found is None:
            return None
        scheme, user, password, host, port = found.groups()
        credentials = None if user is None else (unquote(user), unquote(password))
        return Proxy(url=f"{scheme}://{host}:{port}", credentials=credentials)


def configured_threads() -> int:
    """Return the setting `threads` alone, for commands that need no other. Raises `ConfigError`."""
    variable = f"{PREFIX}THREADS"
    text = os.environ.get(variable, "").strip() or "0"
    if not re.fullmatch("[0-9]{1,4}", text):
        raise ConfigError(f"{variable}: must be a whole number of threads, or 0 for as many as there are cores")
    return int(text)


def load_settings(**flags: Any) -> Settings:
    """Load the settings; a flag that is None was not given.

    Raises `ConfigError`, in one line, naming the variable and what is wrong with it.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{PREFIX}{str(found['loc'][0]).upper()}: {found['msg']}"
        + ("" if found["loc"][0] in SECRETS else f" (it is {found['input']!r})")
        for found in error.errors(include_url=False)
    )
