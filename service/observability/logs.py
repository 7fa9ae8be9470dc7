"""Log lines: JSON for machines (the default), text for people. Never a title, an image, a URL or a key."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what is passed as `extra={"fields": {…}}` becomes keys of it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """For people: time, level, message, then the fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())])


def configure(log_format: Literal["json", "text"]) -> None:
    """Send every logger's lines to standard output in one format. (Messages for people go to standard error.)"""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # These write URLs at INFO: where a caller's images are is private.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # it names each of its own modules
    logging.getLogger("uvicorn.error").addFilter(_is_not_about_upgrades)


def _is_not_about_upgrades(record: logging.LogRecord) -> bool:
    """Leave out uvicorn's two warnings about a request to upgrade, which some clients send each time by default.

    It is answered over HTTP/1.1, and nobody is to install a WebSocket library, as the second one says.
    """
    return not record.getMessage().startswith(("Unsupported upgrade request", "No supported WebSocket library"))
