"""Runs the application under uvicorn, and stops it without losing what was accepted.

SIGTERM   /readyz says 503 and new requests are refused, but the port stays open: the balancer needs a moment
          to notice, and until then gets an answer that it can retry elsewhere, not a refused connection;
          admitted requests are finished; then the process ends. All of it within CMA_CLIP_DRAIN_SECONDS.
again     the process ends at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from model.errors import ConfigError
from service.http.protocol import Connection
from service.lifecycle import Lifecycle
from service.settings import Settings

BALANCER_SECONDS = 2.0
"""How long a balancer may take to notice that the replica is not ready; at most a quarter of the drain."""

LAST_RESORT_SECONDS = 3.0
"""Time after the end of the drain for answers to be written and threads to end."""

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
        if self._lifecycle.draining:
            os._exit(128 + sig)
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
    config = configuration(app)
    with listen(settings.host, settings.port) as listener:
        log.info("listening", extra={"fields": {"host": settings.host, "port": listener.getsockname()[1]}})
        Server(config, lifecycle, drain_seconds=settings.drain_seconds).run(sockets=[listener])
    return lifecycle.failure


def configuration(app: FastAPI, **options: Any) -> uvicorn.Config:
    """Return how uvicorn runs the application; `options` are uvicorn's own."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,  # `service.observability.logs` has been configured already
        access_log=False,  # `service.http.middleware` writes a better line
        server_header=False,
        timeout_keep_alive=75,  # longer than a balancer keeps idle connections, so that it closes them first
        timeout_graceful_shutdown=1,  # for requests that have not been answered by the end of the drain
        **options,
    )


def listen(host: str, port: int) -> socket.socket:
    """Open the port. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # A name that cannot be resolved has no error number of the system's.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from None
