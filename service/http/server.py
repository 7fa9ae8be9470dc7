"""Runs the application under uvicorn, and stops it without losing what was accepted.

SIGTERM   while the model loads, nothing has been accepted, and the process ends at once. Later,
          /readyz says 503 and new requests are refused, but the port stays open: the balancer needs a moment
          to notice, and until then gets an answer that it can retry elsewhere, not a refused connection;
          admitted requests are finished; then the process ends. All of it within CMA_CLIP_DRAIN_SECONDS.
again     the process ends at once.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from model.errors import ConfigError
from service.errors import ServiceError
from service.http.protocol import Connection, ConnectionLimits
from service.lifecycle import Lifecycle
from service.memory import freeze, keep_large_blocks_apart
from service.pipeline.pipeline import Pipeline
from service.settings import Settings
from service.signals import end_at_once

BALANCER_SECONDS = 2.0
"""How long a balancer may take to notice that the replica is not ready; at most a quarter of the drain."""

LAST_RESORT_SECONDS = 3.0
"""Time after the end of the drain for answers to be written and threads to end."""

ANY_IPV6 = "::"

RESERVED_FILES = 128
"""Open files that are not callers' connections: images being fetched, libraries, the log."""

SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while another waits for it. By default it is 5 ms, and a lone caller's
request passes from thread to thread four times."""

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn that drains before it stops."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_seconds = drain_seconds
        self._balancer_seconds = 0.0
        self._draining_since = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second signal ends the process at once."""
        if self._lifecycle.draining or self._lifecycle.loading:
            end_at_once(sig)
        self._lifecycle.drain()
        self._draining_since = time.monotonic()
        # Ctrl-C comes from a person, not from an orchestrator with a balancer.
        self._balancer_seconds = 0.0 if sig == signal.SIGINT else min(BALANCER_SECONDS, self._drain_seconds / 4)
        # Something may still hang then (a device, a name server), and the process must end all the same.
        last_resort = threading.Timer(self._drain_seconds + LAST_RESORT_SECONDS, os._exit, [1])
        last_resort.daemon = True
        last_resort.start()
        log.info("draining")

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; the server stops once this returns True."""
        stop = await super().on_tick(counter)
        return stop or self._lifecycle.failure is not None or (self._lifecycle.draining and self._drained())

    def _drained(self) -> bool:
        elapsed = time.monotonic() - self._draining_since
        if elapsed >= self._drain_seconds:
            self._lifecycle.give_up()
            return True
        return elapsed >= self._balancer_seconds and self._lifecycle.idle


def serve(app: FastAPI, settings: Settings) -> Exception | None:
    """Serve until stopped by a signal. Returns why the model could not be loaded, if that is what ended it.

    Raises `ConfigError` if the port cannot be opened.
    """
    lifecycle: Lifecycle = app.state.lifecycle
    lifecycle.once_warm = freeze
    raise_limit_of_files()
    keep_large_blocks_apart()
    sys.setswitchinterval(SWITCH_SECONDS)
    config = configuration(app)
    for sig in (signal.SIGINT, signal.SIGTERM):
        # Before uvicorn handles signals, and after: threads that it does not know of may still be waited for then.
        signal.signal(sig, end_at_once)
    if settings.unused_proxy is not None:
        log.warning("%s is set and not used: images go through CMA_CLIP_IMAGE_PROXY alone", settings.unused_proxy)
    with listen(settings.host, settings.port) as listener:
        log.info("listening", extra={"fields": {"host": settings.host, "port": listener.getsockname()[1]}})
        Server(config, lifecycle, drain_seconds=settings.drain_seconds).run(sockets=[listener])
    return lifecycle.failure


def configuration(app: FastAPI, **options: Any) -> uvicorn.Config:
    """Return how uvicorn runs the application; `options` are uvicorn's own. Raises `ConfigError`."""
    pipeline: Pipeline = app.state.pipeline
    settings = pipeline.settings
    limits = ConnectionLimits(
        max_connections=connections_within_files(settings.max_connections),
        keep_alive_seconds=settings.keep_alive_seconds,
        on_refused=Refusals(pipeline.metrics.requests.rejected),
    )
    return uvicorn.Config(
        app,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]
        ws="none",
        log_config=None,  # `service.observability.logs` has been configured already
        access_log=False,  # `service.http.middleware` writes a better line
        server_header=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_seconds),
        timeout_graceful_shutdown=1,  # for requests that have not been answered by the end of the drain
        **options,
    )


class Refusals:
    """Counts what connections were refused before there was a route, and logs it: a line a second, however many."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """count: told of each problem's code"""
        self._count = count
        self._unlogged: Counter[str] = Counter()
        self._logged_at = -math.inf

    def __call__(self, error: ServiceError) -> None:
        self._count(error.code)
        self._unlogged[error.code] += 1
        if time.monotonic() - self._logged_at >= 1:
            self._logged_at = time.monotonic()
            log.warning("refused: %s", error.detail, extra={"fields": {"refused": dict(self._unlogged)}})
            self._unlogged.clear()


def raise_limit_of_files() -> None:
    """Raise the soft limit of open files to the hard one: the usual 1,024 is for programs that call `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_within_files(wanted: int) -> int:
    """Return how many connections there may be, given how many files. Raises `ConfigError` if there may be none."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or wanted <= files - RESERVED_FILES:
        return wanted
    if files <= RESERVED_FILES:
        raise ConfigError(f"the limit of open files (ulimit -n) is {files}; at least {RESERVED_FILES + 1} are needed")
    log.warning("the limit of open files allows %d connections, not %d", files - RESERVED_FILES, wanted)
    return files - RESERVED_FILES


def listen(host: str, port: int) -> socket.socket:
    """Open the port; the address `::` is every interface by IPv6, and by IPv4 too. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == ANY_IPV6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        # A name that cannot be resolved has no error number of the system's.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        if family == socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            reason += "; without IPv6 on this machine, 0.0.0.0 is every interface"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from None
